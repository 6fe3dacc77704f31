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


Made = tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]
"""What --json says, predictions, and the store's rows."""


@pytest.fixture(autouse=True, scope="module")
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `folder` dataset of 7 pictures."""
    return write_pictures(tmp_path_factory.mktemp("repeatable") / "pictures")


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """A command in a folder, which is made where it is not there."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output


def build(monkeypatch: pytest.MonkeyPatch, folder: Path, pictures: Path, model: Path, batch_size: str) -> None:
    """A store in an empty folder."""
    arguments = ("cache", "build", "--dataset", "folder", "--root", str(pictures), "--model", str(model))
    ran(monkeypatch, folder, *arguments, "--size", "64", "--t", "261,50", "--ensemble", "2", "--batch-size", batch_size)


def evaluated(monkeypatch: pytest.MonkeyPatch, folder: Path, pictures: Path, model: Path, *more: str) -> Made:
    """Of a store that is built in an empty folder, in batches of 4."""
    build(monkeypatch, folder, pictures, model, "4")
    ran(monkeypatch, folder, *EVAL, "--batch-size", "4", "--json", "out.json", "--out", "run", *more)
    predictions = load_file(folder / "run" / "predictions.safetensors")
    return json.loads((folder / "out.json").read_text()), predictions, rows(folder)


def rows(folder: Path) -> dict[str, bytes]:
    """Every row that a store holds, its bytes."""
    store = folder / "dualsd.zarr"
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(store.rglob("c.*"))}


@pytest.fixture(scope="module")
def first(pictures: Path, small_model: Path) -> Iterator[Made]:
    """Of folder `a` beside the pictures, which other runs are held against."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield evaluated(monkeypatch, pictures.with_name("a"), pictures, small_model)


def assert_same(ours: Made, theirs: Made) -> None:
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert all(np.array_equal(values, theirs[1][name]) for name, values in ours[1].items())
    assert len(ours[2]) == 7 * (1 + 2 * 2 + 2)
    assert ours[2] == theirs[2]
    assert set(ours[0]["results"]) == set(READOUTS.split(","))


def test_building_and_evaluating(
    tmp_path: Path, pictures: Path, small_model: Path, first: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_same(first, evaluated(monkeypatch, tmp_path / "b", pictures, small_model))


def test_in_half_precision(tmp_path: Path, pictures: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("--dtype", "float16", "--encoding", "bitround4")
    ours, theirs = (evaluated(monkeypatch, tmp_path / name, pictures, small_model, *more) for name in ("a", "b"))
    assert_same(ours, theirs)


def test_another_batch_size_is_another_rounding(
    tmp_path: Path, pictures: Path, small_model: Path, first: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries compute batches of another size in another order: maps differ by float16's rounding, not by more."""
    build(monkeypatch, tmp_path, pictures, small_model, "3")
    ran(monkeypatch, tmp_path, "cache", "maps", *EVAL[1:7], "--batch-size", "3")
    stores = [open_store(folder / "dualsd.zarr") for folder in (pictures.with_name("a"), tmp_path)]
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
    made = ("cache", "build", "--dataset", "spair", "--root", str(tmp_path / "spair"), "--model", str(small_model))
    for name in ("a", "b"):
        ran(monkeypatch, tmp_path / name, *made, "--size", "64", "--t", "50,200", "--batch-size", "4")
        train = ("train", "--mode", "single", "--steps", "2", "--length", "4", "--batch", "2", "--draws", "2")
        ran(monkeypatch, tmp_path / name, *train, "--device", "cpu", "--batch-size", "4")
    for file in ("prompts.safetensors", "prompts-last.safetensors", "checkpoint.safetensors"):
        ours, theirs = (load_file(next((tmp_path / name / "runs").iterdir()) / file) for name in ("a", "b"))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(values, theirs[name]) for name, values in ours.items()), file
