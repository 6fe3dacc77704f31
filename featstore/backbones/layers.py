"""The UNet decoder's layers, 1-based as in the papers: channels, stride and map size of each.

The 0-based index of diffusers' `up_blocks` appears in this package only: layer n is `up_blocks[n - 1]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featstore.errors import ModelError

LAYERS = (1, 2, 3, 4)
TIMESTEPS = range(1000)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """layer: 1..4. channels and side of its map (channels, side, side). stride: pixels of the image a cell."""

    layer: int
    channels: int
    side: int
    stride: int


def layer_shape(layer: int, unet_config: Mapping[str, Any], latent_side: int, image_size: int) -> LayerShape:
    """The shape of a layer's map for latents of `latent_side` cells, from the UNet's configuration."""
    widths = tuple(unet_config["block_out_channels"])
    # Every up block but the last doubles the side of the latents, which the down blocks halved len - 1 times.
    side = latent_side // 2 ** max(len(widths) - 1 - layer, 0)
    return LayerShape(layer, widths[::-1][layer - 1], side, image_size // side)


def check_layers(layers: Sequence[int]) -> None:
    """Raise `ModelError` for a layer not in 1..4."""
    for layer in layers:
        if layer not in LAYERS:
            raise ModelError(
                f"There is no layer {layer}: layers are the UNet decoder's up blocks, 1 to {LAYERS[-1]} "
                "(diffusers' up_blocks and DIFT's up_ft_index count from 0)."
            )


def check_timesteps(timesteps: Sequence[int]) -> None:
    """Raise `ModelError` for a timestep not in 0..999."""
    for timestep in timesteps:
        if timestep not in TIMESTEPS:
            raise ModelError(f"There is no timestep {timestep}: timesteps run from 0 to {TIMESTEPS[-1]}.")
