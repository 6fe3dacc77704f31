"""What no checksum can see: rows of other images, edited headers, other weights under the same date."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.backbones.noise import Latents, noise
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.care import drop, rows_at_hand
from featstore.pipeline.features import cache_patch_tokens
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest, Work
from featstore.pipeline.recompute import Recomputed, find_dino, recompute
from featstore.progress import Silent
from featstore.prompts.saved import SavedPrompts
from featstore.prompts.text import TextPrompt
from featstore.store.care import verify
from featstore.store.images import LOG, Change
from featstore.store.store import Store, open_store
from tests.conftest import write_photographs
from tests.featstore.pipeline.test_care import learned
from tests.featstore.store.small_store import array_of, contents, flip

WANTED = [("2", 261), ("3", 50)]
EVERY = 6
"""Images."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A model of its own, and a store of every kind of array."""
    folder = tmp_path_factory.mktemp("made")
    photographs = write_photographs(folder / "photographs")
    shutil.copytree(small_model, folder / "model")
    model, dataset = open_model(str(folder / "model")), open_dataset("folder", photographs)
    compute = Compute(torch.device("cpu"), torch.float32, 4)
    request = BuildRequest(folder / "s.zarr", photographs, 64, Latents.SAMPLE, 11, (50, 261), 2)
    build(dataset, model, request, compute, skip_bad=False, progress=Silent())
    store = open_store(request.path)
    require_maps(store, dataset, range(EVERY), WANTED, MapRequest(TextPrompt(), 2, compute, "bitround4"), Silent())
    saved = SavedPrompts(learned(model), TextPrompt("a picture of a {category}"))
    require_maps(store, dataset, range(EVERY), [("2", 261)], MapRequest(saved, 1, compute), Silent())
    found = require_maps(store, dataset, range(EVERY), [("dino", None)], MapRequest(None, 1, compute), Silent())
    dino = find_dino(model, found.others["dino"].network)
    assert dino is not None
    cache_patch_tokens(Work(store, dataset, compute, Silent()), *dino, range(EVERY))
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """A copy of it."""
    shutil.copytree(made / "s.zarr", tmp_path / "s.zarr")
    return open_store(tmp_path / "s.zarr")


@pytest.fixture
def check(store: Store, dataset: Dataset, compute: Compute, made: Path) -> Callable[..., Recomputed]:
    """Make rows anew; by default all, with the run's prompts at hand."""

    def call(count: int | None = None, *, prompts: bool = True) -> Recomputed:
        opened = open_store(store.path)
        runs = [learned(open_model(str(made / "model")))] if prompts else []
        return recompute(opened, dataset, verify(opened, Silent()), runs, count, 0, compute, Silent())

    return call


def others(found: Recomputed) -> dict[str, set[int]]:
    """Image rows that came out otherwise, by array."""
    return {own.path: {bad.row[0] for bad in own.bad} for own in found.arrays if own.bad}


def swap(store: Store, path: str, one: int, other: int) -> None:
    """The files of two images in an array."""
    for mine in sorted((store.path / path).glob(f"c.{one}.*")):
        theirs = mine.with_name(mine.name.replace(f"c.{one}.", f"c.{other}.", 1))
        ours, others = mine.read_bytes(), theirs.read_bytes()
        mine.write_bytes(others)
        theirs.write_bytes(ours)


