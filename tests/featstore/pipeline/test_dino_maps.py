"""DINOv2's patch maps against transformers called by hand, and what is computed when."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from featstore.backbones.base import Asked, Compute
from featstore.backbones.models import Model
from featstore.datasets.records import AnnotatedPairs, Dataset, ImageRecord, ThetaRule
from featstore.errors import ModelError, StoreError
from featstore.pipeline.build import BuildRequest, header_of, survey_images
from featstore.pipeline.needed import FoundBackbone, MadeMaps, estimate_maps, find_backbones, require_maps
from featstore.pipeline.plan import MapRequest, extractor_of, missing_maps
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.images import Change, table_of
from featstore.store.rows import RowArray
from featstore.store.store import Store, create_store, update_images
from matcher.configuration import LayerSpec

USUAL = Asked(None, None)
SMALL = Asked(None, 56)
DINO = LayerSpec("dino", None)


def refreshed(store: Store, dataset: Dataset) -> Store:
    """As `cache build` writes down what the data set has now."""
    return update_images(store, survey_images(dataset, Silent()).entries(store.images), Silent())


@dataclass(frozen=True)
class WithMirrored:
    """A dataset, and every image of it mirrored."""

    plain: Dataset
    name: str = "folder"
    splits: tuple[str, ...] = ("test",)
    theta_rule: ThetaRule = ThetaRule.IMAGE

    def images(self) -> tuple[ImageRecord, ...]:
        return tuple(
            twin
            for image in self.plain.images()
            for twin in (image, replace(image, id=f"{image.id}~mirrored", mirrored=True))
        )

    def pairs(self, split: str) -> AnnotatedPairs:
        return self.plain.pairs(split)

    def members(self, split: str) -> frozenset[str]:
        return self.plain.members(split)

    def notes(self, split: str | None) -> tuple[str, ...]:
        return self.plain.notes(split)

    def read(self, image: ImageRecord) -> bytes:
        return self.plain.read(image)


def store_of(dataset: Dataset, model: Model, request: BuildRequest) -> Store:
    """A store without latents: patch maps need none."""
    table = table_of([Change(survey_images(dataset, Silent()).entries())])
    return create_store(request.path, header_of(dataset, model, request), table, (4, 16, 16))


@pytest.fixture
def store(dataset: Dataset, model: Model, request_: BuildRequest) -> Store:
    return store_of(dataset, model, request_)


def make(store: Store, dataset: Dataset, compute: Compute, asked: Asked = SMALL) -> MadeMaps:
    rows, wanted = [*store.images.rows.values()], [("dino", None)]
    return require_maps(store, dataset, rows, wanted, MapRequest(None, 1, compute, asked={"dino": asked}), Silent())


def find(store: Store, asked: Asked, compute: Compute) -> FoundBackbone:
    return find_backbones(store, ["dino"], MapRequest(None, 1, compute, asked={"dino": asked}))["dino"]


def array_of(store: Store, made: MadeMaps) -> RowArray:
    array = store.maps(made.others["dino"], "dino", None)
    assert array is not None
    return array


def lacking(store: Store, made: MadeMaps) -> set[int]:
    return {*missing_maps(store, made.others["dino"], [*store.images.rows.values()], [("dino", None)])}


def objects(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.glob("maps/*/dino/*/c.*"))}


def by_hand(folder: Path, picture: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """(C, side, side) of a picture (h, w, 3), with nothing of dualsd."""
    resized = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((np.asarray(resized) / 255 - mean) / deviation).astype(np.float32)
    network = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = network(torch.from_numpy(pixels).permute(2, 0, 1)[None]).last_hidden_state[0]
    side = size // 14
    assert hidden.shape == (1 + side * side, 96)
    return hidden[1:].numpy().reshape(side, side, 96).transpose(2, 0, 1)


@pytest.mark.parametrize(("asked", "size"), [(USUAL, 224), (SMALL, 56), (Asked(None, 280), 280)])
def test_maps_are_transformers_own_also_of_a_mirrored_image(
    dataset: Dataset,
    model: Model,
    request_: BuildRequest,
    compute: Compute,
    photographs: Path,
    asked: Asked,
    size: int,
) -> None:
    """The tiny DINOv2's own grid of 16 patches, and position embeddings interpolated to 4 and to 20."""
    both = WithMirrored(dataset)
    store = store_of(both, model, request_)
    made = make(store, both, compute, asked)
    assert [shape.map for shape in made.shapes] == [(96, size // 14, size // 14)]
    assert (made.passes, made.bad, made.others["dino"].size) == ({"dino": 12}, (), size)
    maps = StoredMaps(store, None, made.others)
    picture = np.asarray(Image.open(photographs / "dog" / "1.png").convert("RGB"))
    folder = model.location.folder / "dinov2"
    for image, seen in (("dog/1", picture), ("dog/1~mirrored", np.ascontiguousarray(picture[:, ::-1]))):
        found = maps.load(image, DINO).float().numpy()
        np.testing.assert_allclose(found, by_hand(folder, seen, size), rtol=2e-3, atol=2e-3)
    plain, mirrored = (maps.load(image, DINO).float() for image in ("dog/1", "dog/1~mirrored"))
    assert (plain - mirrored).abs().max() > 0.1  # or the second comparison would show nothing


def test_dinov2_gets_imagenets_statistics(
    store: Store, dataset: Dataset, compute: Compute, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an image of one colour: 128/255 is 0.016961 above the mean of red, 0.074063 deviations, and so on."""
    Image.new("RGB", (50, 30), (128, 0, 255)).save(photographs / "cat" / "0.png")
    store = refreshed(store, dataset)
    seen: list[torch.Tensor] = []
    plain = Dinov2Model.forward

    def watching(self: Any, pixel_values: torch.Tensor, **others: Any) -> Any:
        seen.append(pixel_values)
        return plain(self, pixel_values, **others)

    monkeypatch.setattr(Dinov2Model, "forward", watching)
    rows, asked = [store.images.row("cat/0")], {"dino": SMALL}
    require_maps(store, dataset, rows, [("dino", None)], MapRequest(None, 1, compute, asked=asked), Silent())
    (pixels,) = seen
    assert pixels.shape == (4, 3, 56, 56)  # the batch is filled up
    expected = torch.tensor([0.074063, -2.035714, 2.64])
    assert torch.allclose(pixels[0], expected[:, None, None].expand(3, 56, 56), atol=1e-5)


def test_what_is_there_is_left_alone_and_what_lacks_is_the_same_again(
    store: Store, dataset: Dataset, compute: Compute
) -> None:
    made = make(store, dataset, compute)
    assert made.passes["dino"] == 6
    before = objects(store.path)
    assert len(before) == 6
    assert make(store, dataset, compute).passes["dino"] == 0
    for row in (1, 4):
        array_of(store, made).delete_rows([(row,)])
    assert lacking(store, made) == {1, 4}
    found, prompt = {"dino": find(store, SMALL, compute)}, TextPrompt()
    cost = estimate_maps(store, range(6), [("dino", None)], extractor_of(store, prompt, 1, compute), prompt, found)
    rows = [content for name, content in before.items() if name.endswith(("c.1.0.0.0", "c.4.0.0.0"))]
    assert (cost.others, cost.bytes_to_write) == ({"dino": 2}, sum(map(len, rows)))
    assert make(store, dataset, compute).passes["dino"] == 2
    assert objects(store.path) == before


def test_another_size_lies_beside(store: Store, dataset: Dataset, compute: Compute) -> None:
    small, large = make(store, dataset, compute), make(store, dataset, compute, Asked(None, 70))
    assert small.others["dino"].key != large.others["dino"].key
    assert set(store.pixel_extractors("dino")) == {small.others["dino"], large.others["dino"]}


def test_an_image_that_changed_is_refused_and_after_a_build_made_again(
    store: Store, dataset: Dataset, compute: Compute, photographs: Path
) -> None:
    made = make(store, dataset, compute)
    Image.new("RGB", (20, 20), (9, 99, 9)).save(photographs / "cat" / "1.png")
    array_of(store, made).delete_rows([(1,)])
    before = objects(store.path)
    with pytest.raises(StoreError, match=r"cat/1.*changed"):
        make(store, dataset, compute)
    store = refreshed(store, dataset)
    assert store.images.row("cat/1") == len(dataset.images())
    assert make(store, dataset, compute).passes["dino"] == 1
    after = objects(store.path)
    assert before.items() <= after.items()
    assert [name for name in after if name not in before] == [
        f"maps/{made.others['dino'].key}/dino/patches/c.{len(dataset.images())}.0.0.0"
    ]


def test_a_stale_image_loses_its_patch_map(store: Store, dataset: Dataset, compute: Compute, photographs: Path) -> None:
    made = make(store, dataset, compute)
    Image.new("RGB", (20, 20)).save(photographs / "dog" / "2.png")
    store = refreshed(store, dataset)
    assert lacking(store, made) == {store.images.row("dog/2")}


def test_an_unreadable_image_is_reported_and_the_others_made(
    photographs: Path, dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute
) -> None:
    (photographs / "cat" / "2.png").write_bytes(b"\x89PNG")
    store = store_of(dataset, model, request_)
    made = make(store, dataset, compute)
    assert ([error.image_id for error in made.bad], made.passes["dino"]) == (["cat/2"], 5)
    assert lacking(store, made) == {2}


def test_a_store_that_has_all_needs_no_dinov2(
    dataset: Dataset, model: Model, small_model: Path, request_: BuildRequest, compute: Compute, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "own dino"
    shutil.copytree(small_model / "dinov2", elsewhere)
    store = store_of(dataset, model, request_)
    asked = Asked(str(elsewhere), 56)
    made = make(store, dataset, compute, asked)
    make(store, dataset, compute, Asked(str(elsewhere), 70))
    shutil.rmtree(elsewhere)
    assert make(store, dataset, compute, asked) == replace(made, shapes=(), passes={"dino": 0})
    with pytest.raises(ModelError):  # of 56 and 70 pixels, which?
        make(store, dataset, compute, Asked(str(elsewhere), None))
    with pytest.raises(ModelError):
        make(store, dataset, compute, Asked(str(elsewhere), 84))
    with pytest.raises(ModelError):
        make(store, dataset, replace(compute, dtype=torch.bfloat16), asked)
    array_of(store, made).delete_rows([(0,)])
    with pytest.raises(ModelError, match="neither a folder nor a hub name"):
        make(store, dataset, compute, asked)


@pytest.mark.parametrize(("size", "near"), [(600, 602), (57, 56), (5, 14), (0, 14), (-14, 14)])
def test_sizes_that_patches_do_not_fill(store: Store, dataset: Dataset, compute: Compute, size: int, near: int) -> None:
    with pytest.raises(ModelError, match=rf"{size} pixels a side.*patches of 14: .*--dino-size {near}\."):
        make(store, dataset, compute, Asked(None, size))


def test_a_released_dinov2_is_taken_at_60_patches(
    store: Store, compute: Compute, small_model: Path, tmp_path: Path
) -> None:
    """facebook/dinov2-base's configuration says 518 pixels, 37 patches."""
    folder = tmp_path / "base"
    shutil.copytree(small_model / "dinov2", folder)
    config = Dinov2Config(image_size=518, patch_size=14, hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    Dinov2Model(config).half().save_pretrained(folder)
    found = find(store, Asked(str(folder), None), compute)
    assert (found.extractor.size, found.shapes["dino"].map) == (840, (768, 60, 60))
