"""Stable Diffusion's networks, each loaded on its own and only when it is needed: the VAE's encoder, the UNet as far
as the layers need, the text encoder."""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from featstore.backbones.base import Compute, Condition, ModelLocation, TextEncoders, saying_batch_size
from featstore.backbones.cleandift import CleanUNet, read_weights
from featstore.backbones.model_file import read_config
from featstore.backbones.noise import LatentScale
from featstore.backbones.registry import block_of, family_of
from featstore.backbones.text_encoders import ClipText
from featstore.backbones.weights import load_network, refusing


class DiffusionNetworks:
    """A Stable Diffusion's networks (a `featstore.backbones.base.Networks`), each loaded when it is first used, frozen.
    What is made of images beside feature maps is here as well: latents and prompt embeddings."""

    def __init__(
        self, location: ModelLocation, compute: Compute, last_layer: int, clean: CleanUNet | None = None
    ) -> None:
        self._location, self._compute, self._last_layer, self._clean = location, compute, last_layer, clean

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The encoder."""
        return load_vae_encoder(self._location, self._compute.device, self._compute.dtype)

    @cached_property
    def unet(self) -> "CutUNet":
        """As far as the last layer that was asked for."""
        place = self._location, self._compute.device, self._compute.dtype
        unet = load_unet(*place) if self._clean is None else load_clean_unet(self._clean, *place)
        return CutUNet(unet, self._last_layer)

    @cached_property
    def text(self) -> TextEncoders:
        """What prompts go through."""
        place = self._location, self._compute.device, self._compute.dtype
        return ClipText(load_tokenizer(self._location), load_text_encoder(*place))

    def encode(self, images: Tensor, posterior_noise: Tensor | None) -> Tensor:
        """Latents of images, see `encode`."""
        return encode(self.vae, images, posterior_noise)

    def features(
        self, inputs: Tensor, timestep: int | None, condition: Condition | None, layers: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """See `Networks.features`."""
        assert condition is not None, "the UNet takes a prompt"
        return self.unet.tap(inputs, self.told(timestep), condition.embeddings, layers, self.added(inputs, condition))

    def added(self, inputs: Tensor, condition: Condition) -> dict[str, Tensor] | None:  # noqa: ARG002
        """What the UNet is told beside latents, timestep and embeddings, as diffusers' `added_cond_kwargs`."""
        return None

    def told(self, timestep: int | None) -> float:
        """What the UNet is told of a timestep; of latents without noise what it was trained with."""
        if timestep is not None:
            return timestep
        assert self._clean is not None, "a UNet that was trained on noise takes a timestep"
        return self._clean.timestep


