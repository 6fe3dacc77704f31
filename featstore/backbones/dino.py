"""DINOv2 through transformers: the tokens that condition a cpm's prompts, and patch maps that are matched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import BitImageProcessorPil, Dinov2Model

from featstore.backbones.memory import saying_batch_size
from featstore.backbones.quiet import quiet_libraries
from featstore.backbones.weights import PUBLISHED, check_loaded
from featstore.errors import ModelError
from featstore.plain_text import one_line

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what DINOv2 was trained with."""


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

    def tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Tokens (b, 1 + patches, width), float32 on the CPU, of RGB pictures of any size."""
        return self._run(self._processor(list(pictures), return_tensors="pt").pixel_values)

    def patch_maps(self, pixels: Tensor) -> Tensor:
        """Patch maps (b, C, side, side), float32 on the CPU, of square pictures (b, 3, S, S) in [-1, 1], S a multiple
        of the patch: the tokens of the last layer after its normalisation, without the class token. Position embeddings
        are interpolated to the side."""
        side = pixels.shape[-1] // self._network.config.patch_size
        patches = self._run(with_imagenet_statistics(pixels))[:, 1:]  # (b, side * side, C)
        return patches.transpose(1, 2).unflatten(2, (side, side))

    @torch.no_grad()
    def _run(self, pixels: Tensor) -> Tensor:
        weights = next(self._network.parameters())
        with saying_batch_size(len(pixels)):
            found: Tensor = self._network(pixels.to(weights)).last_hidden_state
        return found.float().cpu()


def with_imagenet_statistics(pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in [-1, 1] as DINOv2 takes them: in [0, 1], less ImageNet's mean, over its deviation."""
    mean, deviation = (
        pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
    )  # (3, 1, 1)
    return ((pixels + 1) / 2 - mean) / deviation


def load_dino(folder: Path, device: torch.device, dtype: torch.dtype) -> Dino:
    """Load it. Raises `ModelError` where its files are not what they should be."""
    try:
        with quiet_libraries():
            network, loaded = Dinov2Model.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True
            )
            processor = BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded as a DINOv2: {one_line(error)}") from error
    check_loaded(folder, loaded, PUBLISHED["dinov2"])
    return Dino(network.to(device).eval().requires_grad_(False), processor)
