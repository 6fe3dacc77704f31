"""DINOv2, with registers or without: where one lies and the shapes that follow from its configuration, and its network:
tokens that condition a cpm, and patch maps that are matched, alone or fused with the UNet's. DINOv3 is run the same way
(`featstore.backbones.dinov3`).

A patch map is a block's patch tokens after the last normalisation, of the whole image as a square: the frame of the
diffusion model's images, so that cells of both lie over the same pixels. `dino` is that of the last block, `dino:9`
that of the ninth, counted from 1. The fusion is that of SD4Match's code (a layer of the UNet and DINOv2, each cell
normalised, 0.5 and 0.5, concatenated), with these differences:

- SD4Match hands DINOv2 the diffusion model's pixels, in [-1, 1]; here it gets ImageNet's statistics, as in training.
- SD4Match resizes those pixels again, to 14 a cell of the UNet's map (672 for 48 cells: `--dino-size 672`); here the
  file's image is resized once, by default to sd-dino's 840 pixels, 60 cells, and the coarser map is upsampled.
- SD4Match's fused maps correlate to (cos + cos) / 4; ours, normalised once more, to (cos + cos) / 2. Nearest neighbours
  are the same; its softmax at a temperature of 0.04 is ours at 0.08.

From sd-dino (Zhang et al.) there is the size alone: it pads images to squares, takes the tokens before the last
normalisation, and reduces the UNet's layers by a PCA of each pair.

`--dino-debias N` takes out of every descriptor what tells where it stands in the image, as INSID3 does (arXiv
2603.28480; visinf/INSID3 0f15807, models/insid3.py): the span of the first N left singular vectors of a black image's
own map, its cells normalised and centred. INSID3 takes 500 of DINOv3-L's 1,024.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from featstore.backbones.base import (
    Asked,
    Compute,
    Condition,
    LayerShape,
    ModelLocation,
    NetworkName,
    saying_batch_size,
)
from featstore.backbones.locate import asking_hub, cached_snapshot, files_on_hub
from featstore.backbones.model_file import Count, Whole, check_folder, checked_fingerprint, parsed, read_object
from featstore.errors import ModelError


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation of DINO. layer: how its last patch map is typed, and the first part of a block's name. title: its
    own name. hub_name: of the usual one. kinds: the types of its networks in a configuration. files: that a folder of
    one must hold."""

    layer: str
    title: str
    hub_name: str
    kinds: tuple[str, ...]
    files: tuple[str, ...]


DINOV2 = Generation(
    "dino",
    "DINOv2",
    "facebook/dinov2-base",  # DINOv2-ViT-B/14, SD4Match's
    ("dinov2", "dinov2_with_registers"),
    ("config.json", "preprocessor_config.json", "model.safetensors"),
)
HUB_NAME = DINOV2.hub_name

SUBFOLDER = "dinov2"
"""Where a model's folder may bring a DINOv2 of its own, as the demo model does."""

USUAL_SIDE = 60
"""Patches a side of a patch map: sd-dino's, 840 pixels of a patch of 14."""

RELEASED_SIDE = 37
"""Patches a side that the released DINOv2s were trained on at last, 518 pixels. Smaller ones are not taken beyond their
own; positions that are rotations, as DINOv3's, know no such end."""


