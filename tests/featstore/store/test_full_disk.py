"""A disk that fills up in the middle of `cache build` and `cache maps`: one sentence that says what could not
be written and what is free, everything complete stays usable, and with more room one more run completes it."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from featstore.backbones.base import Compute
from featstore.backbones.models import Model, open_model
from featstore.backbones.noise import Latents
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import DiskFullError, StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.care import verify
from featstore.store.store import Store, open_store
from tests.featstore.store.small_store import contents, write_small_store
from tests.small_disk import resize

COMPUTE = Compute(torch.device("cpu"), torch.float32, 4)
WANTED = [("2", 50), ("3", 261)]
# a row, or what holds rows: those are written behind the computation, so either may come first
FULL = "(Row|The array|The group) .* could not be written: the disk is full, .* free.*; make room and run the same"


@pytest.fixture
def dataset(photographs: Path) -> Dataset:
    return open_dataset("folder", photographs)


@pytest.fixture
def model(small_model: Path) -> Model:
    return open_model(str(small_model))


def request(path: Path, root: Path) -> BuildRequest:
    return BuildRequest(path, root, 64, Latents.SAMPLE, 0, (50, 261), 1)


def make(store: Store, dataset: Dataset) -> None:
    require_maps(store, dataset, range(6), WANTED, MapRequest(TextPrompt(), 1, COMPUTE), Silent())


def rows(path: Path) -> int:
    return len(list(path.rglob("c.*.0")))


def complete(path: Path, dataset: Dataset, model: Model, root: Path) -> dict[str, bytes]:
    """What a store holds that never ran out of room."""
    build(dataset, model, request(path, root), COMPUTE, skip_bad=False, progress=Silent())
    make(open_store(path), dataset)
    return contents(path)


def test_build_and_maps_on_a_small_disk(
    disk: Path, tmp_path: Path, photographs: Path, dataset: Dataset, model: Model
) -> None:
    path = disk / "s.zarr"
    wish = request(path, photographs)

    def run() -> None:
        build(dataset, model, wish, COMPUTE, skip_bad=False, progress=Silent())

    resize(disk, 132_000)
    with pytest.raises(DiskFullError, match=FULL):
        run()
    made = rows(path)
    assert 0 < made < 18
    assert verify(open_store(path), Silent()).sound
    resize(disk, 1_000_000)
    run()
    store = open_store(path)
    assert rows(path) == 18

    resize(disk, 80_000)
    with pytest.raises(DiskFullError, match=FULL):
        make(store, dataset)
    layers = {layer: rows(folder) for layer in (2, 3) for folder in path.glob(f"maps/*/layer{layer}")}
    assert 0 < sum(layers.values()) < 12
    assert verify(open_store(path), Silent()).sound
    resize(disk, 1_000_000)
    make(store, dataset)
    assert contents(path) == complete(tmp_path / "whole.zarr", dataset, model, photographs)


@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_write_that_finds_no_room(
    tmp_path: Path, photographs: Path, dataset: Dataset, model: Model, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """Without a small disk: the `place`-th row (after 6 latents come 12 noisy ones) finds no room."""
    whole = complete(tmp_path / "whole.zarr", dataset, model, photographs)
    wish = request(tmp_path / "s.zarr", photographs)
    full_after(monkeypatch, place)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 1000)
    # a row of latents, clean or noisy: 4 x 16 x 16 float16 and a checksum
    with pytest.raises(DiskFullError, match=r"the disk is full, 1\.0 kB are free, it takes 2\.1 kB; make room"):
        build(dataset, model, wish, COMPUTE, skip_bad=False, progress=Silent())
    assert rows(wish.path) == place
    assert not list(wish.path.rglob("*.partial"))
    monkeypatch.undo()
    build(dataset, model, wish, COMPUTE, skip_bad=False, progress=Silent())
    store = open_store(wish.path)
    full_after(monkeypatch, place)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 1000)
    size = r"16\.4" if place < 6 else r"32\.8"  # 128 x 8 x 8 of layer 2 at t = 50, then 64 x 16 x 16 of layer 3
    with pytest.raises(DiskFullError, match=rf"the disk is full, 1\.0 kB are free, it takes {size} kB; make room"):
        make(store, dataset)
    monkeypatch.undo()
    make(store, dataset)
    assert contents(wish.path) == whole


def full_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """So many rows are written, then the disk is full."""
    plain, written, counting = Path.replace, 0, threading.Lock()

    def replace(self: Path, target: Path) -> Path:
        nonlocal written
        with counting:
            if Path(target).name.startswith("c.") and written == rows:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += Path(target).name.startswith("c.")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)


def test_a_disk_with_no_room_for_a_new_store(
    tmp_path: Path, photographs: Path, dataset: Dataset, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 0)
    folder = tmp_path / "empty"
    with pytest.raises(DiskFullError, match=r"The store .* could not be written: the disk is full, 0 B are free"):
        build(dataset, model, request(folder / "s.zarr", photographs), COMPUTE, skip_bad=False, progress=Silent())
    assert list(folder.iterdir()) == []


def test_a_quota_or_no_more_files_is_said_otherwise(
    tmp_path: Path, photographs: Path, dataset: Dataset, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after(monkeypatch, 3)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 10**12)
    with pytest.raises(DiskFullError, match=r"takes no more, though 1\.0 TB are free.*quota.*dualsd cache pack"):
        build(dataset, model, request(tmp_path / "s.zarr", photographs), COMPUTE, skip_bad=False, progress=Silent())


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, StoreError)]
)
def test_a_row_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StoreError]
) -> None:
    latents = write_small_store(tmp_path / "s.zarr").latents()

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StoreError, match=r"Row 1 of array 'latents' in .* could not be written") as error:
        latents.write((1,), np.zeros(latents.row_shape))
    assert type(error.value) is kind
