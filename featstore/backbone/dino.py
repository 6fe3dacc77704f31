"""DINOv2 through transformers: the patch tokens that condition a cpm's prompts."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from featstore.backbone.dino_name import DinoName
from featstore.backbone.fingerprint import default_memory, fingerprint
from featstore.backbone.location import ModelLocation, probe_hub
from featstore.backbone.memory import saying_batch_size
from featstore.backbone.quiet import quiet_libraries
from featstore.errors import ModelError
from featstore.plain_text import one_line

HUB_NAME = "facebook/dinov2-base"
"""DINOv2-ViT-B/14, SD4Match's."""

SUBFOLDER = "dinov2"
"""Where a model's folder may bring a DINOv2 of its own, as the demo model does."""

_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


class Dino:
    """A DINOv2, frozen, with its own preprocessing: resize, centre crop, ImageNet statistics."""

    def __init__(self, network: Dinov2Model, processor: Any) -> None:
        self._network, self._processor = network, processor

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """(1 + patches, width) of an image's tokens, the class token first."""
        config = self._network.config
        side = self._processor.crop_size["height"] // config.patch_size
        return 1 + side * side, config.hidden_size

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Tokens (b, 1 + patches, width), float32 on the CPU, of RGB pictures of any size."""
        pixels = self._processor(list(pictures), return_tensors="pt").pixel_values
        weights = next(self._network.parameters())
        with saying_batch_size(len(pictures)):
            found: Tensor = self._network(pixels.to(weights)).last_hidden_state
        return found.float().cpu()


def locate_dino(name: str | None, model: ModelLocation) -> tuple[DinoName, Path]:
    """A DINOv2's name and folder: that of `name` (a folder or a hub name); where none is said the one that the model's
    folder brings, else `facebook/dinov2-base`. Raises `ModelError` where it is out of reach."""
    if name is None and (model.folder / SUBFOLDER / "config.json").is_file():
        folder = model.folder / SUBFOLDER
        return DinoName(f"{model.id}/{SUBFOLDER}", _fingerprint(folder)), folder
    wanted = name or HUB_NAME
    folder = Path(wanted).expanduser()
    if not folder.is_dir():
        folder = _download(wanted)
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{folder} is no DINOv2 in transformers' layout: {', '.join(missing)} is missing.")
    return DinoName(str(folder.resolve()) if Path(wanted).is_dir() else wanted, _fingerprint(folder)), folder


def load_dino(folder: Path, device: torch.device, dtype: torch.dtype) -> Dino:
    """Load it. Raises `ModelError` where its files are not what they should be."""
    try:
        with quiet_libraries():
            network = Dinov2Model.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=dtype)
            processor = BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as a DINOv2: {one_line(error)}") from error
    return Dino(network.to(device).eval().requires_grad_(False), processor)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, FileNotFoundError, HFValidationError):
        return Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    if name.count("/") != 1:
        raise ModelError(f"There is no DINOv2 {name!r}: it is neither a folder nor a hub name owner/model.")
    probe_hub(name)
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"Downloading {name!r} failed: {error}") from error


def _fingerprint(folder: Path) -> str:
    return fingerprint(folder, (".",), default_memory())