@dataclass(frozen=True, slots=True)
class DinoShape:
    """What a DINO's configuration says.

    channels, strides: of each block's map, the strides in pixels. prefix: tokens before the patches' (the class token
    and registers). usual_size: side in pixels of the images whose patch maps are made where nobody says otherwise.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    prefix: int
    usual_size: int

    @property
    def hidden_size(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]

    @property
    def patch_size(self) -> int:
        """Pixels a side of a cell of the last map."""
        return self.strides[-1]

    def side(self, size: int) -> int:
        """Cells a side of the last map of images of `size` pixels a side. Raises `ModelError` where they do not come
        out even."""
        patch = self.patch_size
        if size < patch or size % patch:
            near = max(round(size / patch), 1) * patch
            raise ModelError(
                f"Images of {size} pixels a side are not made of this DINO's patches of {patch}: take a multiple of "
                f"{patch}, e.g. --dino-size {near}."
            )
        return size // patch


@dataclass(frozen=True, slots=True)
class _Transformer:
    """Of a vision transformer's configuration what shapes follow from."""

    hidden_size: Whole
    patch_size: Whole
    image_size: Whole
    num_hidden_layers: Whole = 12
    num_register_tokens: Count = 0

    def shape(self, kind: str) -> DinoShape:
        """Position embeddings that are learned end somewhere, see `RELEASED_SIDE`."""
        own = self.image_size // self.patch_size
        side = own if own < RELEASED_SIDE and kind in DINOV2.kinds else USUAL_SIDE
        blocks = self.num_hidden_layers
        registers = 4 if kind == "dinov2_with_registers" and not self.num_register_tokens else self.num_register_tokens
        return DinoShape(
            (self.hidden_size,) * blocks, (self.patch_size,) * blocks, 1 + registers, self.patch_size * side
        )


@dataclass(frozen=True, slots=True)
class _ConvNeXt:
    """The same of a ConvNeXt: its stem takes 4 pixels a cell, and each further stage twice as many."""

    hidden_sizes: tuple[Whole, ...] = (96, 192, 384, 768)

    def shape(self) -> DinoShape:
        """A cell of the last but one stage is 16 pixels, as a patch of the transformers."""
        strides = tuple(4 * 2**stage for stage in range(len(self.hidden_sizes)))
        return DinoShape(self.hidden_sizes, strides, 0, 16 * USUAL_SIDE)


