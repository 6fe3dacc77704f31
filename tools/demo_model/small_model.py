"""A real CLIP tokenizer with a vocabulary of a few hundred tokens, for the small model: every byte can be written, and
the words of the demo's captions are single tokens, as they are in CLIP's own vocabulary."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, Dinov2Config, Dinov2Model

WORDS = ("a", "photo", "of", "bird", "car", "person", "fish")
"""Words that are one token each."""

POSITIONS = 77
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"
END_OF_WORD = "</w>"


def write_tokenizer(folder: Path) -> int:
    """Writes vocab.json, merges.txt and the two json files that `CLIPTokenizer.from_pretrained` reads into `folder`.

    Returns the size of the vocabulary; as in CLIP, its last two ids are the start and the end token, and the padding
    token "!" is id 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges(WORDS)
    letters = _byte_letters()
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(pair) for pair in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": PAD}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": POSITIONS,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    merge_lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(merge_lines) + "\n")
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
    _write(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    return len(vocabulary)


def _byte_letters() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes, in the order of CLIP's vocabulary ("!" first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def _merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """The merges that build each word from its left end; merges that words have in common are listed once."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*list(word[:-1]), word[-1] + END_OF_WORD]
        built = parts[0]
        for part in parts[1:]:
            merges[(built, part)] = None
            built += part
    return list(merges)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


PICTURE = 128
LATENT_CHANNELS = 4
LATENT_SIDE = 32
TEXT_WIDTH = 64
DINO_FOLDER = "dinov2"
"""The sub-folder of the tiny DINOv2, which is no component of the pipeline."""

_LIBRARIES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


def write_small_model(folder: Path, *, seed: int, dtype: torch.dtype = torch.float16) -> None:
    """Writes a complete model with random weights into `folder`, made where missing: loadable by
    `diffusers.StableDiffusionPipeline.from_pretrained(folder)`.

    seed: the weights are a function of it alone; torch's global generator is left as it was.
    dtype: of the stored weights.
    """
    vocabulary = write_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, unet = small_vae(), small_unet()
        text_encoder, dino = small_text_encoder(vocabulary), small_dino()
    write_components(folder, vae=vae, unet=unet, text_encoder=text_encoder, dino=dino, dtype=dtype)


def write_components(
    folder: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    dino: Dinov2Model,
    dtype: torch.dtype,
) -> None:
    """Writes the networks, converted to `dtype` in place, with scheduler, DINOv2's preprocessor and model_index.json.
    The tokenizer is written by `write_tokenizer`."""
    vae.to(dtype).save_pretrained(folder / "vae")
    unet.to(dtype).save_pretrained(folder / "unet")
    text_encoder.to(dtype).save_pretrained(folder / "text_encoder")
    dino.to(dtype).save_pretrained(folder / DINO_FOLDER)
    small_scheduler().save_pretrained(folder / "scheduler")
    _write_json(folder / DINO_FOLDER / "preprocessor_config.json", _dino_preprocessing())
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.0", **_LIBRARIES}
    _write_json(folder / "model_index.json", {**index, "requires_safety_checker": False})


def small_vae(*, scaling_factor: float = 0.18215) -> AutoencoderKL:
    """Pictures (b, 3, 128, 128) in [-1, 1] to latents (b, 4, 32, 32). Weights from torch's global generator."""
    channels = (16, 32, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PICTURE,
        scaling_factor=scaling_factor,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def small_unet() -> UNet2DConditionModel:
    """Latents (b, 4, 32, 32), a timestep and prompt embeddings (b, 77, 64) to v (b, 4, 32, 32), float32."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        # diffusers' name misleads: these are numbers of heads, each of 16 channels
        attention_head_dim=(2, 4, 8, 8),
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        norm_num_groups=8,
    )


def small_text_encoder(vocabulary: int) -> CLIPTextModel:
    """Token ids (b, 77) to prompt embeddings (b, 77, 64): a causal CLIP of two layers.

    vocabulary: number of tokens; the last two are the start and the end token, token 0 is padding.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            hidden_act="gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        )
    )


def small_dino() -> Dinov2Model:
    """Pictures (b, 3, 224, 224) to a class token and 256 patch tokens (b, 257, 96)."""
    return Dinov2Model(
        Dinov2Config(image_size=224, patch_size=14, hidden_size=96, num_hidden_layers=4, num_attention_heads=3)
    )


def small_scheduler() -> DDIMScheduler:
    """SD 2-1's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _dino_preprocessing() -> dict[str, object]:
    """DINOv2's own: shortest side to 256, centre crop 224, ImageNet statistics."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
