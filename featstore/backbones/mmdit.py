"""Stable Diffusion 3 and 3.5 (MMDiT) and FLUX.1, described: transformers that run on patches of 2 x 2 noisy latents
beside the text's tokens, trained by flow matching. No weights and no library of networks are loaded.

A layer is a block, counted from 1: `block:9` of those that keep text and image apart, `single:20` of those behind them
in FLUX that take both as one. Its map is the image's tokens behind the block, (C, h / 2, w / 2) of latents (c, h, w).
What DiTF (Gan et al., NeurIPS 2025, arXiv 2505.18584) makes of them is a layer's name as well:

- `single:10.adaln` is what the block's first AdaLN makes of the tokens before it: they are normalised over channels
  (eps 1e-6), times (1 + scale), plus shift, both of this block at this timestep.
- `single:10.adaln-154-1446` has channels 154 and 1446 (counted from 0) set to 0 before that. So has
  `single:10-154-1446`, of the tokens behind the block.

By the authors' code (github.com/ganchaofan0000/DiTF d783f2c, eval_spair.py): draws of noise are averaged first,
channels set to 0 next, the normalisation comes last; and so it is here. Their README's figures for FLUX.1-dev on
SPair-71k are 29.9 as it is, 65.3 with AdaLN and 67.1 without channels 154 and 1446 as well, at t = 260, block 28 of 57
counted from 0, images of 640 pixels and captions. What of a block that is cannot be read there, as its transformer is
not in the repository. Others who ran it (github.com/daizixuan190-boop/DITF 15ced94, flux_joint_replay.py) say that it
is the block's input; then block 28 is `single:10.adaln` here, and theirs without AdaLN is our `single:9`. Which
channels of SD 3.5 are outliers has not been found published.

The text is not encoded: the transformer is told zeros of the pipelines' own lengths in place of all text encoders'
embeddings, which need not be there. The authors of DiTF told theirs captions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from featstore.backbones.base import Compute, LayerShape, ModelLocation, NetworkName
from featstore.backbones.blocks import PATCH, Blocks
from featstore.backbones.flow import FlowSchedule, read_flow
from featstore.backbones.kinds import MMDIT
from featstore.backbones.model_file import Count, Whole, checked_fingerprint, parsed, read_config
from featstore.backbones.noise import LatentScale
from featstore.errors import ModelError

if TYPE_CHECKING:
    from featstore.backbones.mmdit_networks import MMDiTNetworks


@dataclass(frozen=True, slots=True)
class _SD3:
    """Of diffusers' configuration of `SD3Transformer2DModel` what shapes follow from. sample_size: side of the latents
    that it was trained on. pos_embed_max_size: tokens a side that have a position."""

    num_layers: Whole = 18
    num_attention_heads: Whole = 18
    attention_head_dim: Whole = 64
    in_channels: Whole = 16
    patch_size: Annotated[int, Field(ge=PATCH, le=PATCH)] = PATCH
    sample_size: Whole = 128
    pos_embed_max_size: Whole = 96

    num_single_layers = 0
    structure = "sd3"

    @property
    def latent_channels(self) -> int:
        """Of the VAE."""
        return self.in_channels


@dataclass(frozen=True, slots=True)
class _Flux:
    """The same of `FluxTransformer2DModel`, which takes patches that the pipeline made: it states no side of latents,
    its pipeline 128; positions are rotations, which have no end."""

    num_layers: Count = 19
    num_single_layers: Count = 38
    num_attention_heads: Whole = 24
    attention_head_dim: Whole = 128
    in_channels: Whole = 64
    patch_size: Annotated[int, Field(ge=1, le=1)] = 1

    sample_size = 128
    pos_embed_max_size = None
    structure = "flux"

    @property
    def latent_channels(self) -> int:
        """Of the VAE."""
        return self.in_channels // PATCH**2


CLASSES: Mapping[str, type[_SD3] | type[_Flux]] = {"SD3Transformer2DModel": _SD3, "FluxTransformer2DModel": _Flux}
"""By the class in the transformer's configuration."""


