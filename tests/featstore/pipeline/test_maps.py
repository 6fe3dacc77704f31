"""Cached maps against the whole UNet run by hand, and what is computed when."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numcodecs import BitRound
from PIL import Image

from featstore.backbones import diffusion_networks as unet_module
from featstore.backbones.base import Compute
from featstore.backbones.models import Model
from featstore.datasets.records import Dataset
from featstore.errors import ModelError, StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.match import Featurizer
from featstore.pipeline.needed import MadeMaps, estimate_maps, require_maps
from featstore.pipeline.plan import MapRequest, extractor_of
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.store import Store, open_store
from matcher.configuration import LayerSpec

PROMPT = TextPrompt()
WANTED = [("2", 261), ("3", 50), ("1", 50)]


@pytest.fixture
def store(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> Store:
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    return open_store(request_.path)


def make(store: Store, dataset: Dataset, compute: Compute, ensemble: int = 2) -> MadeMaps:
    rows = range(len(store.images))
    return require_maps(store, dataset, rows, WANTED, MapRequest(PROMPT, ensemble, compute), Silent())


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("c.*")) if file.is_file()}


def whole_unet_maps(store: Store, model: Model, row: int, timestep: int, draw: int) -> dict[int, torch.Tensor]:
    """What hooks on diffusers' own pipeline see: nothing of dualsd but the noisy latents."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        model.location.folder, safety_checker=None, dtype=torch.float32, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, _ = pipeline.encode_prompt(f"a photo of a {store.images.categories[row]}", "cpu", 1, False)
    noisy = store.noisy(timestep)
    assert noisy is not None
    seen: dict[int, torch.Tensor] = {}
    for index, block in enumerate(pipeline.unet.up_blocks):
        block.register_forward_hook(lambda _b, _i, out, index=index: seen.__setitem__(index + 1, out[0]))
    with torch.no_grad():
        pipeline.unet(torch.from_numpy(noisy.read((row, draw)))[None].float(), timestep, prompt)
    return seen


def test_maps_are_the_whole_unets_averaged_over_draws(
    store: Store, dataset: Dataset, model: Model, compute: Compute
) -> None:
    made = make(store, dataset, compute)
    row = 4
    for layer, timestep in WANTED:
        draws = [whole_unet_maps(store, model, row, timestep, draw)[int(layer)] for draw in (0, 1)]
        expected = torch.stack(draws).mean(dim=0).numpy()
        found = StoredMaps(store, made.extractor).load(store.images.ids[row], LayerSpec(layer, timestep, 1))
        np.testing.assert_allclose(found.float().numpy(), expected, rtol=2e-3, atol=2e-3)


def test_rounded_maps_are_made_of_what_raw_ones_hold_and_do_not_stand_in_for_them(
    store: Store, dataset: Dataset, compute: Compute
) -> None:
    rows = range(len(store.images))
    small = require_maps(store, dataset, rows, WANTED, MapRequest(PROMPT, 2, compute, "bitround4"), Silent())
    large = make(store, dataset, compute)
    assert (small.images_times_timesteps, large.images_times_timesteps) == (12, 12)
    for layer, timestep in WANTED:
        spec = LayerSpec(layer, timestep)
        for image in store.images.ids:
            exact = StoredMaps(store, large.extractor).load(image, spec)
            found = StoredMaps(store, small.extractor).load(image, spec)
            assert (exact.dtype, found.dtype) == (torch.float16, torch.float16)
            expected = BitRound(4).encode(exact.numpy()).view(np.float16)
            np.testing.assert_array_equal(found.numpy(), expected)
            assert not torch.equal(found, exact)


def test_what_rounded_maps_would_take(store: Store, dataset: Dataset, compute: Compute) -> None:
    """At most what is said beforehand is written: how far they shrink is not known. Latents and noise are there."""
    rows = range(len(store.images))
    require_maps(store, dataset, rows, WANTED, MapRequest(PROMPT, 2, compute), Silent())
    extractor = extractor_of(store, PROMPT, 2, compute, "bitround4")
    cost = estimate_maps(store, rows, WANTED, extractor, PROMPT)
    require_maps(store, dataset, rows, WANTED, MapRequest(PROMPT, 2, compute, "bitround4"), Silent())
    files = list((store.path / "maps" / extractor.key).rglob("c.*"))
    assert (cost.encode, cost.files_to_write) == (0, len(files))
    assert cost.bytes_to_write > sum(file.stat().st_size for file in files)


