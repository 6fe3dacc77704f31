"""DINOs of every kind, small and random, written by transformers: their maps against transformers' own backbones, and
what is taken out of descriptors against the formula."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextBackbone,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from featstore.backbones import dinov3
from featstore.backbones.base import Asked, Backbone, Compute
from featstore.backbones.dino import DINOV2, Generation, locate_named, open_dino
from featstore.backbones.dinov3 import DINOV3
from featstore.backbones.locate import locate
from featstore.backbones.registry import family_of, shapes_of
from featstore.errors import ModelError

Shapes = Mapping[str, Any]
VIT: Shapes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
COMPUTE = Compute(torch.device("cpu"), torch.float32, 2)


def written(folder: Path, network: Any, preprocessor: Path | None = None) -> Path:
    network.eval().save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_bytes(preprocessor.read_bytes())
    return folder


def registers(folder: Path, small_model: Path) -> tuple[Path, Generation, Any]:
    config = Dinov2WithRegistersConfig(image_size=56, patch_size=14, num_register_tokens=4, **VIT)
    written(folder, Dinov2WithRegistersModel(config), small_model / "dinov2" / "preprocessor_config.json")
    return folder, DINOV2, Dinov2WithRegistersBackbone


def transformer(folder: Path, _: Path) -> tuple[Path, Generation, Any]:
    config = DINOv3ViTConfig(image_size=64, num_register_tokens=4, layerscale_value=0.5, **VIT)
    return written(folder, randomised(DINOv3ViTModel(config))), DINOV3, DINOv3ViTBackbone


def convolutions(folder: Path, _: Path) -> tuple[Path, Generation, Any]:
    config = DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_scale_init_value=0.5)
    return written(folder, DINOv3ConvNextModel(config)), DINOV3, DINOv3ConvNextBackbone


def randomised(network: Any) -> Any:
    """Weights so large that attention to the tokens before the patches, which have no position, tells positions."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5)
    return network


Make = Callable[[Path, Path], tuple[Path, Generation, Any]]


@pytest.fixture(params=[registers, transformer, convolutions], ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, tmp_path: Path, small_model: Path) -> tuple[Backbone, Any, Path]:
    """A backbone of ours, transformers' class for it, and the folder."""
    torch.manual_seed(0)
    make: Make = request.param
    folder, generation, theirs = make(tmp_path / "network", small_model)
    name, found = locate_named(str(folder), generation)
    assert name.id == str(folder)
    return open_dino(generation, Asked(), name, found), theirs, folder


