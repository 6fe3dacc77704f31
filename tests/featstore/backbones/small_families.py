"""Small random models of each family, saved in the published layout by the libraries' own pipelines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tools.demo_model.small_model import small_unet, small_vae, write_tokenizer

FIRST_WIDTH, SECOND_WIDTH, POOLED = 32, 64, 48
"""Of the small SDXL's text embeddings, and of its pooled one."""

EULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
"""As stabilityai/stable-diffusion-xl-base-1.0 has it in scheduler/scheduler_config.json."""


def _texts(vocabulary: int, width: int, **more: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocabulary - 2,
        pad_token_id=0,
        **more,
    )


def small_xl_unet() -> UNet2DConditionModel:
    """SDXL's structure: three blocks, the first without attention, transformers of 1 and 2 layers."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
        attention_head_dim=(1, 2, 4),
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=FIRST_WIDTH + SECOND_WIDTH,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )


def write_small_sdxl(folder: Path, *, seed: int = 0) -> None:
    """An SDXL for images of 64 pixels. The first tokenizer pads with the end, the second with "!", as published."""
    vocabulary = write_tokenizer(folder / "words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # 2, as the published second encoder has it, means the highest id
        second = CLIPTextModelWithProjection(
            _texts(vocabulary, SECOND_WIDTH, projection_dim=POOLED, eos_token_id=2, hidden_act="gelu")
        )
        pipeline = StableDiffusionXLPipeline(
            vae=small_vae(scaling_factor=0.13025),
            text_encoder=CLIPTextModel(_texts(vocabulary, FIRST_WIDTH, eos_token_id=vocabulary - 1)),
            text_encoder_2=second,
            tokenizer=CLIPTokenizer.from_pretrained(folder / "words", pad_token="<|endoftext|>"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "words"),
            unet=small_xl_unet(),
            scheduler=EulerDiscreteScheduler(**EULER),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder)


def write_small_sd(folder: Path, scheduler: SchedulerMixin, *, seed: int = 0) -> None:
    """A Stable Diffusion 1 or 2 for images of 128 pixels."""
    vocabulary = write_tokenizer(folder / "words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=small_vae(),
            text_encoder=CLIPTextModel(_texts(vocabulary, 64, eos_token_id=vocabulary - 1)),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "words"),
            unet=small_unet(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)


def hooked(unet: UNet2DConditionModel, layers: tuple[str, ...], *inputs: Any, **named: Any) -> Mapping[str, Tensor]:
    """What comes out of blocks and their parts in diffusers' own whole forward pass."""
    found: dict[str, Tensor] = {}
    for layer in layers:
        block, _, part = layer.partition(".")
        module = unet.up_blocks[int(block) - 1]
        if part:
            inner = getattr(module, "attentions", None) or module.resnets
            module = inner[int(part) - 1]

        def keep(_: object, __: object, output: Any, layer: str = layer) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(keep)
    with torch.no_grad():
        unet(*inputs, **named)
    return found
