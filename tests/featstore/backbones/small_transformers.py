"""Small random models of Stable Diffusion 3.5's and FLUX.1's structure, written in the published layout by diffusers'
own pipelines, without the text encoders, which a folder need not have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn

SD3: Mapping[str, Any] = {
    "sample_size": 16,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}
"""As SD 3.5 medium: its first blocks attend twice, and its last leaves the text as it is."""

FLUX: Mapping[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 2, 2),
}
"""As FLUX.1-dev."""

NAMES = {
    "sd3": tuple(f"block:{number}" for number in (1, 2, 3)),
    "flux": ("block:1", "block:2", "single:1", "single:2", "single:3"),
}


def randomised(network: nn.Module) -> nn.Module:
    """Every parameter drawn anew: diffusers leaves some at 0, behind which nothing could be told apart."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network.eval().requires_grad_(False)


def transformer_of(kind: str) -> Any:
    """Of `sd3` or `flux`, the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return randomised(SD3Transformer2DModel(**SD3) if kind == "sd3" else FluxTransformer2DModel(**FLUX))


def written(folder: Path, kind: str) -> Path:
    """A model's folder: images of 128 pixels, latents (16, 16, 16), maps of 8 cells a side, 24 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=16,
            sample_size=128,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    parts = {"vae": vae, "transformer": transformer_of(kind), "scheduler": scheduler, **texts}
    if kind == "sd3":
        pipeline: Any = StableDiffusion3Pipeline(**parts, text_encoder_3=None, tokenizer_3=None)
    else:
        pipeline = FluxPipeline(**parts)
    pipeline.save_pretrained(folder)
    return folder