@dataclass(frozen=True, slots=True)
class DinoBackbone:
    """A DINO at hand (a `featstore.backbones.base.Backbone`), whose layers are its blocks' patch maps. debias: how many
    directions of the descriptors are taken out, see above."""

    generation: Generation
    name: NetworkName
    folder: Path
    shape: DinoShape
    debias: int = 0

    @property
    def image_size(self) -> int:
        """See `Backbone.image_size`."""
        return self.shape.usual_size

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        """See `Backbone.layers`."""
        self.shape.side(image_size)  # raises for a size that does not come out even
        removed = f", {self.debias} directions of position taken out" if self.debias else ""
        about = f"; images resized to {image_size} pixels, {self.generation.title} {self.name.id}{removed}"
        blocks = [*zip(self.shape.channels, self.shape.strides, strict=True)]
        named = {f"{self.generation.layer}:{index}": own for index, own in enumerate(blocks, start=1)}
        return {
            name: LayerShape(name, channels, image_size // stride, stride, about)
            for name, (channels, stride) in {self.generation.layer: blocks[-1], **named}.items()
        }

    def load(self, compute: Compute, layers: Sequence[str] = ()) -> "Dino":
        """See `Backbone.load`."""
        network = load_dino(self.folder, compute.device, compute.dtype, self.shape, self.debias)
        network.cut(layers or [self.generation.layer])
        return network


def open_backbone(asked: Asked, model: ModelLocation) -> DinoBackbone:
    """See `featstore.backbones.base.Family.open_backbone`; no weights are loaded."""
    return open_dino(DINOV2, asked, *locate_dino(asked.name, model))


def open_dino(generation: Generation, asked: Asked, name: NetworkName, folder: Path) -> DinoBackbone:
    """A located one. Raises `ModelError` where more directions are to be taken out than there are."""
    shape = read_shape(folder, generation)
    if asked.debias >= min(shape.channels):
        raise ModelError(
            f"--dino-debias {asked.debias} leaves nothing of the {min(shape.channels)} channels of {name.id}: take "
            "fewer (INSID3 takes 500 of 1,024)."
        )
    return DinoBackbone(generation, name, folder, shape, asked.debias)


def usual_ids(model_id: str) -> tuple[str, ...]:
    """See `featstore.backbones.base.Family.usual_ids`."""
    return HUB_NAME, f"{model_id}/{SUBFOLDER}"


def locate_dino(name: str | None, model: ModelLocation) -> tuple[NetworkName, Path]:
    """A DINOv2's name and folder: that of `name` (a folder or a hub name); where none is said the one that the model's
    folder brings, else `facebook/dinov2-base`. Raises `ModelError` where it is out of reach, or its weights are not
    those of its configuration."""
    own = model.folder / SUBFOLDER
    if name is None and own.is_dir():
        return NetworkName(f"{model.id}/{SUBFOLDER}", _checked(own, DINOV2)), own
    return locate_named(name or HUB_NAME, DINOV2)


def locate_named(wanted: str, generation: Generation) -> tuple[NetworkName, Path]:
    """The same of a folder or a hub name."""
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        wanted = str(folder.resolve())
    else:
        found = cached_snapshot(wanted, None, list(generation.files))
        # a download that broke off goes on
        folder = _download(wanted, generation) if found is None or _missing(found, generation) else found
    return NetworkName(wanted, _checked(folder, generation)), folder


def read_shape(folder: Path, generation: Generation = DINOV2) -> DinoShape:
    """What a DINO's configuration says. Raises `ModelError` where it cannot be read or is another network's."""
    path = folder / "config.json"
    config = read_object(path, f"a {generation.title}'s configuration")
    kind = config.get("model_type")
    if kind not in generation.kinds:  # transformers would load others, without weights unknown to it
        types = " or ".join(map(repr, generation.kinds))
        raise ModelError(
            f"{folder} holds a network of the type {kind!r}: name a {generation.title} (type {types}) with --dino."
        )
    if kind == "dinov3_convnext":
        return parsed(_ConvNeXt, config, path).shape()
    return parsed(_Transformer, config, path).shape(kind)


def _missing(folder: Path, generation: Generation) -> list[str]:
    return [file for file in generation.files if not (folder / file).exists()]


def _checked(folder: Path, generation: Generation) -> str:
    """The fingerprint of a DINO's folder, if its weights are those of its configuration."""
    missing = _missing(folder, generation)
    if missing:
        raise ModelError(
            f"{folder} is no {generation.title} in transformers' layout: {', '.join(missing)} is missing (a variant, "
            "such as model.fp16.safetensors, is to be renamed; pickles are never read, write them anew with "
            "save_pretrained)."
        )
    check_folder(folder)
    read_shape(folder, generation)

    def check() -> None:
        # only now: the libraries take seconds to load
        from featstore.backbones.weights import check_dino

        check_dino(folder)

    return checked_fingerprint(folder, (".",), check)


def _download(name: str, generation: Generation) -> Path:
    from huggingface_hub import snapshot_download

    files = ", ".join(generation.files)
    if os.path.lexists(name):
        raise ModelError(f"{name} is a file; a folder is needed, with {files}.")
    if name.count("/") != 1:
        raise ModelError(f"There is no {generation.title} {name!r}: it is neither a folder nor a hub name owner/model.")
    with asking_hub(name, None, f"a folder with {files} works in place of the name: say where with --dino"):
        files_on_hub(name, None)
        return Path(snapshot_download(name, allow_patterns=list(generation.files)))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of red, green and blue in [0, 1]: what DINOv2 was trained with."""


PLACES = {
    "dinov2": ("encoder.layer", "layernorm"),
    "dinov2_with_registers": ("encoder.layer", "layernorm"),
    "dinov3_vit": ("model.layer", "norm"),
    "dinov3_convnext": ("model.stages", "layer_norm"),
}
"""Where transformers keeps a network's blocks and its last normalisation, by its type."""


class Dino:
    """A DINO, frozen, with its own preprocessing: resize, centre crop, ImageNet statistics."""

    def __init__(self, network: Any, processor: Any, shape: DinoShape, debias: int = 0) -> None:
        self._network, self._processor, self._shape, self._debias = network, processor, shape, debias
        blocks, norm = PLACES[network.config.model_type]
        self._blocks: nn.ModuleList = network.get_submodule(blocks)
        self._norm: nn.Module = network.get_submodule(norm)
        self._positions: dict[tuple[str, int], Tensor] = {}

    def cut(self, layers: Sequence[str]) -> None:
        """Free the blocks behind the last that `layers` name; of a transformer, whose other parts do not depend on
        them."""
        if self._shape.prefix:
            del self._blocks[max(map(self._index, layers)) + 1 :]

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """(1 + patches, width) of an image's tokens, the class token first."""
        config = self._network.config
        side = self._processor.crop_size["height"] // config.patch_size
        return 1 + side * side, config.hidden_size

    def tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Tokens (b, 1 + patches, width), float32 on the CPU, of RGB pictures of any size; registers are left out."""
        with torch.no_grad():
            found = self._run(self._processor(list(pictures), return_tensors="pt").pixel_values)
        return torch.cat([found[:, :1], found[:, self._shape.prefix :]], dim=1).float().cpu()

    def features(
        self,
        inputs: Tensor,
        timestep: int | None,  # noqa: ARG002  (it knows neither noise nor text)
        condition: Condition | None,  # noqa: ARG002
        layers: Sequence[str],
    ) -> Mapping[str, Tensor]:
        """Patch maps (b, C, side, side) of square pictures (b, 3, S, S) in [-1, 1], S a multiple of the patch, see
        `Networks.features`: a transformer's after its last normalisation, a ConvNeXt's after it in its last stage
        alone. Position embeddings are interpolated to the side."""
        maps = self._maps(inputs, layers)
        return {layer: self._without_positions(layer, own, inputs) for layer, own in maps.items()}

    def _maps(self, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        found: dict[int, Tensor] = {}

        def keep(index: int) -> torch.utils.hooks.RemovableHandle:
            return self._blocks[index].register_forward_hook(
                lambda _block, _inputs, output: found.__setitem__(index, output)
            )

        handles = [keep(index) for index in {*map(self._index, layers)}]
        try:
            self._run(with_imagenet_statistics(inputs))
        finally:
            for handle in handles:
                handle.remove()
        return {layer: self._map(index, found[index], inputs) for layer in layers for index in [self._index(layer)]}

    def _map(self, index: int, output: Tensor, inputs: Tensor) -> Tensor:
        if self._shape.prefix == 0:  # (b, C, side, side) of a ConvNeXt
            last = index + 1 == len(self._shape.channels)
            return self._norm(output.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if last else output
        side = inputs.shape[-1] // self._shape.strides[index]
        patches = self._norm(output)[:, self._shape.prefix :]  # (b, side * side, C)
        return patches.transpose(1, 2).unflatten(2, (side, side))

    def _without_positions(self, layer: str, maps: Tensor, inputs: Tensor) -> Tensor:
        """The part of each descriptor that is orthogonal to those directions of a black image's."""
        if self._debias == 0:
            return maps
        key = layer, inputs.shape[-1]
        if key not in self._positions:
            black = self._maps(torch.full_like(inputs[:1], -1), [layer])[layer][0].flatten(1).float()  # (C, cells)
            units = nn.functional.normalize(black, dim=0)
            left = torch.linalg.svd(units - units.mean(dim=1, keepdim=True), full_matrices=False).U
            self._positions[key] = left[:, : self._debias]  # (C, N)
        basis = self._positions[key]
        cells = maps.float().flatten(2)  # (b, C, cells)
        return (cells - basis @ (basis.T @ cells)).unflatten(2, maps.shape[2:]).to(maps.dtype)

    def _index(self, layer: str) -> int:
        """Of a layer's block, counted from 0."""
        _, _, number = layer.partition(":")
        return int(number or len(self._shape.channels)) - 1

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


def load_dino(
    folder: Path, device: torch.device, dtype: torch.dtype, shape: DinoShape | None = None, debias: int = 0
) -> Dino:
    """Load it; shape: where it is known already. Raises `ModelError` where its files are not what they should be."""
    # only now: the libraries take seconds to load
    from transformers import BitImageProcessorPil

    from featstore.backbones.weights import dino_class, load_network, refusing

    network = load_network(dino_class(folder), folder, dtype)
    processor = None
    if network.config.model_type in DINOV2.kinds:
        with refusing(f"{folder} cannot be loaded as a DINOv2"):
            processor = BitImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return Dino(network.to(device), processor, shape or read_shape(folder), debias)
