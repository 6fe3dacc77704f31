"""How diffusers' transformer of FLUX.1 begins: from noisy latents to tokens, and what its blocks are told beside them
(`FluxTransformer2DModel.forward` of diffusers 0.42, and `FluxPipeline`, which makes the patches)."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

TEXT_TOKENS = 512
"""T5's, as FluxPipeline gives them where nothing else is said; zeros in all of them here."""

GUIDANCE = 3.5
"""What a transformer with guidance embedded (FLUX.1-dev) is told: FluxPipeline's default, and DiTF's."""


def begin(network: FluxTransformer2DModel, noisy: Tensor, timestep: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Tokens of the image (b, n, C) and of the text (b, m, C), and what each block is told: `temb` (b, C) and
    `image_rotary_emb`, the rotations of all tokens' places, those of the text at 0.

    Args:
        network: The transformer, as far as it is needed.
        noisy: Latents (b, c, h, w), h and w even.
        timestep: 0 to 1000, the share of noise times 1000.
    """
    image: Tensor = network.x_embedder(patches(noisy))
    text: Tensor = network.context_embedder(
        noisy.new_zeros(len(noisy), TEXT_TOKENS, network.config.joint_attention_dim)
    )
    places = torch.cat([noisy.new_zeros(TEXT_TOKENS, 3), places_of(noisy)])
    return image, text, {"temb": modulating(network, noisy, timestep), "image_rotary_emb": network.pos_embed(places)}


def patches(noisy: Tensor) -> Tensor:
    """(b, h / 2 * w / 2, 4 c) of latents (b, c, h, w): row by row, each token's channels c, row, column."""
    return noisy.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def places_of(noisy: Tensor) -> Tensor:
    """(h / 2 * w / 2, 3) of latents (b, c, h, w): 0, row and column of each token."""
    rows, columns = (torch.arange(side // 2, device=noisy.device, dtype=noisy.dtype) for side in noisy.shape[2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1)


def modulating(network: FluxTransformer2DModel, like: Tensor, timestep: float) -> Tensor:
    """What all modulations follow from, (b, C) for b = len(like)."""
    size = len(like)
    pooled = like.new_zeros(size, network.config.pooled_projection_dim)
    # a thousandth in the networks' dtype, times 1000: so the pipeline and the transformer between them
    told = (torch.full((size,), timestep, device=like.device).to(like) / 1000).to(like) * 1000
    guidance = (like.new_full((size,), GUIDANCE) * 1000,) if network.config.guidance_embeds else ()
    found: Tensor = network.time_text_embed(told, *guidance, pooled)
    return found
