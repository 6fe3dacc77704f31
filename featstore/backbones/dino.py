"""DINOv2: where one lies and the shapes that follow from its configuration, and its network: tokens that condition a
cpm, and patch maps that are matched, alone or fused with the UNet's.

A patch map is the last layer's patch tokens after its normalisation, of the whole image as a square: the frame of the
diffusion model's images, so that cells of both lie over the same pixels. The fusion is that of SD4Match's code (a layer
of the UNet and DINOv2, each cell normalised, 0.5 and 0.5, concatenated), with these differences:

- SD4Match hands DINOv2 the diffusion model's pixels, in [-1, 1]; here it gets ImageNet's statistics, as in training.
- SD4Match resizes those pixels again, to 14 a cell of the UNet's map (672 for 48 cells: `--dino-size 672`); here the
  file's image is resized once, by default to sd-dino's 840 pixels, 60 cells, and the coarser map is upsampled.
- SD4Match's fused maps correlate to (cos + cos) / 4; ours, normalised once more, to (cos + cos) / 2. Nearest neighbours
  are the same; its softmax at a temperature of 0.04 is ours at 0.08.

From sd-dino (Zhang et al.) there is the size alone: it pads images to squares, takes the tokens before the last
normalisation, and reduces the UNet's layers by a PCA of each pair.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from featstore.backbones.base import Asked, Compute, LayerShape, ModelLocation, NetworkName, saying_batch_size
from featstore.backbones.locate import asking_hub, cached_snapshot, files_on_hub
from featstore.backbones.model_file import Whole, check_folder, checked_fingerprint, parsed, read_object
from featstore.errors import ModelError

LAYER = "dino"

HUB_NAME = "facebook/dinov2-base"
"""DINOv2-ViT-B/14, SD4Match's."""

SUBFOLDER = "dinov2"
"""Where a model's folder may bring a DINOv2 of its own, as the demo model does."""

USUAL_SIDE = 60
"""Patches a side of a patch map: sd-dino's, 840 pixels of a patch of 14."""

RELEASED_SIDE = 37
"""Patches a side that the released DINOv2s were trained on at last, 518 pixels. Smaller ones are not taken beyond their
own."""

_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"]


@dataclass(frozen=True, slots=True)
class DinoShape:
    """What a DINOv2's configuration says.

    hidden_size: channels of a patch's token. patch_size: its side in pixels. image_size: side in pixels of the images
    that it was trained on.
    """

    hidden_size: Whole
    patch_size: Whole
    image_size: Whole

    @property
    def usual_size(self) -> int:
        """Side in pixels of the images whose patch maps are made where nobody says otherwise."""
        own = self.image_size // self.patch_size
        return self.patch_size * (USUAL_SIDE if own >= RELEASED_SIDE else own)

    def side(self, size: int) -> int:
        """Patches a side of images of `size` pixels a side. Raises `ModelError` where they do not come out even."""
        side, rest = divmod(size, self.patch_size)
        if rest or side < 1:
            near = max(round(size / self.patch_size), 1) * self.patch_size
            raise ModelError(
                f"Images of {size} pixels a side are not made of DINOv2's patches of {self.patch_size}: take a "
                f"multiple of {self.patch_size}, e.g. --dino-size {near}."
            )
        return side


