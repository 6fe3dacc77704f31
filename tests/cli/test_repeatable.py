"""The same command twice gives the same numbers: with two threads, in empty folders of their own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from cli.main import app
from featstore.store.store import open_store
from tests.featstore.pictures import write_pictures
from tests.featstore.trainable import write_trainable

READOUTS = "nn,bilinear,softmax,kernelsoftmax,window,pixel"
EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "2", "--readouts", READOUTS)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """A command in a folder, which is made where it is not there."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


def evaluated(
    monkeypatch: pytest.MonkeyPatch, folder: Path, model: Path, batch_size: str, *more: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what --json says, predictions) of a store built in an empty folder."""
    build = ("cache", "build", "--dataset", "folder", "--root", str(folder.parent / "pictures"), "--model", str(model))
    ran(monkeypatch, folder, *build, "--size", "64", "--t", "261,50", "--ensemble", "2", "--batch-size", batch_size)
    ran(monkeypatch, folder, *EVAL, "--batch-size", batch_size, "--json", "out.json", "--out", "run", *more)
    return json.loads((folder / "out.json").read_text()), load_file(folder / "run" / "predictions.safetensors")


def rows(folder: Path) -> dict[str, bytes]:
    """Every row that a store holds, its bytes."""
    store = folder / "dualsd.zarr"
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(store.rglob("c.*"))}


@pytest.mark.parametrize("more", [(), ("--dtype", "float16", "--stored", "int8")])
def test_building_and_evaluating(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    write_pictures(tmp_path / "pictures")
    first, second = (evaluated(monkeypatch, tmp_path / name, small_model, "4", *more) for name in ("a", "b"))
    assert first[0] == second[0]
    assert first[1].keys() == second[1].keys()
    assert all(np.array_equal(values, second[1][name]) for name, values in first[1].items())
    written = rows(tmp_path / "a")
    assert len(written) == 7 * (1 + 2 * 2 + 2)
    assert written == rows(tmp_path / "b")
    assert set(first[0]["results"]) == set(READOUTS.split(","))


def test_another_batch_size_is_another_rounding(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries compute batches of another size in another order: maps differ by float16's rounding, not by more."""
    write_pictures(tmp_path / "pictures")
    for name, batch_size in (("a", "4"), ("b", "3")):
        evaluated(monkeypatch, tmp_path / name, small_model, batch_size)
    stores = [open_store(tmp_path / name / "dualsd.zarr") for name in ("a", "b")]
    compared = 0
    for path, array in stores[0].arrays().items():
        other = stores[1].array(path)
        assert other is not None
        for row in np.ndindex(*array.rows_shape):
            ours, theirs = array.read(row).astype(np.float32), other.read(row).astype(np.float32)
            assert np.abs(ours - theirs).max() <= 4 * 2**-11 * np.abs(ours).max(), path
            compared += 1
    assert compared == 7 * (1 + 2 * 2 + 2)


@pytest.mark.slow
def test_training(tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_trainable(tmp_path / "spair")
    build = ("cache", "build", "--dataset", "spair", "--root", str(tmp_path / "spair"), "--model", str(small_model))
    for name in ("a", "b"):
        ran(monkeypatch, tmp_path / name, *build, "--size", "64", "--t", "50,200", "--batch-size", "4")
        train = ("train", "--mode", "single", "--steps", "2", "--length", "4", "--batch", "2", "--draws", "2")
        ran(monkeypatch, tmp_path / name, *train, "--device", "cpu", "--batch-size", "4")
    for file in ("prompts.safetensors", "prompts-last.safetensors", "checkpoint.safetensors"):
        ours, theirs = (load_file(next((tmp_path / name / "runs").iterdir()) / file) for name in ("a", "b"))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(values, theirs[name]) for name, values in ours.items()), file
