"""The published way, written plainly on diffusers and transformers: what `benchmarks.gpu` measures dualsd against.

DIFT and SD4Match send each image of each pair through the VAE and, once per timestep, through the whole UNet, of which
they take one block's output. The coarse map is upsampled and fused with the fine one, and a pair's points are
correlated with every cell of the fused map. Nothing is kept from one pair, or one training step, to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

EPSILON = 1e-6
"""Added to norms."""


class WholeUNet(nn.Module):
    """A UNet that always runs to its end, of which one layer's map is taken. layer: from 1, `up_blocks` + 1."""

    def __init__(self, unet: UNet2DConditionModel, layer: int) -> None:
        super().__init__()
        self.unet, self._layer = unet, layer

    def forward(self, *inputs: Any, **options: Any) -> tuple[Tensor]:
        """As diffusers' UNet is called; gives the map (b, C, h, w) alone."""
        taken: list[Tensor] = []
        handle = self.unet.up_blocks[self._layer - 1].register_forward_hook(lambda *of: taken.append(of[2]))
        try:
            self.unet(*inputs, **options)
        finally:
            handle.remove()
        return (taken[0],)


@dataclass(frozen=True, slots=True, eq=False)
class PublishedModel:
    """A Stable Diffusion's networks, whole and frozen. The VAE is in float32 unless its configuration says that half
    precision is safe, as diffusers' pipelines and dualsd have it; the others are in one precision."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Self:
        """From a folder in diffusers' layout."""

        def network(kind: Any, component: str, dtype: torch.dtype) -> Any:
            found = kind.from_pretrained(folder, subfolder=component, dtype=dtype, use_safetensors=True)
            return found.to(device).eval().requires_grad_(False)

        upcast = AutoencoderKL.load_config(folder, subfolder="vae").get("force_upcast", True)
        return cls(
            network(AutoencoderKL, "vae", torch.float32 if upcast else dtype),
            network(UNet2DConditionModel, "unet", dtype),
            CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            network(CLIPTextModel, "text_encoder", dtype),
            DDIMScheduler.from_config(DDIMScheduler.load_config(folder, subfolder="scheduler")),
        )

    @torch.no_grad()
    def prompt(self, text: str) -> Tensor:
        """Prompt embeddings (1, 77, D)."""
        ids = self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        found: Tensor = self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state
        return found

    @torch.no_grad()
    def latents(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        """Latents (b, c, h, w), float32, of images (b, 3, S, S) in [-1, 1]. drawn: standard normal, for the VAE's
        posterior."""
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        sampled: Tensor = posterior.mean.float() + posterior.std.float() * drawn
        return sampled * self.vae.config.scaling_factor

    def noisy(self, latents: Tensor, drawn: Tensor, timestep: int) -> Tensor:
        """Latents (b, c, h, w) with noise of the same shape."""
        found: Tensor = self.scheduler.add_noise(latents, drawn, torch.tensor([timestep]))
        return found

    @torch.no_grad()
    def map(self, latents: Tensor, drawn: Tensor, timestep: int, prompt: Tensor, layer: int) -> Tensor:
        """A layer's map (C, h, w), float32: the mean over draws of noise.

        Args:
            latents: Of one image, (1, c, h, w).
            drawn: (draws, c, h, w), standard normal.
            timestep: Of the noise.
            prompt: (1, 77, D).
            layer: 1 to 4.
        """
        inputs = self.noisy(latents.expand(len(drawn), -1, -1, -1), drawn, timestep).to(self.unet.dtype)
        told = prompt.expand(len(drawn), -1, -1)
        (maps,) = WholeUNet(self.unet, layer)(inputs, timestep, encoder_hidden_states=told, return_dict=False)
        return maps.float().mean(dim=0)


def fuse(maps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The fused map (sum of C, H, W) of an image's maps (C, h, w): upsampled bicubically to the largest, every cell
    normalised and weighted. Gradients flow."""
    size = max(tuple(own.shape[-2:]) for own in maps)
    upsampled = [functional.interpolate(own[None], size, mode="bicubic", align_corners=True)[0] for own in maps]
    return torch.cat([weight * _normalised(own, 0) for weight, own in zip(weights, upsampled, strict=True)])


def to_cells(points: Tensor, image_size: int, side: int) -> Tensor:
    """Pixels (n, 2) to cells of a map of `side` cells, by the geometry `corners`."""
    return points * (side - 1) / (image_size - 1)


def correlate(source: Tensor, cells: Tensor, target: Tensor) -> Tensor:
    """Cosines (n, H, W) of points of one fused map (C, H, W) with every cell of another. cells: (n, 2), (x, y)."""
    side = source.shape[-1]
    grid = cells[None, None] / (side - 1) * 2 - 1
    sampled = functional.grid_sample(source[None], grid, align_corners=True)[0, :, 0].T  # (n, C)
    return torch.einsum("nc,chw->nhw", _normalised(sampled, 1), _normalised(target, 0))


def match(
    source: Sequence[Tensor], target: Sequence[Tensor], weights: Sequence[float], points: Tensor, image_size: int
) -> Tensor:
    """Where points (n, 2), pixels of a square of `image_size`, lie in the target: (n, 2), the best cell's centre."""
    one, other = fuse(source, weights), fuse(target, weights)
    side = other.shape[-1]
    best = correlate(one, to_cells(points, image_size, one.shape[-1]), other).flatten(1).argmax(dim=1)
    return torch.stack([best % side, best // side], dim=1) * ((image_size - 1) / (side - 1))


def _normalised(features: Tensor, dim: int) -> Tensor:
    return features / (features.norm(dim=dim, keepdim=True) + EPSILON)
