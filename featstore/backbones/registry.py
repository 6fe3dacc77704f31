"""Which layers there are, and whose they are: the one place where a layer's name is resolved.

A further backbone of images alone is one module with the two functions of `featstore.backbones.base.Family`, and one
line in `LAYERS` for each of its layers.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import cast

from featstore.backbones.base import Family
from featstore.errors import ModelError

DIFFUSION = "stable_diffusion"
"""The family of the model that a store's latents are made with, whose layers have a timestep and a prompt."""

LAYERS: dict[str, str] = {
    **dict.fromkeys(("1", "2", "3", "4"), f"featstore.backbones.{DIFFUSION}"),
    "dino": "featstore.backbones.dino",
}
"""The module of each layer, by the name that users type."""


def family_of(layer: str) -> str:
    """Whose a layer is: the last part of its module's name, which names it in stores and records as well. Raises
    `ModelError` where there is no such layer, and says which there are."""
    if layer not in LAYERS:
        others = ", ".join(name for name in LAYERS if not is_of(name, DIFFUSION))
        raise ModelError(
            f"There is no layer {layer}: layers are the UNet decoder's up blocks, 1 to 4 (diffusers' up_blocks and "
            f"DIFT's up_ft_index count from 0), and {others}."
        )
    return LAYERS[layer].rpartition(".")[2]


def is_of(layer: str, family: str) -> bool:
    """Whether a layer belongs to a family."""
    return LAYERS[layer].rpartition(".")[2] == family


def is_diffusion(layer: str) -> bool:
    """Whether a layer has timesteps and prompts. Raises `ModelError` where there is no such layer."""
    return family_of(layer) == DIFFUSION


def is_other(layer: str) -> bool:
    """Whether a layer is made of images alone, with neither noise nor text; features of a file have any names."""
    return layer in LAYERS and not is_of(layer, DIFFUSION)


def pixel_families(layers: Iterable[str]) -> dict[str, list[str]]:
    """The layers that are made of images alone, by family, in order. Raises `ModelError` for one that there is not."""
    found: dict[str, list[str]] = {}
    for layer in layers:
        if not is_diffusion(layer):
            found.setdefault(family_of(layer), []).append(layer)
    return found


def open_family(layer: str) -> Family:
    """The module that opens the backbone of a layer made of images alone."""
    return cast(Family, import_module(LAYERS[layer]))