def load_vae_encoder(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE without its decoder, frozen. It stays in float32 unless its configuration says that float16 is safe."""
    if read_config(location, "vae").get("force_upcast", True):  # as diffusers takes it where it is silent
        dtype = torch.float32
    vae: AutoencoderKL = load_network(AutoencoderKL, location.folder / "vae", dtype)
    vae.decoder = None
    vae.post_quant_conv = None
    return vae.to(device)


def load_unet(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, frozen; `CutUNet` takes from it what it does not need."""
    return load_network(UNet2DConditionModel, location.folder / "unet", dtype).to(device)


def load_clean_unet(
    clean: CleanUNet, location: ModelLocation, device: torch.device, dtype: torch.dtype
) -> UNet2DConditionModel:
    """The same with the weights that take the place of its own, which are not read; that these are whole was
    checked."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(location, "unet"))
    unet.conv_norm_out, unet.conv_out = None, nn.Identity()  # which the file may lack
    weights = {name: own.to(device, dtype) for name, own in read_weights(clean).items()}
    unet.load_state_dict(weights, strict=False, assign=True)
    return unet.eval().requires_grad_(False)


def load_text_encoder(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> CLIPTextModel:
    """The text encoder, frozen."""
    return load_network(CLIPTextModel, location.folder / "text_encoder", dtype).to(device)


def load_tokenizer(location: ModelLocation, component: str = "tokenizer") -> CLIPTokenizer:
    """The tokenizer of a text encoder."""
    folder = location.folder / component
    with refusing(f"{folder} cannot be loaded"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, posterior_noise: Tensor | None) -> Tensor:
    """Latents (b, 4, h, w), float32, shifted and scaled as the VAE's configuration states: ready for noise.

    images: (b, 3, S, S) in [-1, 1]. posterior_noise: (b, 4, h, w) standard normal for `Latents.SAMPLE`, None for the
    posterior's mean. Raises `ModelError` with a batch size to try where memory runs out.
    """
    weights = next(vae.parameters())
    with saying_batch_size(len(images)):
        posterior = vae.encode(images.to(weights)).latent_dist
        latents = posterior.mean.float()
        if posterior_noise is not None:
            latents = latents + posterior.std.float() * posterior_noise.to(latents)
    scale = LatentScale.parse(vae.config, "the VAE's configuration")
    return (latents - scale.shift) * scale.scaling_factor


Layer = TypeVar("Layer", int, str)
"""As it is asked for: by its number, or by its name."""


class CutUNet:
    """A UNet whose decoder ends after the last layer asked for.

    Blocks beyond `last_layer` are freed; a pass for earlier layers runs no further than they need. A UNet whose
    up blocks are cut after n, with no final norm and no final convolution, returns exactly layer n.
    """

    def __init__(self, unet: UNet2DConditionModel, last_layer: int) -> None:
        family_of(str(last_layer))
        self._blocks = list(unet.up_blocks)[:last_layer]
        unet.up_blocks = nn.ModuleList(self._blocks)
        unet.conv_norm_out = None
        unet.conv_out = nn.Identity()
        self.unet = unet

    def until(self, layer: int) -> UNet2DConditionModel:
        """A UNet whose output is that layer, of the same weights: a module of its own, fit for gradient checkpointing
        and `torch.compile`."""
        family_of(str(layer))
        cut = copy.copy(self.unet)
        cut._modules = {**self.unet._modules, "up_blocks": nn.ModuleList(self._blocks[:layer])}
        return cut

    def _module(self, layer: str) -> nn.Module:
        """Whose output a layer, or a part of one, is."""
        block: Any = self._blocks[block_of(layer) - 1]  # layer n is diffusers' up_blocks[n - 1]
        _, _, part = layer.partition(".")
        if not part:
            return cast(nn.Module, block)
        parts = getattr(block, "attentions", None) or block.resnets
        return cast(nn.Module, parts[int(part) - 1])

    @property
    def weights(self) -> Tensor:
        """Any of the UNet's weights, to take its device and dtype from."""
        return next(self.unet.parameters())

    def tap(
        self,
        noisy: Tensor,
        timestep: float,
        prompts: Tensor,
        layers: Sequence[Layer],
        added: dict[str, Tensor] | None = None,
    ) -> dict[Layer, Tensor]:
        """Maps (b, C_n, h_n, w_n) of each layer n in `layers`, all from one pass, in the UNet's dtype. A part of a
        layer, `"2.1"`, is what comes out of its first attention, or its first resnet where it has none.

        noisy: (b, 4, h, w), h and w multiples of 8. timestep: 0..999. prompts: (b, 77, D) prompt embeddings.
        added: diffusers' `added_cond_kwargs`. Gradients flow where the inputs ask for them.
        """
        for layer in layers:
            family_of(str(layer))  # raises for one that there is not
        last = max(block_of(str(layer)) for layer in layers)
        maps: dict[Layer, Tensor] = {}

        def keep(layer: Layer) -> torch.utils.hooks.RemovableHandle:
            return self._module(str(layer)).register_forward_hook(
                # attentions give a tuple
                lambda _, _inputs, output: maps.__setitem__(layer, output if isinstance(output, Tensor) else output[0])
            )

        self.unet.up_blocks = nn.ModuleList(self._blocks[:last])
        handles = [keep(layer) for layer in layers]
        try:
            with saying_batch_size(len(noisy)):
                told = prompts.to(self.weights)
                self.unet(noisy.to(self.weights), timestep, told, added_cond_kwargs=added, return_dict=False)
        finally:
            for handle in handles:
                handle.remove()
        return {layer: maps[layer] for layer in layers}
