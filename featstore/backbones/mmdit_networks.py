"""The networks of Stable Diffusion 3 and FLUX, each loaded when it is first used: the VAE's encoder, and the
transformer as far as the layers need. See `featstore.backbones.mmdit` for what a layer's name means."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from featstore.backbones import flux, sd3
from featstore.backbones.base import Compute, Condition, ModelLocation, saying_batch_size
from featstore.backbones.blocks import PATCH, Blocks, Tap
from featstore.backbones.diffusion_networks import encode, load_vae_encoder
from featstore.backbones.weights import check_network, load_network

CLASSES: Mapping[str, Any] = {kind.__name__: kind for kind in (SD3Transformer2DModel, FluxTransformer2DModel)}


class CutTransformer:
    """A transformer of either kind that ends after the last block that some layers need; those behind it are freed."""

    def __init__(self, network: Any, blocks: Blocks, layers: Sequence[str]) -> None:
        """network: whole, and from now on cut. layers: none for all blocks."""
        self._named = blocks
        names, modules = blocks.names, [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())]
        self._places = {name: place for place, name in enumerate(names)}
        self._norms: dict[str, Any] = dict(zip(names, map(_first_norm, modules), strict=True))
        taps = [blocks.tap(layer) for layer in layers]
        self._blocks = modules[: max(map(self._run, taps), default=len(modules))]
        run, asked = {*names[: len(self._blocks)]}, {tap.block for tap in taps if tap.adaln}
        self._norms = {name: norm for name, norm in self._norms.items() if name in run | asked}
        # one list of the blocks that run, of whichever kind, and one of AdaLNs whose blocks do not
        network.transformer_blocks = nn.ModuleList(self._blocks)
        network.single_transformer_blocks = nn.ModuleList(self._norms[name] for name in sorted(asked - run))
        network.norm_out = network.proj_out = None
        self.network = network

    def _run(self, tap: Tap) -> int:
        """How many blocks a layer needs."""
        return self._places[tap.block] + (0 if tap.adaln else 1)

    @property
    def weights(self) -> Tensor:
        """Any of them, to take device and dtype from."""
        return next(self.network.parameters())

    @property
    def _family(self) -> Any:
        return sd3 if isinstance(self.network, SD3Transformer2DModel) else flux

    def tap(self, noisy: Tensor, timestep: int, layers: Sequence[str]) -> dict[str, Tensor]:
        """The image's tokens that each of `layers` is made of, (b, C, h / 2, w / 2), all from one pass, which runs no
        further than they need.

        Args:
            noisy: Latents (b, c, h, w).
            timestep: 0 to 999.
            layers: Names.
        """
        counts = {layer: self._run(self._named.tap(layer)) for layer in layers}
        sides = [side // PATCH for side in noisy.shape[2:]]
        image, text, told = self._family.begin(self.network, noisy.to(self.weights), float(timestep))
        states: dict[int, Tensor] = {0: image}
        for done, block in enumerate(self._blocks[: max(counts.values())], start=1):
            text, image = block(hidden_states=image, encoder_hidden_states=text, **told)
            if done in counts.values():
                states[done] = image
        return {layer: states[count].transpose(1, 2).unflatten(2, sides) for layer, count in counts.items()}

    def finished(self, layer: str, timestep: int, mean: Tensor) -> Tensor:
        """Maps (n, C, h, w), float32, of what `tap` gave for a layer, averaged over draws of noise: without the
        channels that it leaves out, and modulated by its block's AdaLN where it asks for that."""
        tap = self._named.tap(layer)
        if tap.without:
            mean = mean.index_fill(1, torch.tensor(tap.without, device=mean.device), 0)
        if not tap.adaln:
            return mean
        norm = self._norms[tap.block]
        emb = norm.linear(norm.silu(self._family.modulating(self.network, self.weights.new_empty(1), float(timestep))))
        shift, scale = emb.float()[0].split(self._named.channels)[:2]  # (C,) each; what follows are gates and the like
        normalised = nn.functional.layer_norm(mean.movedim(1, -1), [self._named.channels], eps=norm.norm.eps)
        return (normalised * (1 + scale) + shift).movedim(-1, 1)


def _first_norm(block: Any) -> Any:
    """The AdaLN through which the image's tokens enter a block."""
    return block.norm1 if hasattr(block, "norm1") else block.norm


class MMDiTNetworks:
    """A model's networks (a `featstore.backbones.base.Networks`), frozen."""

    text = None
    """No text encoders: the transformer is told zeros."""

    def __init__(
        self, location: ModelLocation, kind: str, blocks: Blocks, compute: Compute, layers: Sequence[str]
    ) -> None:
        """kind: the class of the transformer. layers: as far as which it is loaded, none for all."""
        self._location, self._kind, self._blocks = location, kind, blocks
        self._compute, self._layers = compute, layers

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The encoder."""
        return load_vae_encoder(self._location, self._compute.device, self._compute.dtype)

    @cached_property
    def transformer(self) -> CutTransformer:
        """As far as the last layer that was asked for; what lies behind never comes to the device."""
        network = load_network(CLASSES[self._kind], self._location.folder / "transformer", self._compute.dtype)
        cut = CutTransformer(network, self._blocks, self._layers)
        cut.network.to(self._compute.device)
        return cut

    def encode(self, images: Tensor, posterior_noise: Tensor | None) -> Tensor:
        """Latents of images, see `featstore.backbones.diffusion_networks.encode`."""
        return encode(self.vae, images, posterior_noise)

    def features(
        self,
        inputs: Tensor,
        timestep: int | None,
        condition: Condition | None,  # noqa: ARG002  (it is told zeros)
        layers: Sequence[str],
    ) -> Mapping[str, Tensor]:
        """See `Networks.features`."""
        assert timestep is not None, "the transformer was trained on noise"
        with saying_batch_size(len(inputs)):
            return self.transformer.tap(inputs, timestep, layers)

    @torch.no_grad()
    def finished(self, layer: str, timestep: int | None, mean: Tensor) -> Tensor:
        """See `featstore.backbones.base.Finishing`."""
        assert timestep is not None, "the transformer was trained on noise"
        return self.transformer.finished(layer, timestep, mean)


def check_transformer(folder: Path, kind: str) -> None:
    """Raise `ModelError` unless the weights of the VAE and the transformer are those that their configurations
    describe."""
    check_network(folder / "vae", AutoencoderKL)
    check_network(folder / "transformer", CLASSES[kind])
