"""What kind of model a folder holds, by its configurations: a Stable Diffusion whose UNet runs on latents, a timestep
and the text encoder's embeddings, or something else, which is refused by what it is."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from featstore.backbones.model_file import read_object
from featstore.errors import ModelError
from featstore.plain_text import shown

TAKE = "take a Stable Diffusion 1.x or 2.x, e.g. --model sd2-1 or sd1-5"

_TRANSFORMER = "a transformer, which has no UNet and none of its layers"
FAMILIES = {
    "StableDiffusionXL": "SDXL, whose UNet takes a second text encoder's embedding and an image size as well",
    "StableDiffusion3": f"Stable Diffusion 3, {_TRANSFORMER}",
    "Flux": f"FLUX, {_TRANSFORMER}",
    "PixArt": f"PixArt, {_TRANSFORMER}",
    "HunyuanDiT": f"Hunyuan-DiT, {_TRANSFORMER}",
    "Kandinsky": "Kandinsky, whose UNet takes embeddings of images in place of text",
    "StableCascade": "Stable Cascade, whose UNet takes embeddings of images",
    "Wuerstchen": "Wuerstchen, whose UNet takes embeddings of images",
    "StableUnCLIP": "Stable unCLIP, whose UNet takes embeddings of images as well",
    "StableDiffusionImageVariation": "an image variation model, whose UNet takes embeddings of images in place of text",
    "StableDiffusionDepth2Img": "a depth model, whose UNet takes a depth map beside the latents",
    "StableDiffusionUpscale": "an upscaler, whose UNet takes a small picture beside the latents",
    "StableDiffusionLatentUpscale": "an upscaler, whose UNet takes small latents beside the latents",
    "StableDiffusionInstructPix2Pix": "InstructPix2Pix, whose UNet takes a second picture beside the latents",
    "StableVideoDiffusion": "Stable Video Diffusion, whose UNet takes frames of a film",
    "IF": "DeepFloyd IF, whose UNet takes pixels in place of latents",
}
"""By the start of the pipeline's name in model_index.json: what cannot be run here, and why."""

_CHANNELS = {
    3: "a model of pixels in place of latents, such as DeepFloyd IF",
    5: "a depth model (latents, depth map)",
    7: "an upscaler (latents, small picture)",
    8: "an editor such as InstructPix2Pix (latents, a second picture's) or a latent upscaler",
    9: "an inpainting model (latents, mask, masked picture)",
}
"""Of a UNet whose latents have 4: what it seems to be."""

_MORE_INPUTS = {
    "class_embed_type": "class labels (an upscaler or unCLIP)",
    "num_class_embeds": "class labels (an upscaler)",
    "addition_embed_type": "a further embedding (as SDXL, Kandinsky or DeepFloyd IF)",
    "encoder_hid_dim": "embeddings that it projects first (as Kandinsky or DeepFloyd IF)",
    "encoder_hid_dim_type": "embeddings that it projects first (as Kandinsky or DeepFloyd IF)",
    "time_cond_proj_dim": "an embedding of the guidance scale (distilled, as LCM)",
}
"""Settings of UNets that take more than latents, a timestep and text, and what they take."""


def read_index(folder: Path) -> Mapping[str, Any]:
    """A model's list of components (`model_index.json`); empty where there is none, which dualsd does without."""
    path = folder / "model_index.json"
    return read_object(path, "a list of components") if path.exists() else {}


def check_pipeline(where: str, index: Mapping[str, Any], names: Set[str]) -> None:
    """Raise `ModelError` where a model is of another kind by its list of components or its files' names.

    where: its folder or page. index: see `read_index`. names: of its files, with their folder.
    """
    name = str(index.get("_class_name", ""))
    for start, what in FAMILIES.items():
        if name.startswith(start):
            raise ModelError(f"{where} holds {what} ({shown(name)}): {TAKE}.")
    folders = {file.partition("/")[0] for file in names if "/" in file}
    listed = {key for key, value in index.items() if value not in (None, [None, None])} if index else folders
    said = f" ({shown(name)})" if name else ""
    if "transformer" in listed or ("transformer" in folders and "unet" not in folders):
        raise ModelError(f"{where} holds {_TRANSFORMER}{said}: {TAKE}.")
    if "text_encoder_2" in listed:
        raise ModelError(f"{where} holds a model of two text encoders, as SDXL{said}: {TAKE}.")
    if "prior" in listed or "prior_prior" in listed:
        raise ModelError(f"{where} holds a model whose UNet takes embeddings of images{said}: {TAKE}.")


def check_configurations(folder: Path) -> None:
    """Raise `ModelError` where the networks of a folder in diffusers' layout are others than Stable Diffusion's, or do
    not belong together. Only their configurations are read."""
    vae, unet, encoder = (
        read_object(folder / name / "config.json", "a diffusers configuration")
        for name in ("vae", "unet", "text_encoder")
    )
    for name, config, wanted in (("vae", vae, "AutoencoderKL"), ("unet", unet, "UNet2DConditionModel")):
        found = config.get("_class_name", wanted)
        if found != wanted:
            raise ModelError(f"{folder / name} holds a network of the class {shown(str(found))}, not {wanted}: {TAKE}.")
    kind = encoder.get("model_type", "clip_text_model")
    if kind != "clip_text_model":
        raise ModelError(
            f"{folder / 'text_encoder'} holds a network of the type {shown(str(kind))}, not CLIP's text encoder "
            f"(clip_text_model): {TAKE}."
        )
    for name, config in (("vae", vae), ("unet", unet), ("text_encoder", encoder)):
        if config.get("quantization_config") is not None:
            raise ModelError(f"{folder / name} holds quantised weights: take a model that is not quantised.")
    if (colours := vae.get("in_channels", 3)) != 3:
        raise ModelError(
            f"{folder / 'vae'} encodes pictures of {colours} channels, not of red, green and blue: {TAKE}."
        )
    _check_unet(folder / "unet", unet, vae.get("latent_channels", 4), encoder.get("hidden_size", 512))


def _check_unet(folder: Path, unet: Mapping[str, Any], latent_channels: object, text_width: object) -> None:
    """Raise `ModelError` unless a UNet runs on latents, a timestep and text embeddings, and on nothing else."""
    channels = unet.get("in_channels", 4)
    if channels != latent_channels:
        seems = _CHANNELS.get(channels) if isinstance(channels, int) and latent_channels == 4 else None
        raise ModelError(
            f"{folder} takes {channels} channels, but the VAE's latents have {latent_channels}"
            f"{f': it seems to be {seems}' if seems else ''}: {TAKE}."
        )
    for key, takes in _MORE_INPUTS.items():
        if unet.get(key) is not None:
            raise ModelError(
                f"{folder} takes {takes} beside latents, timestep and text ({key} {shown(str(unet[key]))}): {TAKE}."
            )
    if (times := unet.get("time_embedding_type", "positional")) != "positional":
        raise ModelError(f"{folder} takes no timesteps but logarithms of noise ({shown(str(times))}): {TAKE}.")
    width = unet.get("cross_attention_dim", 1280)
    for own in width if isinstance(width, list) else [width]:
        if own != text_width:
            raise ModelError(
                f"{folder} takes text embeddings of width {own} (cross_attention_dim), but the text encoder beside it "
                f"makes {text_width}: take UNet and text encoder of one model (SD 1.x has 768, SD 2.x 1024)."
            )
