"""What is damaged is made anew, bit by bit as it was; what cannot be is deleted with a sentence."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featstore.backbones.base import Compute, NetworkName
from featstore.backbones.dino import locate_dino
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.records import Dataset
from featstore.errors import StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.latents import cache_patch_tokens
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest
from featstore.pipeline.repair import Repaired, repair
from featstore.progress import Silent
from featstore.prompts.base import LearnedPrompts, Mode, Prompts
from featstore.prompts.saved import SavedPrompts
from featstore.prompts.text import TextPrompt
from featstore.store.keys import PixelExtractor, Stored
from featstore.store.pack import pack
from featstore.store.rows import require_rows
from featstore.store.shard_file import ShardFiles
from featstore.store.store import Store, open_store
from featstore.store.verify import verify
from tests.featstore.store.small_store import array_of, contents, fill, flip

WANTED = [("2", 261), ("3", 50)]


def learned(model: Model, seed: int = 0) -> LearnedPrompts:
    drawn = torch.Generator().manual_seed(seed)
    config = json.loads((model.location.folder / "text_encoder" / "config.json").read_text())
    width = int(config["hidden_size"])
    tensors = {layer: {"cat": torch.randn(77, width, generator=drawn)} for layer in (2, 3)}
    return LearnedPrompts(
        Mode.CLASS, (2, 3), (261, 50), 75, tensors, model.location.id, model.fingerprint, None, {"seed": seed}
    )


@pytest.fixture
def prompts(model: Model) -> SavedPrompts:
    """Learned for cats; dogs have the text."""
    return SavedPrompts(learned(model), TextPrompt("a picture of a {category}"))


@pytest.fixture
def store(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute, prompts: SavedPrompts) -> Store:
    """Latents, two draws of noise, maps of a text and of learned prompts."""
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    store = open_store(request_.path)
    kinds: tuple[Prompts, ...] = (TextPrompt(), prompts)
    for kind in kinds:
        require_maps(store, dataset, range(6), WANTED, MapRequest(kind, 2, compute), Silent())
    return store


def mend(store: Store, dataset: Dataset, compute: Compute, runs: Sequence[LearnedPrompts] = ()) -> Repaired:
    opened = open_store(store.path)
    found = verify(opened, Silent())
    outcome = repair(opened, dataset, found, runs, compute, Silent())
    assert verify(open_store(store.path), Silent()).sound
    return outcome


def spoil(store: Store, name: str) -> None:
    flip(store.path / name, 11, 3)


def maps_of(store: Store, kind: str) -> str:
    """The folder of the maps of the text, or of the learned prompts."""
    keys = [folder.name for folder in (store.path / "maps").iterdir() if folder.is_dir()]
    (own,) = (key for key in keys if store.attributes(f"maps/{key}")["prompt"]["kind"] == kind)
    return f"maps/{own}"


def test_rows_of_every_kind_come_out_as_they_were(
    store: Store, dataset: Dataset, compute: Compute, model: Model
) -> None:
    before = contents(store.path)
    text, saved = maps_of(store, "text"), maps_of(store, "class")
    for name in (
        "latents/c.1.0.0.0",
        "latents/c.5.0.0.0",
        "noisy/t0261/c.1.1.0.0.0",
        "noisy/t0050/c.3.0.0.0.0",
        f"{text}/layer2/t0261/c.1.0.0.0",
        f"{text}/layer3/t0050/c.0.0.0.0",
        f"{saved}/layer3/t0050/c.2.0.0.0",
        f"{saved}/layer3/t0050/c.4.0.0.0",
    ):
        spoil(store, name)
    outcome = mend(store, dataset, compute, [learned(model, seed=1), learned(model)])
    assert contents(store.path) == before
    assert outcome.given_up == ()
    assert outcome.made == {
        "latents": 2,
        "noisy/t0050": 1,
        "noisy/t0261": 1,
        f"{text}/layer2/t0261": 1,
        f"{text}/layer3/t0050": 1,
        f"{saved}/layer3/t0050": 2,
    }


def test_maps_of_8_bits_come_out_as_they_were(store: Store, dataset: Dataset, compute: Compute) -> None:
    """Rows, and the metadata of an array, which is not taken for one of float16."""
    made = require_maps(store, dataset, range(6), WANTED, MapRequest(TextPrompt(), 2, compute, Stored.INT8), Silent())
    before = contents(store.path)
    path = f"maps/{made.extractor.key}/layer2/t0261"
    spoil(store, f"{path}/c.1.0.0")
    (store.path / path / "zarr.json").write_text("{")
    outcome = mend(store, dataset, compute)
    assert (outcome.given_up, outcome.made) == ((), {path: 1})
    after = contents(store.path)
    metadata = f"{path}/zarr.json"
    assert json.loads(after.pop(metadata)) == json.loads(before.pop(metadata))
    assert after == before


def test_metadata_of_patch_maps_take_them_along(store: Store, dataset: Dataset, compute: Compute) -> None:
    extractor = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32", Stored.INT8)
    array = store.require_maps(extractor, "dino", None, (6, 4, 4))
    array.write((1,), np.ones((6, 4, 4)))
    (store.path / array.path / "zarr.json").write_text("{")
    (sentence,) = mend(store, dataset, compute).given_up
    assert sentence.startswith(f"{array.path} was removed, its metadata were damaged")


def test_a_packed_store_is_mended_too(store: Store, dataset: Dataset, compute: Compute) -> None:
    before = contents(store.path)
    pack(store, Silent())
    for path, row in (("latents", (2,)), (f"{maps_of(store, 'text')}/layer2/t0261", (4,))):
        files = array_of(store, path).files
        assert isinstance(files, ShardFiles)
        index = files.index((0,))
        assert index is not None
        flip(files.file((0,)), int(index[(*row, 0)]) + 11, 3)
    outcome = mend(store, dataset, compute)
    assert list(outcome.made.values()) == [1, 1]
    # what was damaged is in files of its own now, and as it was before it was packed
    now = contents(store.path)
    assert {name: data for name, data in before.items() if name.startswith("latents/")}.items() <= now.items()
    assert array_of(store, "noisy/t0050").packed


def test_maps_whose_run_is_gone_are_deleted_and_said(
    store: Store, dataset: Dataset, compute: Compute, model: Model
) -> None:
    before = contents(store.path)
    saved = maps_of(store, "class")
    spoil(store, f"{saved}/layer3/t0050/c.2.0.0.0")
    outcome = mend(store, dataset, compute, [learned(model, seed=1)])
    assert outcome.made == {}
    (sentence,) = outcome.given_up
    assert sentence.startswith(
        f"1 damaged row(s) of {saved}/layer3/t0050 were deleted: no run here has the class prompts"
    )
    assert before.keys() - contents(store.path).keys() == {f"{saved}/layer3/t0050/c.2.0.0.0"}


def test_patch_tokens_and_hits_of_a_grid(store: Store, dataset: Dataset, compute: Compute, model: Model) -> None:
    name, folder = locate_dino(None, model.location)
    cache_patch_tokens(store, dataset, name, folder, range(6), compute, Silent())
    fill(require_rows(store.group, "grids/0123456789abcdef", (6,), (2, 2, 2, 1), "float16"))
    before = contents(store.path)
    spoil(store, "cond/dinov2/c.3.0.0")
    spoil(store, "grids/0123456789abcdef/c.2.0.0.0.0")
    outcome = mend(store, dataset, compute)
    assert outcome.made == {"cond/dinov2": 1}
    assert ["grid" in sentence for sentence in outcome.given_up] == [True]
    del before["grids/0123456789abcdef/c.2.0.0.0.0"]
    assert contents(store.path) == before


def test_patch_tokens_of_a_dino_that_is_gone(store: Store, dataset: Dataset, compute: Compute) -> None:
    fill(store.require_patch_tokens(NetworkName("nowhere", "cd" * 16), (5, 3)))
    spoil(store, "cond/dinov2/c.3.0.0")
    outcome = mend(store, dataset, compute)
    assert outcome.made == {}
    assert "DINOv2" in outcome.given_up[0]
    assert not array_of(store, "cond/dinov2").present()[3]


def test_metadata_are_written_anew_and_rows_kept(store: Store, dataset: Dataset, compute: Compute) -> None:
    before = contents(store.path)
    text = maps_of(store, "text")
    for path in ("latents", "noisy/t0261", f"{text}/layer2/t0261", "maps"):
        (store.path / path / "zarr.json").write_text("{")
    spoil(store, "noisy/t0261/c.1.1.0.0.0")  # seen only once its array is found again
    outcome = mend(store, dataset, compute)
    assert contents(store.path) == before
    assert outcome.made == {"noisy/t0261": 1}
    assert outcome.given_up == ("the metadata of maps were written anew; its arrays are kept",)


def test_a_description_that_is_lost_is_written_by_the_next_run(
    store: Store, dataset: Dataset, compute: Compute
) -> None:
    before = contents(store.path)
    text = maps_of(store, "text")
    (store.path / text / "zarr.json").write_text("{")
    spoil(store, f"{text}/layer2/t0261/c.1.0.0.0")
    outcome = mend(store, dataset, compute)
    assert outcome.made == {}
    assert any("unknown prompts" in sentence for sentence in outcome.given_up)
    require_maps(open_store(store.path), dataset, range(6), WANTED, MapRequest(TextPrompt(), 2, compute), Silent())
    assert contents(store.path) == before


def test_an_image_that_cannot_be_read_any_more_is_reported(
    store: Store, dataset: Dataset, compute: Compute, photographs: Path
) -> None:
    spoil(store, "latents/c.1.0.0.0")
    spoil(store, "noisy/t0050/c.1.1.0.0.0")
    spoil(store, "noisy/t0050/c.2.1.0.0.0")
    (photographs / "cat" / "1.png").unlink()
    outcome = mend(store, dataset, compute)
    assert [error.image_id for error in outcome.bad] == ["cat/1"]
    assert outcome.made == {"latents": 0, "noisy/t0050": 1}
    assert not store.latents().present()[1]


def test_an_image_that_changed_is_refused(store: Store, dataset: Dataset, compute: Compute, photographs: Path) -> None:
    spoil(store, "latents/c.1.0.0.0")
    Image.new("RGB", (20, 20)).save(photographs / "cat" / "1.png")
    with pytest.raises(StoreError, match=r"cat/1.*changed since"):
        mend(store, dataset, compute)
