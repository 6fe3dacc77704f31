"""Stable Diffusion 1 and 2, described: where the model lies, its fingerprint, and the shapes that follow from its
configuration. No weights and no library of networks are loaded.

Layers are the UNet decoder's, 1-based as in the papers. The 0-based index of diffusers' `up_blocks` appears in this
package only: layer n is `up_blocks[n - 1]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from featstore.backbones.base import Compute, LayerShape, ModelLocation, NetworkName
from featstore.backbones.cleandift import CleanUNet, open_clean_unet, together
from featstore.backbones.kinds import STABLE_DIFFUSION, Kind
from featstore.backbones.model_file import Whole, checked_fingerprint, parsed, read_config
from featstore.backbones.noise import LatentScale, NoiseSchedule, read_schedule
from featstore.backbones.registry import block_of, check_of_structure, family_of
from featstore.errors import ModelError

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks

TIMESTEPS = range(1000)


def layer_shape(layer: int | str, unet_config: Mapping[str, Any], latent_side: int, image_size: int) -> LayerShape:
    """The shape of a layer's map, or of a part of one (`2.1`), for latents of `latent_side` cells, from the UNet's
    configuration. Raises `ModelError` for a layer or a part that there is not."""
    widths = tuple(unet_config["block_out_channels"])
    check_of_structure([str(layer)], f"unet{len(widths)}", "this UNet")
    block, part = block_of(str(layer)), str(layer).partition(".")[2]
    if block > len(widths):
        raise ModelError(f"There is no layer {layer}: this UNet has the layers 1 to {len(widths)}.")
    # Every up block but the last doubles the side of the latents at its end; the down blocks halved it len - 1 times.
    halved = len(widths) - block if part else max(len(widths) - 1 - block, 0)
    each = unet_config.get("layers_per_block", 2)
    parts = 1 + (each[::-1][block - 1] if isinstance(each, list | tuple) else each)
    if part and int(part) > parts:
        raise ModelError(
            f"There is no layer {layer}: this UNet's layer {block} has the parts {block}.1 to {block}.{parts}."
        )
    side = latent_side // 2**halved
    return LayerShape(str(layer), widths[::-1][block - 1], side, image_size // side)


def check_layers(layers: Sequence[int]) -> None:
    """Raise `ModelError` for a layer not in 1..4."""
    for layer in layers:
        family_of(str(layer))


def check_timesteps(timesteps: Sequence[int]) -> None:
    """Raise `ModelError` for a timestep not in 0..999."""
    for timestep in timesteps:
        if timestep not in TIMESTEPS:
            raise ModelError(f"There is no timestep {timestep}: timesteps run from 0 to {TIMESTEPS[-1]}.")


@dataclass(frozen=True, slots=True)
class StableDiffusion:
    """A located model (a `featstore.backbones.models.Model`).

    fingerprint: of its weights and configuration. image_size: S that it was trained for, pixels. latent_factor: pixels
    a latent cell. latent_scale: from the VAE's latents to the UNet's. unet_config: diffusers' configuration of the
    UNet. schedule: of the noise that it was trained on. clean: weights that take the place of the UNet's, which takes
    latents without noise then. up_blocks: of its kind's UNets.
    """

    location: ModelLocation
    fingerprint: str
    image_size: int
    latent_factor: int
    latent_channels: int
    latent_scale: LatentScale
    unet_config: Mapping[str, Any]
    schedule: NoiseSchedule
    clean: CleanUNet | None = None
    up_blocks: ClassVar[int] = 4

    @property
    def latent_multiple(self) -> int:
        """Of the latents' side: the UNet halves it between its blocks, and would pad others, so that the cut UNet would
        differ from the whole."""
        return int(2 ** (self.up_blocks - 1))

    def latent_side(self, image_size: int) -> int:
        """Cells a side of the latents of an image of `image_size` pixels. Raises `ModelError` where the UNet cannot
        take them."""
        side, rest = divmod(image_size, self.latent_factor)
        if image_size < 1 or rest or side % self.latent_multiple:
            multiple = self.latent_factor * self.latent_multiple
            near = max(round(image_size / multiple), 1) * multiple
            raise ModelError(
                f"A size of {image_size} pixels does not give latents whose side is a multiple of "
                f"{self.latent_multiple}: take a multiple of {multiple}, e.g. --size {near}."
            )
        return side

    @property
    def name(self) -> NetworkName:
        """See `Backbone.name`."""
        return NetworkName(self.location.id, self.fingerprint)

    @property
    def structure(self) -> str:
        """What decides on the profile of a model that has none of its own (`featstore.backbones.registry`)."""
        return f"unet{len(self.unet_config['block_out_channels'])}"

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image of `image_size` pixels. Raises as `latent_side`."""
        side = self.latent_side(image_size)
        return self.latent_channels, side, side

    def shape(self, layer: int | str, image_size: int) -> LayerShape:
        """Channels, side and stride of a layer's map for images of `image_size` pixels."""
        return layer_shape(layer, self.unet_config, self.latent_side(image_size), image_size)

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        """See `Backbone.layers`."""
        return {str(layer): self.shape(layer, image_size) for layer in range(1, self.up_blocks + 1)}

    def load(self, compute: Compute, layers: Sequence[str] | None = None) -> "DiffusionNetworks":
        """See `Model.load`."""
        # only now: the libraries take seconds to load
        from featstore.backbones.diffusion_networks import DiffusionNetworks

        return DiffusionNetworks(self.location, compute, self.last(layers), self.clean)

    def last(self, layers: Sequence[str] | None) -> int:
        """The block where passes for some layers end, None being all. Raises `ModelError` for one that there is not."""
        for layer in layers or ():
            layer_shape(layer, self.unet_config, self.latent_multiple, self.latent_multiple)  # whatever the size
        return self.up_blocks if layers is None else max(map(block_of, layers))


