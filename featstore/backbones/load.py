"""Load the parts of a Stable Diffusion that dualsd needs, each on its own and only when it is needed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from featstore.backbones.config import force_upcast
from featstore.backbones.location import ModelLocation
from featstore.backbones.quiet import quiet_libraries
from featstore.backbones.weights import PUBLISHED, check_loaded
from featstore.errors import ModelError


def load_vae_encoder(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE without its decoder, frozen. It stays in float32 unless its configuration says that float16 is safe."""
    if force_upcast(location):
        dtype = torch.float32
    vae: AutoencoderKL = _load(AutoencoderKL, location, "vae", dtype)
    vae.decoder = None
    vae.post_quant_conv = None
    return vae.to(device).eval().requires_grad_(False)


def load_unet(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, frozen; `featstore.backbones.unet.CutUNet` takes from it what it does not need."""
    return _load(UNet2DConditionModel, location, "unet", dtype).to(device).eval().requires_grad_(False)


def load_text_encoder(location: ModelLocation, device: torch.device, dtype: torch.dtype) -> CLIPTextModel:
    """The text encoder, frozen."""
    return _load(CLIPTextModel, location, "text_encoder", dtype).to(device).eval().requires_grad_(False)


def load_tokenizer(location: ModelLocation) -> CLIPTokenizer:
    """The tokenizer of the text encoder."""
    with _speaking_of(location, "tokenizer"):
        return CLIPTokenizer.from_pretrained(location.folder, subfolder="tokenizer", local_files_only=True)


def _load(kind: Any, location: ModelLocation, component: str, dtype: torch.dtype) -> Any:
    """A component's network. Raises `ModelError` where its files lack a tensor, or hold another."""
    with _speaking_of(location, component):
        network, loaded = kind.from_pretrained(
            location.folder,
            subfolder=component,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
        )
    check_loaded(location.folder / component, loaded, PUBLISHED[component])
    return network


@contextlib.contextmanager
def _speaking_of(location: ModelLocation, component: str) -> Iterator[None]:
    """Turn what the libraries raise about a broken component into a sentence of ours, and quiet their chatter."""
    try:
        with quiet_libraries():
            yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{location.folder}/{component} cannot be loaded: {reason}") from error
