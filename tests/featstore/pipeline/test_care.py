"""What is damaged is dropped with what was made of it, and comes again, bit by bit as it was, by the commands that are
named; where there is none, a sentence says why."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from featstore.backbones.base import Compute, NetworkName
from featstore.backbones.dino import locate_dino
from featstore.backbones.models import Model
from featstore.datasets.records import Dataset
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.care import Dropped, drop, rows_at_hand
from featstore.pipeline.features import cache_patch_tokens
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest, Work
from featstore.progress import Silent
from featstore.prompts.base import LearnedPrompts, Mode, Prompts
from featstore.prompts.saved import SavedPrompts, save_prompts
from featstore.prompts.text import TextPrompt
from featstore.store.care import verify
from featstore.store.keys import PixelExtractor
from featstore.store.pack import pack
from featstore.store.rows import require_rows
from featstore.store.store import Store, open_store
from tests.featstore.store.small_store import array_of, contents, fill, flip, place_of, write_small_store

WANTED = [("2", 261), ("3", 50)]


def learned(model: Model, seed: int = 0) -> LearnedPrompts:
    drawn = torch.Generator().manual_seed(seed)
    config = json.loads((model.location.folder / "text_encoder" / "config.json").read_text())
    width = int(config["hidden_size"])
    tensors = {layer: {"cat": torch.randn(77, width, generator=drawn)} for layer in (2, 3)}
    return LearnedPrompts(Mode.CLASS, (2, 3), (261, 50), 75, model.name, None, {"seed": seed}, tensors)


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


def mend(store: Store, runs: Mapping[Path, LearnedPrompts] | None = None) -> Dropped:
    """Drop what is damaged, and run the commands that are named."""
    opened = open_store(store.path)
    expected = rows_at_hand(opened, Silent())
    dropped = drop(opened, verify(opened, Silent()), expected, runs or {}, Silent())
    assert verify(open_store(store.path), Silent()).sound
    for command in dropped.commands.values():
        made = CliRunner().invoke(app, [*shlex.split(command)[1:], "--batch-size", "4"])
        assert made.exit_code == 0, made.output
    return dropped


def spoil(store: Store, name: str) -> None:
    flip(store.path / name, 11, 3)


def maps_of(store: Store, kind: str) -> str:
    """The folder of the maps of the text, or of the learned prompts."""
    keys = [folder.name for folder in (store.path / "maps").iterdir() if folder.is_dir()]
    (own,) = (key for key in keys if store.attributes(f"maps/{key}")["prompt"]["kind"] == kind)
    return f"maps/{own}"


@pytest.fixture
def run(tmp_path: Path, model: Model) -> Path:
    """A file of the prompts that maps were made with."""
    save_prompts(learned(model), tmp_path / "prompts of a run.safetensors")
    return tmp_path / "prompts of a run.safetensors"


def test_rows_of_every_kind_come_again_as_they_were(store: Store, model: Model, run: Path) -> None:
    before = contents(store.path)
    text = maps_of(store, "text")
    for name in (
        "noisy/t0261/c.1.1.0.0.0",
        "noisy/t0050/c.3.0.0.0.0",
        f"{text}/layer2/t0261/c.1.0.0.0",
        f"{text}/layer3/t0050/c.0.0.0.0",
    ):
        spoil(store, name)
    dropped = mend(store, {Path("other"): learned(model, seed=1), run: learned(model)})
    assert contents(store.path) == before
    assert dropped.notes == ()
    assert dropped.rows == {"noisy/t0050": 1, "noisy/t0261": 1, f"{text}/layer2/t0261": 1, f"{text}/layer3/t0050": 1}


def test_what_was_made_of_damaged_latents_goes_with_them(store: Store, model: Model, run: Path) -> None:
    """Maps of learned prompts, too; their other text for the dogs no command takes."""
    text, saved = maps_of(store, "text"), maps_of(store, "class")
    array = store.require_maps(
        PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32"), "dino", None, (6, 4, 4)
    )
    array.write((5,), np.ones((6, 4, 4)))
    before = contents(store.path)
    spoil(store, "latents/c.5.0.0.0")
    dropped = mend(store, {run: learned(model)})
    maps = [f"{own}/{place}" for own in (text, saved) for place in ("layer2/t0261", "layer3/t0050")]
    assert dropped.rows == {"latents": 1, "noisy/t0050": 2, "noisy/t0261": 2, **dict.fromkeys(maps, 1)}
    assert set(dropped.commands) == {"latents", "noisy/t0050", "noisy/t0261", *maps[:2]}
    gone = {f"{saved}/{place}/c.5.0.0.0" for place in ("layer2/t0261", "layer3/t0050")}
    assert contents(store.path) == {name: data for name, data in before.items() if name not in gone}


def test_rounded_maps_and_of_learned_prompts(
    store: Store, dataset: Dataset, compute: Compute, model: Model, run: Path
) -> None:
    """Rows, and the metadata of an array, which is not taken for one of raw rows."""
    prompts = SavedPrompts(learned(model), TextPrompt())
    made = require_maps(store, dataset, range(6), WANTED, MapRequest(prompts, 2, compute, "bitround4"), Silent())
    before = contents(store.path)
    path = f"maps/{made.extractor.key}/layer2/t0261"
    spoil(store, f"{path}/c.1.0.0.0")
    (store.path / path / "zarr.json").write_text("{")
    dropped = mend(store, {run: learned(model)})
    assert dropped.rows == {path: 1}
    assert dropped.notes == (f"the metadata of {path} were written anew; its rows are kept",)
    after = contents(store.path)
    metadata = f"{path}/zarr.json"
    assert json.loads(after.pop(metadata)) == json.loads(before.pop(metadata))
    assert after == before


def test_metadata_of_patch_maps_take_them_along(store: Store) -> None:
    extractor = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32", "bitround3")
    array = store.require_maps(extractor, "dino", None, (6, 4, 4))
    array.write((1,), np.ones((6, 4, 4)))
    (store.path / array.path / "zarr.json").write_text("{")
    opened = open_store(store.path)
    dropped = drop(opened, verify(opened, Silent()), rows_at_hand(opened, Silent()), {}, Silent())
    (sentence,) = dropped.notes
    assert sentence.startswith(f"{array.path} was removed, its metadata were damaged")
    assert dropped.commands == {
        array.path: "dualsd cache maps --layers dino --dino owner/dino --dino-size 840 --dtype float32 "
        f"--encoding bitround3 --store {store.path}"
    }


def test_a_description_of_patch_maps_that_was_edited_is_taken_away(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "s.zarr")
    extractor = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32")
    array = store.require_maps(extractor, "dino", None, (6, 4, 4))
    fill(array)
    group = f"maps/{extractor.key}"
    store.group[group].attrs["size"] = 518
    found = verify(store, Silent())
    assert [damaged.path for damaged in found.metadata] == [group]
    dropped = drop(store, found, lambda _: None, {}, Silent())
    assert dropped.commands == {}
    assert dropped.notes == (f"the metadata of {group} were written anew; its arrays are kept",)
    opened = open_store(store.path)
    assert verify(opened, Silent()).sound
    assert array_of(opened, array.path).present().all()


def test_a_packed_store_is_mended_too(store: Store) -> None:
    before = contents(store.path)
    pack(store, Silent())
    path = f"{maps_of(store, 'text')}/layer2/t0261"
    for own, row in (("noisy/t0261", (2, 1)), (path, (4,))):
        file, offset, _ = place_of(store, own, row)
        flip(file, offset + 11, 3)
    assert mend(store).rows == {"noisy/t0261": 1, path: 1}
    # what was damaged is in files of its own now, and as it was before it was packed
    now = contents(store.path)
    own = (f"{path}/", "noisy/t0261/")
    assert {name: data for name, data in before.items() if name.startswith(own)}.items() <= now.items()
    assert array_of(store, "noisy/t0050").packed


def test_maps_whose_run_is_gone_are_deleted_and_said(store: Store, model: Model) -> None:
    before = contents(store.path)
    saved = maps_of(store, "class")
    spoil(store, f"{saved}/layer3/t0050/c.2.0.0.0")
    dropped = mend(store, {Path("other"): learned(model, seed=1)})
    (sentence,) = dropped.notes
    assert sentence.startswith(f"1 row(s) of {saved}/layer3/t0050: no run here has the class prompts")
    assert before.keys() - contents(store.path).keys() == {f"{saved}/layer3/t0050/c.2.0.0.0"}


def test_patch_tokens_and_hits_of_a_grid(store: Store, dataset: Dataset, compute: Compute, model: Model) -> None:
    name, folder = locate_dino(None, model.location)
    cache_patch_tokens(Work(store, dataset, compute, Silent()), name, folder, range(6))
    fill(require_rows(store.group, "grids/0123456789abcdef", (6,), (2, 2, 2, 1)))
    spoil(store, "cond/dinov2/c.3.0.0")
    spoil(store, "grids/0123456789abcdef/c.2.0.0.0.0")
    opened = open_store(store.path)
    dropped = drop(opened, verify(opened, Silent()), rows_at_hand(opened, Silent()), {}, Silent())
    assert dropped.commands == {"cond/dinov2": f"dualsd train --mode cpm --store {store.path}"}
    assert ["grid" in sentence for sentence in dropped.notes] == [True]
    assert not array_of(store, "cond/dinov2").present()[3]


def test_metadata_are_written_anew_and_rows_kept(store: Store) -> None:
    before = contents(store.path)
    text = maps_of(store, "text")
    for path in ("latents", "noisy/t0261", f"{text}/layer2/t0261", "maps"):
        (store.path / path / "zarr.json").write_text("{")
    spoil(store, "noisy/t0261/c.1.1.0.0.0")  # seen only once its array is found again
    dropped = mend(store)
    assert contents(store.path) == before
    assert dropped.rows == {"noisy/t0261": 1}
    assert "the metadata of maps were written anew; its arrays are kept" in dropped.notes
    assert len(dropped.notes) == 4


def test_a_description_that_is_lost_is_written_by_the_next_run(
    store: Store, dataset: Dataset, compute: Compute
) -> None:
    before = contents(store.path)
    text = maps_of(store, "text")
    (store.path / text / "zarr.json").write_text("{")
    spoil(store, f"{text}/layer2/t0261/c.1.0.0.0")
    dropped = mend(store)
    assert dropped.commands == {}
    assert any("what they were made with is not known" in sentence for sentence in dropped.notes)
    require_maps(open_store(store.path), dataset, range(6), WANTED, MapRequest(TextPrompt(), 2, compute), Silent())
    assert contents(store.path) == before