def test_one_pass_serves_every_layer_of_a_timestep(
    store: Store, dataset: Dataset, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, tuple[int, ...]]] = []
    plain = unet_module.CutUNet.tap

    def counting(self: unet_module.CutUNet, *given: Any) -> dict[int, torch.Tensor]:
        _noisy, timestep, _prompts, layers, _added = given
        passes.append((timestep, tuple(layers)))
        return plain(self, *given)

    monkeypatch.setattr(unet_module.CutUNet, "tap", counting)
    made = make(store, dataset, compute)
    # 6 images, 2 to a pass of 4 noisy latents, at each of two timesteps
    assert passes == [(50, ("1", "3"))] * 3 + [(261, ("2",))] * 3
    assert (made.encoded, made.images_times_timesteps) == (0, 12)
    again = make(store, dataset, compute)
    assert len(passes) == 6
    assert again.images_times_timesteps == 0


def test_nothing_is_loaded_where_nothing_is_missing(
    store: Store, dataset: Dataset, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store, dataset, compute)

    def fail(*_: object) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr("featstore.pipeline.needed.open_model", fail)
    make(store, dataset, compute)


def test_rows_do_not_depend_on_which_were_missing_together(store: Store, dataset: Dataset, compute: Compute) -> None:
    made = make(store, dataset, compute)
    before = contents(store.path)
    for layer, timestep, rows in (("2", 261, (0, 3, 4)), ("1", 50, (5,))):
        array = store.maps(made.extractor, layer, timestep)
        assert array is not None
        for row in rows:
            array.delete_rows([(row,)])
    made = make(store, dataset, compute)
    assert made.images_times_timesteps == 4
    assert contents(store.path) == before


def test_what_lacks_is_made_all_the_way_from_the_image(
    store: Store, dataset: Dataset, compute: Compute, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the noise of a draw that is not kept, and of one that never was; neither is kept then."""
    whole = make(store, dataset, compute, ensemble=3)
    before = contents(store.path)
    store.latents().delete_rows([(2,)])
    noisy = store.noisy(261)
    assert noisy is not None
    noisy.delete_rows([(2, 0)])
    for path, array in store.arrays().items():
        if path.startswith("maps/"):
            array.delete_rows([(2,)])
    made = make(store, dataset, compute, ensemble=3)
    assert (whole.encoded, made.encoded, made.images_times_timesteps) == (0, 1, 2)
    lacking = {str(store.path / "noisy" / "t0261" / "c.2.0.0.0.0")}
    assert contents(store.path) == {name: data for name, data in before.items() if name not in lacking}


def test_an_image_that_changed_since_the_build_is_refused(
    store: Store, dataset: Dataset, compute: Compute, photographs: Path
) -> None:
    store.latents().delete_rows([(0,)])
    Image.new("RGB", (20, 20)).save(photographs / "cat" / "0.png")
    with pytest.raises(StoreError, match=r"cat/0.*changed"):
        make(store, dataset, compute)


def test_an_unreadable_image_is_reported_and_the_others_made(
    photographs: Path, dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute
) -> None:
    (photographs / "cat" / "2.png").write_bytes(b"\x89PNG")
    build(dataset, model, request_, compute, skip_bad=True, progress=Silent())
    store = open_store(request_.path)
    made = make(store, dataset, compute)
    assert [error.image_id for error in made.bad] == ["cat/2"]
    array = store.maps(made.extractor, 2, 261)
    assert array is not None
    assert array.present().tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("wanted", [("5", 50), ("0", 50), ("2", 1000)])
def test_impossible_maps(store: Store, dataset: Dataset, compute: Compute, wanted: tuple[str, int]) -> None:
    with pytest.raises(ModelError):
        require_maps(store, dataset, [0], [wanted], MapRequest(PROMPT, 1, compute), Silent())


def test_another_model_in_its_place_is_refused(
    store: Store, dataset: Dataset, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from featstore.pipeline import needed

    plain = needed.open_model
    monkeypatch.setattr(needed, "open_model", lambda *names: replace(plain(*names), fingerprint="00" * 16))
    with pytest.raises(StoreError, match="fingerprint 00000000"):
        make(store, dataset, compute)


def test_photographs_in_memory_are_the_stores_maps(
    store: Store, dataset: Dataset, model: Model, compute: Compute, photographs: Path
) -> None:
    made = make(store, dataset, compute)
    featurizer = Featurizer(model, device="cpu", dtype="float32", size=64, seed=store.header.seed, batch_size=4)
    layers, timesteps = zip(*WANTED, strict=True)
    maps = featurizer(photographs / "dog" / "1.png", "a photo of a dog", layers, timesteps, ensemble=2).maps
    for layer, timestep in WANTED:
        stored = StoredMaps(store, made.extractor).load("dog/1", LayerSpec(layer, timestep, 1))
        # the store's path rounds latents, noisy latents and maps to float16 on the way
        np.testing.assert_allclose(maps[layer, timestep].numpy(), stored.float().numpy(), rtol=2e-2, atol=2e-2)
