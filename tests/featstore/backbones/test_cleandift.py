"""Layers, parts of layers and clean passes against CleanDIFT's own code, on its small UNets of SD 2.1's and 1.5's kind
(tests/golden/cleandift). us1 and us2 lie in the first up block behind its first and second resnet, us3 is its output;
the others likewise."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.registry import block_of, family_of
from featstore.backbones.stable_diffusion import layer_shape
from featstore.errors import ModelError

GOLDEN = Path(__file__).parents[2] / "golden" / "cleandift"
LAYERS = {
    **{"1.1": "us1", "1.2": "us2", "1": "us3", "2.1": "us4", "2.2": "us5", "2": "us6"},
    **{"3.1": "us7", "3.2": "us8", "3": "us9", "4.1": "us10"},
}


def config_of(kind: str) -> dict[str, object]:
    with safe_open(GOLDEN / f"{kind}_unet_weights.safetensors", "pt") as file:
        config: dict[str, object] = json.loads(file.metadata()["config"])
    return config


def unet_of(kind: str) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**config_of(kind))
    unet.load_state_dict(load_file(GOLDEN / f"{kind}_unet_weights.safetensors"))
    return unet.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["sd21", "sd15"])
def test_parts_of_layers_of_clean_latents(kind: str) -> None:
    golden = load_file(GOLDEN / f"{kind}_features.safetensors")
    timestep = float(golden["timestep"])
    maps = CutUNet(unet_of(kind), 4).tap(golden["latents"], timestep, golden["prompt_embeds"], [*LAYERS])
    for layer, theirs in LAYERS.items():
        expected = golden[f"clean.{theirs}"]
        torch.testing.assert_close(maps[layer], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("layer", [*LAYERS])
def test_shapes_of_parts(layer: str) -> None:
    """By the configuration alone; latents of 16 cells a side, of 128 pixels."""
    height = load_file(GOLDEN / "sd21_features.safetensors")[f"clean.{LAYERS[layer]}"]
    shape = layer_shape(layer, config_of("sd21"), latent_side=16, image_size=128)
    assert (shape.name, shape.channels, shape.side) == (layer, height.shape[1], height.shape[2])
    assert shape.stride == 128 // shape.side


def test_names_of_parts() -> None:
    assert (block_of("2.1"), block_of("4"), family_of("2.3")) == (2, 4, "stable_diffusion")
    for name in ("2.", "2.0", "5.1", "2.x", "dino.1"):
        with pytest.raises(ModelError, match=f"There is no layer {name}: layers are"):
            family_of(name)
    with pytest.raises(ModelError, match=r"no layer 2\.4: this UNet's layer 2 has the parts 2\.1 to 2\.3"):
        layer_shape("2.4", config_of("sd21"), 16, 128)