@dataclass(frozen=True)
class MMDiT:
    """A located model of either kind (a `featstore.backbones.models.Model`). config: diffusers' of the transformer."""

    location: ModelLocation
    fingerprint: str
    config: Mapping[str, Any]
    latent_factor: int
    latent_scale: LatentScale
    schedule: FlowSchedule
    clean: None = None

    @cached_property
    def kind(self) -> _SD3 | _Flux:
        """What its configuration says."""
        where = self.location.folder / "transformer" / "config.json"
        return parsed(CLASSES[self.config["_class_name"]], self.config, where)

    @property
    def name(self) -> NetworkName:
        """See `Backbone.name`."""
        return NetworkName(self.location.id, self.fingerprint)

    @property
    def structure(self) -> str:
        """See `Model.structure`."""
        return self.kind.structure

    @property
    def image_size(self) -> int:
        """See `Backbone.image_size`."""
        return self.kind.sample_size * self.latent_factor

    @cached_property
    def blocks(self) -> Blocks:
        """What its layers' names ask of."""
        own = self.kind
        channels = own.num_attention_heads * own.attention_head_dim
        return Blocks(self.location.id, own.num_layers, own.num_single_layers, channels)

    def latent_side(self, image_size: int) -> int:
        """Cells a side of the latents of an image of `image_size` pixels. Raises `ModelError` where the transformer
        cannot take them."""
        side, rest = divmod(image_size, self.latent_factor)
        multiple = self.latent_factor * PATCH
        if image_size < 1 or rest or side % PATCH:
            near = max(round(image_size / multiple), 1) * multiple
            raise ModelError(
                f"A size of {image_size} pixels does not give whole patches of {PATCH} x {PATCH} latents: take a "
                f"multiple of {multiple}, e.g. --size {near}."
            )
        largest = self.kind.pos_embed_max_size
        if largest is not None and side > PATCH * largest:
            raise ModelError(
                f"A size of {image_size} pixels is {side // PATCH} tokens a side, and {self.location.id} has positions "
                f"for {largest}: take --size {largest * multiple} or less."
            )
        return side

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """(c, h, w) of the latents of an image of `image_size` pixels. Raises as `latent_side`."""
        side = self.latent_side(image_size)
        return self.kind.latent_channels, side, side

    def shape(self, layer: int | str, image_size: int) -> LayerShape:
        """See `Model.shape`."""
        self.blocks.tap(layer)
        side = self.latent_side(image_size) // PATCH
        return LayerShape(str(layer), self.blocks.channels, side, self.latent_factor * PATCH)

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        """See `Backbone.layers`: the tokens behind each block."""
        return {layer: self.shape(layer, image_size) for layer in self.blocks.names}

    def load(self, compute: Compute, layers: Sequence[str] | None = None) -> "MMDiTNetworks":
        """See `Model.load`."""
        # only now: the libraries take seconds to load
        from featstore.backbones.mmdit_networks import MMDiTNetworks

        return MMDiTNetworks(self.location, self.config["_class_name"], self.blocks, compute, tuple(layers or ()))


@dataclass(frozen=True, slots=True)
class _Vae:
    """Of a VAE's configuration what shapes follow from: the encoder halves the image between its blocks."""

    block_out_channels: tuple[Whole, ...]


def open_located(location: ModelLocation, unet: str | None = None) -> MMDiT:
    """See `featstore.backbones.models.DiffusionFamily`; that weights passed is remembered beside the fingerprint."""
    if unet is not None:
        raise ModelError(f"--unet takes the place of a UNet, and {location.id} is a transformer: leave it out.")
    vae, config = read_config(location, "vae"), read_config(location, "transformer")
    where = location.folder / "vae" / "config.json"
    blocks = parsed(_Vae, vae, where).block_out_channels

    def check() -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.mmdit_networks import check_transformer

        check_transformer(location.folder, config["_class_name"])

    return MMDiT(
        location=location,
        fingerprint=checked_fingerprint(location.folder, MMDIT.components, check),
        config=config,
        latent_factor=2 ** (len(blocks) - 1),
        latent_scale=LatentScale.parse(vae, str(where)),
        schedule=read_flow(location),
    )