@dataclass(frozen=True, slots=True)
class _Vae:
    """Of a VAE's configuration what shapes follow from: the encoder halves the image between its blocks."""

    block_out_channels: tuple[Whole, ...]
    latent_channels: Whole = 4


@dataclass(frozen=True, slots=True)
class _UNet:
    """Of a UNet's. sample_size: side of the latents that it was trained on."""

    sample_size: Whole
    block_out_channels: tuple[Whole, ...]


def open_located(location: ModelLocation, unet: str | None = None) -> StableDiffusion:
    """See `featstore.backbones.models.DiffusionFamily`."""

    def check(image_size: int) -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.weights import check_model

        check_model(location.folder, image_size)

    return open_as(StableDiffusion, STABLE_DIFFUSION, location, unet, check)


Opened = TypeVar("Opened", bound=StableDiffusion)


def open_as(
    opened: type[Opened], kind: Kind, location: ModelLocation, unet: str | None, check: Callable[[int], None]
) -> Opened:
    """Read a folder's configurations, and compare its weights with them.

    Args:
        opened: What it is opened as.
        kind: Of the model.
        location: Where it lies.
        unet: Of a UNet that takes the place of its own.
        check: Of the weights, for images of a size; that they passed is remembered beside the fingerprint.

    Raises:
        ModelError: Where something does not fit.
    """
    vae, unet_config = read_config(location, "vae"), read_config(location, "unet")
    side = unet_config.get("sample_size")
    if isinstance(side, list) and side == side[:1] * 2:
        side = side[0]
    where = location.folder / "vae" / "config.json"
    shapes = parsed(_Vae, vae, where)
    trained = parsed(_UNet, unet_config | {"sample_size": side}, location.folder / "unet" / "config.json")
    factor = 2 ** (len(shapes.block_out_channels) - 1)
    image_size, blocks = trained.sample_size * factor, len(trained.block_out_channels)
    if blocks != opened.up_blocks:
        raise ModelError(f"{location.folder} has a UNet of {blocks} up blocks; {kind.title}'s has {opened.up_blocks}.")
    model = opened(
        location=location,
        fingerprint=checked_fingerprint(location.folder, kind.components, partial(check, image_size)),
        image_size=image_size,
        latent_factor=factor,
        latent_channels=shapes.latent_channels,
        latent_scale=LatentScale.parse(vae, str(where)),
        unet_config=unet_config,
        schedule=read_schedule(location),
    )
    if unet is None:
        return model
    clean = open_clean_unet(Path(unet), model.unet_config, location.id)
    return replace(model, fingerprint=together(model.fingerprint, clean.fingerprint), clean=clean)
