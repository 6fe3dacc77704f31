"""What a pass costs on SD 2-1's own configuration, counted on the meta device (multiply and add = 2)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import UNET, VAE, whole_unet
from featstore.backbones.base import ModelLocation
from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.flops import encode_flops, gradient_flops, pass_flops
from featstore.backbones.models import open_model
from featstore.backbones.stable_diffusion import layer_shape


@pytest.mark.parametrize(("layer", "limit", "channels", "side"), [(2, 1.14e12, 1280, 48), (3, 1.54e12, 640, 96)])
def test_flops_and_shapes(layer: int, limit: float, channels: int, side: int) -> None:
    with torch.device("meta"):
        cut = CutUNet(whole_unet(), layer)
        with FlopCounterMode(display=False) as counter:
            maps = cut.tap(torch.empty(1, 4, 96, 96), 261, torch.empty(1, 77, 1024), [layer])
    assert counter.get_total_flops() <= limit
    assert maps[layer].shape == (1, channels, side, side)
    shape = layer_shape(layer, UNET, latent_side=96, image_size=768)
    assert (shape.channels, shape.side, shape.stride) == (channels, side, 768 // side)


def test_the_table_of_layers() -> None:
    shapes = [layer_shape(layer, UNET, 96, 768) for layer in (1, 2, 3, 4)]
    assert [(shape.channels, shape.side, shape.stride) for shape in shapes] == [
        (1280, 24, 32),
        (1280, 48, 16),
        (640, 96, 8),
        (320, 96, 8),
    ]


def test_what_a_dry_run_counts_is_what_the_networks_take(tmp_path: Path) -> None:
    """The design's figures for SD 2-1. A gradient to the prompt costs once more what the forward pass costs, less what
    lies before the first cross attention; that to the weights, which nobody takes, would cost it a second time."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **VAE}))
    location = ModelLocation("sd2-1", None, tmp_path)
    model = replace(
        open_model("demo"), location=location, image_size=768, latent_factor=8, unet_config=whole_unet().config
    )
    assert encode_flops(model, 768) / 1e12 == pytest.approx(2.61, abs=0.005)
    for layer, expected in {1: 0.78, 2: 1.13, 3: 1.52, 4: 2.15}.items():
        assert pass_flops(model, layer, 768) / 1e12 == pytest.approx(expected, abs=0.005)
    forward = pass_flops(model, 2, 768)
    assert 1.9 * forward < gradient_flops(model, 2, 768) < 2 * forward