def edit(store: Store, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = store.path / path / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def test_a_sound_store_comes_out_as_it_is(store: Store, check: Callable[..., Recomputed]) -> None:
    before = contents(store.path)
    found = check()
    assert others(found) == {}
    assert {own.path for own in found.arrays} == set(store.array_paths())
    assert {(own.rows, own.skipped) for own in found.arrays} == {(EVERY, ""), (2 * EVERY, "")}
    assert all(own.relative == 0 for own in found.arrays)  # the same batch size and threads
    assert (found.images, found.unreadable) == ((), 0)
    assert contents(store.path) == before


def test_swapped_rows_of_every_kind_are_found_and_dropped(store: Store, check: Callable[..., Recomputed]) -> None:
    before = contents(store.path)
    paths = [path for path in store.array_paths() if not path.startswith("noisy")]
    for path in paths:
        swap(store, path, 1, 4)
    swap(store, "noisy/t0261", 2, 3)
    found = check()
    # the noise of those whose latents are another's does not fit either
    assert others(found) == {path: {1, 4} for path in paths} | {"noisy/t0050": {1, 4}, "noisy/t0261": {1, 2, 3, 4}}
    opened = open_store(store.path)
    together = found.added_to(verify(opened, Silent()))
    assert not together.sound
    drop(opened, together, rows_at_hand(opened, Silent()), {}, Silent())
    after = contents(store.path)
    assert after.items() <= before.items()  # nothing that is wrong is left
    # of images 0 and 5 all is kept, and so is what was made by DINOv2 of 2 and 3
    assert all(f"/c.{row}." not in name for name in before.keys() - after.keys() for row in (0, 5))


def test_rows_that_are_chosen(store: Store, check: Callable[..., Recomputed]) -> None:
    """Of each array so many, the same images for all but for those that are suspected; all noisy latents."""
    found = check(1)
    rows = {own.path: own.rows for own in found.arrays}
    assert {rows[path] for path in rows if path.startswith(("maps", "cond"))} == {1}
    assert {rows[path] for path in rows if path.startswith("noisy")} == {2 * EVERY}


def test_noise_of_another_timestep(store: Store, check: Callable[..., Recomputed]) -> None:
    shutil.rmtree(store.path / "noisy" / "t0261")
    shutil.copytree(store.path / "noisy" / "t0050", store.path / "noisy" / "t0261")
    assert others(check(2)) == {"noisy/t0261": set(range(EVERY))}


def test_noise_that_another_machine_rounded_otherwise_is_no_other(
    store: Store, check: Callable[..., Recomputed]
) -> None:
    array = array_of(store, "noisy/t0261")
    clean = array_of(store, "latents").read((1,)).astype(np.float32)
    drawn = noise(store.header.seed, store.images.keys[1], 261, 1, clean.shape)
    off = np.float32(1 + 3e-6)  # some 25 times float32's last bit
    row = store.header.schedule.mix(off * clean, off * drawn, 261).astype(np.float16)
    assert (row != array.read((1, 1))).any()
    array.write((1, 1), row)
    assert others(check(1)) == {}


def test_an_edited_seed(store: Store, check: Callable[..., Recomputed]) -> None:
    edit(store, "", lambda metadata: metadata["attributes"].update(seed=12))
    found = others(check(1))
    # no noise fits, and so all latents are looked at
    assert {path for path, rows in found.items() if len(rows) == EVERY} == {"latents", "noisy/t0050", "noisy/t0261"}


def test_a_draw_that_is_called_the_mean(store: Store, check: Callable[..., Recomputed]) -> None:
    edit(store, "", lambda metadata: metadata["attributes"].update(latents="mean"))
    found = {own.path: own for own in check(1).arrays}
    assert len(found["latents"].bad) == found["latents"].rows >= 1


def test_an_edited_noise_schedule(store: Store, check: Callable[..., Recomputed]) -> None:
    edit(store, "", lambda metadata: metadata["attributes"]["scheduler"].update(beta_end=0.013))
    with pytest.raises(StoreError, match=r"says .*0\.013, .* restore the header"):
        check(1)


def test_weights_that_changed_under_their_date(
    store: Store, check: Callable[..., Recomputed], made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_model(str(made / "model"))  # its files are remembered
    file = made / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    whole, status = file.read_bytes(), file.stat()
    try:
        flip(file, len(whole) - 100, 3)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert open_model(str(made / "model")).fingerprint == store.header.model_fingerprint  # nobody sees it
        with pytest.raises(StoreError, match="what lies there now has fingerprint"):
            check(1)
        # and from now on everybody does
        assert open_model(str(made / "model")).fingerprint != store.header.model_fingerprint
    finally:
        file.write_bytes(whole)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_maps_of_prompts_that_are_gone_are_named(check: Callable[..., Recomputed]) -> None:
    skipped = [own for own in check(1, prompts=False).arrays if own.skipped]
    assert [own.rows for own in skipped] == [0]
    assert "no run here has the class prompts" in skipped[0].skipped


def test_a_table_of_images_that_is_not_the_dataset_s(store: Store, check: Callable[..., Recomputed]) -> None:
    table = store.images
    sizes = table.sizes.copy()
    sizes[1] = sizes[1][::-1] + 1
    keys = (*table.keys[:2], "0" * 32, *table.keys[3:])
    categories = ("dog", *table.categories[1:])
    other = replace(table, categories=categories, keys=keys, sizes=sizes)
    (store.path / LOG / "000000.json").write_bytes(Change(tuple(map(other.entry, range(len(other))))).to_json())
    found = check(1)
    assert [(bad.row, bad.image) for bad in found.images] == [((row,), table.ids[row]) for row in range(3)]
    category, size, key = (bad.why for bad in found.images)
    assert category == "the table of images says category 'dog' where the dataset says 'cat'"
    assert size == "the table of images says 47 x 71 where its file has 70 x 46 pixels"
    assert "not the one" in key
    assert others(found)["noisy/t0050"] == {2}  # noise is drawn by the key
