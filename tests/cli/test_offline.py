"""What lies on this machine is never looked for elsewhere: no command whose model is in a folder opens a connection.

With HF_HUB_OFFLINE=1 and without: a cluster's nodes have no network, and whoever has one is not to be known by it."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from cli.main import app
from tests.featstore.trainable import write_trainable

BATCH = ("--batch-size", "4")
MAPS = ("--layers", "2,dino", "--t", "261", "--ensemble", "1", *BATCH)
SMALL = ("--steps", "1", "--batch", "1", "--draws", "1", "--val-pairs", "2", *BATCH)
COMMANDS = {
    "cache maps": ("cache", "maps", *MAPS),
    "cache export": ("cache", "export", *MAPS, "--out", "maps.safetensors"),
    "eval": ("eval", *MAPS),
    "grid": ("grid", "--layers", "2", "--t", "261", "--ensemble", "1", *BATCH),
    "grid --stream": ("grid", "--layers", "3", "--t", "50", "--ensemble", "1", *BATCH, "--stream"),
    "train single": ("train", "--mode", "single", *SMALL, "--length", "4"),
    "train cpm": ("train", "--mode", "cpm", *SMALL),
    "cache verify": ("cache", "verify", "--drop"),
    "doctor": ("doctor", "--store", "dualsd.zarr"),
    "match demo": ("match", "a.jpg", "b.jpg", "--points", "20,20", "--model", "demo", "--ensemble", "1"),
    "build demo": ("cache", "build", "--dry-run", "--store", "demo.zarr"),
}


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tried to reach; every attempt fails."""
    found: list[str] = []

    def refusing(what: str) -> Callable[..., object]:
        def refuse(*arguments: object, **_: object) -> object:
            found.append(f"{what} {arguments[-1] if what.startswith('connect') else arguments}")
            raise OSError("there is no network here")

        return refuse

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refusing(name))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refusing(name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("offline", [True, False])
def test_no_command_opens_a_connection(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, attempts: list[str], offline: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    write_trainable(tmp_path / "spair")
    for own, picture in (("a", "0"), ("b", "1")):
        (tmp_path / f"{own}.jpg").write_bytes((tmp_path / "spair/JPEGImages/cat" / f"{picture}.jpg").read_bytes())
    build = ("cache", "build", "--dataset", "spair", "--root", "spair", "--model", str(small_model), "--size", "64")
    for name, command in {"cache build": (*build, "--t", "261", *BATCH), **COMMANDS}.items():
        result = CliRunner().invoke(app, list(command))
        assert result.exit_code == 0, (name, result.output)
        assert attempts == [], name


def test_an_attempt_would_be_seen(attempts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name on the hub, which is not in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    result = CliRunner().invoke(app, ["cache", "build", "--model", "nobody/no-such-model", "--store", "s.zarr"])
    assert result.exit_code == 2
    assert attempts