def pictures(side: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def theirs_of(kind: Any, folder: Path, seen: Tensor) -> dict[str, Tensor]:
    """transformers' backbone, of pictures with ImageNet's statistics: every stage's map, but its stem's."""
    names = [name for name in kind.from_pretrained(folder).config.stage_names if name != "stem"]
    network = kind.from_pretrained(folder, out_features=names).eval()
    mean, deviation = (torch.tensor(own)[:, None, None] for own in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        maps = network(((seen + 1) / 2 - mean) / deviation).feature_maps
    return dict(zip(names, maps, strict=True))


@pytest.mark.parametrize("cells", [4, 6])
def test_blocks_are_those_of_transformers_own_backbone(made: tuple[Backbone, Any, Path], cells: int) -> None:
    """Also at a size that it was not trained on. A ConvNeXt's last stage is normalised as its own model does."""
    backbone, kind, folder = made
    stem = "dino" if kind is Dinov2WithRegistersBackbone else "dinov3"
    largest = max(shape.stride for shape in backbone.layers(224).values())
    seen = pictures(cells * largest)
    expected = theirs_of(kind, folder, seen)
    shapes = backbone.layers(seen.shape[-1])
    assert [*shapes] == [stem, *(f"{stem}:{index}" for index in range(1, len(expected) + 1))]
    networks = backbone.load(COMPUTE, [*shapes])
    with torch.no_grad():
        found = networks.features(seen, None, None, [*shapes])
    for index, (name, own) in enumerate(expected.items(), start=1):
        if kind is DINOv3ConvNextBackbone and index == len(expected):
            own = found[stem]  # its own model's, below
        torch.testing.assert_close(found[f"{stem}:{index}"], own, atol=1e-5, rtol=1e-5, msg=name)
        assert shapes[f"{stem}:{index}"].map == tuple(own.shape[1:])
    torch.testing.assert_close(found[stem], found[f"{stem}:{len(expected)}"], atol=0, rtol=0)
    if kind is DINOv3ConvNextBackbone:
        with torch.no_grad():
            mean, deviation = (
                torch.tensor(own)[:, None, None] for own in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            )
            tokens = DINOv3ConvNextModel.from_pretrained(folder)(((seen + 1) / 2 - mean) / deviation).last_hidden_state
        by_hand = tokens[:, 1:].transpose(1, 2).unflatten(2, (cells, cells))
        torch.testing.assert_close(found[stem], by_hand, atol=1e-5, rtol=1e-5)


def test_no_further_than_the_last_layer_asked_for(made: tuple[Backbone, Any, Path]) -> None:
    """A network that was cut gives the same maps."""
    backbone, kind, _ = made
    second = "dino:2" if kind is Dinov2WithRegistersBackbone else "dinov3:2"
    seen = pictures(2 * max(shape.stride for shape in backbone.layers(224).values()))
    with torch.no_grad():
        whole = backbone.load(COMPUTE, [*backbone.layers(224)]).features(seen, None, None, [second])[second]
        cut = backbone.load(COMPUTE, [second]).features(seen, None, None, [second])[second]
    torch.testing.assert_close(cut, whole, atol=0, rtol=0)


@pytest.mark.parametrize("count", [3, 7])
def test_positions_are_taken_out_as_insid3_does(tmp_path: Path, small_model: Path, count: int) -> None:
    """In numpy and float64: cells of a black image, normalised and centred; the span of their first left singular
    vectors leaves every descriptor."""
    folder, generation, kind = transformer(tmp_path / "network", small_model)
    located = locate_named(str(folder), generation)
    seen = pictures(64)
    black = theirs_of(kind, folder, torch.full((1, 3, 64, 64), -1.0))["stage2"][0].flatten(1).double().numpy()
    units = black / np.linalg.norm(black, axis=0)
    left = np.linalg.svd(units - units.mean(axis=1, keepdims=True))[0][:, :count]
    plain = theirs_of(kind, folder, seen)["stage2"].flatten(2).double().numpy()
    expected = plain - left @ (left.T @ plain)
    backbone = open_dino(generation, Asked(debias=count), *located)
    with torch.no_grad():
        found = backbone.load(COMPUTE, ["dinov3:2"]).features(seen, None, None, ["dinov3:2"])["dinov3:2"]
    np.testing.assert_allclose(found.flatten(2).numpy(), expected, atol=2e-5)
    assert np.abs(expected - plain).max() > 0.05  # or the comparison would show nothing


def test_more_than_there_is_cannot_be_taken_out(tmp_path: Path, small_model: Path) -> None:
    folder, generation, _ = transformer(tmp_path / "network", small_model)
    with pytest.raises(ModelError, match="--dino-debias 24 leaves nothing of the 24 channels"):
        open_dino(generation, Asked(debias=24), *locate_named(str(folder), generation))


def test_published_sizes(tmp_path: Path) -> None:
    """Of facebook's B/16 and ConvNeXt-T, by their configurations: channels and cells of 960 pixels."""
    from featstore.backbones.dino import read_shape

    DINOv3ViTConfig(hidden_size=768, num_attention_heads=12, num_register_tokens=4).save_pretrained(tmp_path)
    shape = read_shape(tmp_path, DINOV3)
    assert (shape.usual_size, shape.channels, shape.strides, shape.prefix) == (960, (768,) * 12, (16,) * 12, 5)
    DINOv3ConvNextConfig().save_pretrained(tmp_path)
    shape = read_shape(tmp_path, DINOV3)
    assert (shape.usual_size, shape.channels, shape.strides) == (960, (96, 192, 384, 768), (4, 8, 16, 32))


def test_names() -> None:
    assert (family_of("dino:9"), family_of("dinov3"), family_of("dinov3:12")) == ("dino", "dinov3", "dinov3")
    for name in ("dino:", "dino:0", "dino:x", "2:1", "dinov4"):
        with pytest.raises(ModelError, match=f"There is no layer {name}: layers are"):
            family_of(name)


def test_a_block_that_there_is_not(tmp_path: Path, small_model: Path) -> None:
    folder, generation, _ = transformer(tmp_path / "network", small_model)
    backbone = open_dino(generation, Asked(), *locate_named(str(folder), generation))
    with pytest.raises(ModelError, match=r"no layer dinov3:4 in .*: it has dinov3 and dinov3:1 to dinov3:3"):
        shapes_of(backbone, 64, ["dinov3:4"])


def test_another_generation_is_refused_by_name(tmp_path: Path, small_model: Path) -> None:
    folder, _, _ = transformer(tmp_path / "network", small_model)
    shutil.copy(small_model / "dinov2" / "preprocessor_config.json", folder)
    with pytest.raises(ModelError, match="'dinov3_vit': name a DINOv2"):
        locate_named(str(folder), DINOV2)
    with pytest.raises(ModelError, match="'dinov2': name a DINOv3"):
        dinov3.open_backbone(Asked(str(small_model / "dinov2")), locate(str(small_model)))
