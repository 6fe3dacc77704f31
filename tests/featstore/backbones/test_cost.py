"""Costs of published configurations at full size, on the meta device: parameters as their authors' files have them, the
design's FLOPs, and passes that were cut."""

import pytest
import torch

from featstore.backbones.cost import built, cost_of, outputs_of, pass_over_latents
from featstore.backbones.flops import pass_flops
from featstore.backbones.models import open_model
from featstore.backbones.stable_diffusion import layer_shape
from tools.published import DINOV2, SD15, SD21, XL


@pytest.mark.parametrize(("config", "parameters"), [(SD15, 859_520_964), (SD21, 865_910_724), (XL, 2_567_463_684)])
def test_the_published_unets_have_their_parameters(config: dict[str, dict[str, object]], parameters: int) -> None:
    with torch.device("meta"):
        unet = built(config["unet"])
    assert sum(own.numel() for own in unet.parameters()) == parameters


def test_the_designs_figures() -> None:
    cost = cost_of(SD21, 768)
    assert cost.encode / 1e12 == pytest.approx(2.61, abs=0.005)
    for layer, teraflop in {"1": 0.78, "2": 1.13, "3": 1.52, "4": 2.15}.items():
        reached = cost.layers[layer]
        assert reached.flops / 1e12 == pytest.approx(teraflop, abs=0.005)
        assert reached.map == layer_shape(layer, SD21["unet"], 96, 768).map
        assert reached.bytes == 2 * torch.empty(reached.map, device="meta").numel()
    assert cost.layers["2.1"].map == layer_shape("2.1", SD21["unet"], 96, 768).map
    assert [*cost.layers][:5] == ["1.1", "1.2", "1.3", "1", "2.1"]  # as they are run


def test_a_layer_costs_what_a_pass_that_ends_there_takes() -> None:
    model = open_model("demo")
    cost = cost_of({"vae": {**SD21["vae"]}, "unet": model.unet_config}, 256)
    assert {layer: cost.layers[layer].flops for layer in "1234"} == {
        layer: pass_flops(model, int(layer), 128) for layer in "1234"
    }


def test_a_transformer_of_patches() -> None:
    """By hand: each block's twelve products of width by width per token, and two of tokens by tokens by width."""
    cost = cost_of({"": DINOV2}, 224, "dino")
    tokens, width = 257, 768
    block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    assert cost.layers["dino:1"].map == (768, 16, 16)
    assert cost.layers["dino:5"].flops - cost.layers["dino:4"].flops == block
    assert cost.parameters["network"] == 86_580_480


def test_outputs_are_kept_in_their_order() -> None:
    unet = built({**open_model("demo").unet_config, "_class_name": "UNet2DConditionModel"})
    seen: list[str] = []
    outputs_of(pass_over_latents(unet, torch.zeros(1, 4, 16, 16)), lambda name, _: seen.append(name))
    assert seen == [f"{block}{part}" for block in "1234" for part in (".1", ".2", "")]
