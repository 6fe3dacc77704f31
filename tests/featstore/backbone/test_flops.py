"""What a pass costs on SD 2-1's own configuration, counted on the meta device (multiply and add = 2)."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import UNET, whole_unet
from featstore.backbone.layers import layer_shape
from featstore.backbone.unet import CutUNet


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
