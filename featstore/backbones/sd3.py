"""How diffusers' transformer of Stable Diffusion 3 and 3.5 begins: from noisy latents to tokens, and what its blocks
are told beside them (`SD3Transformer2DModel.forward` of diffusers 0.42)."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

TEXT_TOKENS = 77 + 256
"""CLIP's and T5's, as StableDiffusion3Pipeline gives them where nothing else is said; zeros in all of them here, which
that pipeline itself takes in place of a T5 that is not there."""


def begin(network: SD3Transformer2DModel, noisy: Tensor, timestep: float) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Tokens of the image (b, n, C) and of the text (b, m, C), and what each block is told (`temb` (b, C)).

    Args:
        network: The transformer, as far as it is needed.
        noisy: Latents (b, c, h, w), h and w even.
        timestep: 0 to 1000, the share of noise times 1000.
    """
    config, size = network.config, len(noisy)
    image: Tensor = network.pos_embed(noisy).contiguous()
    text: Tensor = network.context_embedder(noisy.new_zeros(size, TEXT_TOKENS, config.joint_attention_dim))
    return image, text, {"temb": modulating(network, noisy, timestep)}


def modulating(network: SD3Transformer2DModel, like: Tensor, timestep: float) -> Tensor:
    """What all modulations follow from, (b, C) for b = len(like)."""
    pooled = like.new_zeros(len(like), network.config.pooled_projection_dim)
    told = torch.full((len(like),), timestep, dtype=torch.float32, device=like.device)
    found: Tensor = network.time_text_embed(told, pooled)
    return found