@dataclass(frozen=True, slots=True)
class DinoBackbone:
    """A DINOv2 at hand (a `featstore.backbones.base.Backbone`), whose one layer is its patch map."""

    name: NetworkName
    folder: Path
    shape: DinoShape

    @property
    def image_size(self) -> int:
        """See `Backbone.image_size`."""
        return self.shape.usual_size

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        """See `Backbone.layers`."""
        side = self.shape.side(image_size)
        about = f"; images resized to {image_size} pixels, DINOv2 {self.name.id}"
        return {LAYER: LayerShape(LAYER, self.shape.hidden_size, side, image_size // side, about)}

    def load(self, compute: Compute, layers: Sequence[str] = ()) -> "Dino":  # noqa: ARG002  (there is one)
        """See `Backbone.load`."""
        return load_dino(self.folder, compute.device, compute.dtype)


def open_backbone(asked: Asked, model: ModelLocation) -> DinoBackbone:
    """See `featstore.backbones.base.Family.open_backbone`; no weights are loaded."""
    name, folder = locate_dino(asked.name, model)
    return DinoBackbone(name, folder, read_shape(folder))


def usual_ids(model_id: str) -> tuple[str, ...]:
    """See `featstore.backbones.base.Family.usual_ids`."""
    return HUB_NAME, f"{model_id}/{SUBFOLDER}"


def locate_dino(name: str | None, model: ModelLocation) -> tuple[NetworkName, Path]:
    """A DINOv2's name and folder: that of `name` (a folder or a hub name); where none is said the one that the model's
    folder brings, else `facebook/dinov2-base`. Raises `ModelError` where it is out of reach, or its weights are not
    those of its configuration."""
    wanted = name or HUB_NAME
    folder = Path(wanted).expanduser()
    if name is None and (model.folder / SUBFOLDER).is_dir():
        wanted, folder = f"{model.id}/{SUBFOLDER}", model.folder / SUBFOLDER
    elif folder.is_dir():
        wanted = str(folder.resolve())
    else:
        found = cached_snapshot(wanted, None, _FILES)
        # a download that broke off goes on
        folder = _download(wanted) if found is None or _missing(found) else found
    return NetworkName(wanted, _checked(folder)), folder


def read_shape(folder: Path) -> DinoShape:
    """What a DINOv2's configuration says. Raises `ModelError` where it cannot be read or is another network's."""
    path = folder / "config.json"
    config = read_object(path, "a DINOv2's configuration")
    if (kind := config.get("model_type")) != "dinov2":  # transformers would load others, without weights unknown to it
        raise ModelError(f"{folder} holds a network of the type {kind!r}: name a DINOv2 (type 'dinov2') with --dino.")
    return parsed(DinoShape, config, path)


def _missing(folder: Path) -> list[str]:
    return [file for file in _FILES if not (folder / file).exists()]


def _checked(folder: Path) -> str:
    """The fingerprint of a DINOv2's folder, if its weights are those of its configuration."""
    missing = _missing(folder)
    if missing:
        raise ModelError(
            f"{folder} is no DINOv2 in transformers' layout: {', '.join(missing)} is missing (a variant, such as "
            "model.fp16.safetensors, is to be renamed; pickles are never read, write them anew with save_pretrained)."
        )
    check_folder(folder)
    read_shape(folder)

    def check() -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.weights import check_dino

        check_dino(folder)

    return checked_fingerprint(folder, (".",), check)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    if os.path.lexists(name):
        raise ModelError(f"{name} is a file; a folder is needed, with {', '.join(_FILES)}.")
    if name.count("/") != 1:
        raise ModelError(f"There is no DINOv2 {name!r}: it is neither a folder nor a hub name owner/model.")
    with asking_hub(name, None, f"a folder with {', '.join(_FILES)} works in place of the name: say where with --dino"):
        files_on_hub(name, None)
        return Path(snapshot_download(name, allow_patterns=_FILES))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what DINOv2 was trained with."""


class Dino:
    """A DINOv2, frozen, with its own preprocessing: resize, centre crop, ImageNet statistics."""

    def __init__(self, network: Any, processor: Any) -> None:
        self._network, self._processor = network, processor

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """(1 + patches, width) of an image's tokens, the class token first."""
        config = self._network.config
        side = self._processor.crop_size["height"] // config.patch_size
        return 1 + side * side, config.hidden_size

    def tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Tokens (b, 1 + patches, width), float32 on the CPU, of RGB pictures of any size."""
        with torch.no_grad():
            return self._run(self._processor(list(pictures), return_tensors="pt").pixel_values).float().cpu()

    def features(self, inputs: Tensor, *_: Any, **__: Any) -> Mapping[str, Tensor]:  # knows neither noise nor text
        """Patch maps (b, C, side, side) of square pictures (b, 3, S, S) in [-1, 1], S a multiple of the patch: the
        tokens of the last layer after its normalisation, without the class token. Position embeddings are interpolated
        to the side."""
        side = inputs.shape[-1] // self._network.config.patch_size
        patches = self._run(with_imagenet_statistics(inputs))[:, 1:]  # (b, side * side, C)
        return {LAYER: patches.transpose(1, 2).unflatten(2, (side, side))}

    def _run(self, pixels: Tensor) -> Tensor:
        weights = next(self._network.parameters())
        with saying_batch_size(len(pixels)):
            found: Tensor = self._network(pixels.to(weights)).last_hidden_state
        return found


def with_imagenet_statistics(pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in [-1, 1] as DINOv2 takes them: in [0, 1], less ImageNet's mean, over its deviation."""
    # (3, 1, 1) each
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return ((pixels + 1) / 2 - mean) / deviation


def load_dino(folder: Path, device: torch.device, dtype: torch.dtype) -> Dino:
    """Load it. Raises `ModelError` where its files are not what they should be."""
    # only now: the libraries take seconds to load
    from transformers import BitImageProcessorPil, Dinov2Model

    from featstore.backbones.weights import load_network, refusing

    network = load_network(Dinov2Model, folder, dtype)
    with refusing(f"{folder} cannot be loaded as a DINOv2"):
        processor = BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return Dino(network.to(device), processor)
