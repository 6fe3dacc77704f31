"""Maps written out of a store: .npy files, or one safetensors file."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import LayerShape
from featstore.backbones.registry import family_of, is_other
from featstore.config import ExportConfig
from featstore.datasets.records import MIRRORED, ImageRecord
from featstore.errors import ExportError, ImageError
from featstore.files import open_whole, writing
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.distributed import WHOLE
from featstore.pipeline.needed import MadeMaps, require_maps
from featstore.pipeline.run_build import asked_maps
from featstore.plain_text import human_bytes
from featstore.progress import Progress, Silent, spell_bad, tell_shapes
from featstore.prompts.saved import save_torch
from featstore.store.store import Store
from matcher.configuration import LayerSpec
from matcher.errors import InputError
from matcher.maps import MapSource, images_ahead, read_ahead

_ALIGNMENT = 8


def write_float16(
    stream: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterator[NDArray[np.float16]],
    metadata: Mapping[str, str],
) -> None:
    """Write float16 tensors by name. arrays: one for each of `shapes`, of that shape and in that order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for (name, shape), array in zip(shapes.items(), arrays, strict=True):
        assert array.shape == shape, f"{name} is of another shape than its layer's other maps"
        stream.write(np.ascontiguousarray(array, dtype="<f2").data)


class Layout(Enum):
    """How maps lie in files."""

    FEATURES = "features"
    """One safetensors file of tensors `<image id>|<layer>`, (C, h, w) float16: `dualsd eval --features`."""
    SD4MATCH = "sd4match"
    """One `.pt` of a dictionary by SD4Match's identifiers (`cat-2008_000123`, of PF-Pascal with `-0`, mirrored `-1`),
    (1, C, h, w) float32: `featmap_dict` of its `test.py`."""
    DIFT = "dift"
    """A folder with a `<category>.pth` each: a dictionary by the image file's name, (1, C, h, w) float32, as DIFT's
    `eval_spair.py` writes and reads it."""
    DIFT_IMAGES = "dift-images"
    """A folder with a `<category>/<file stem>.pt` an image: a tensor (C, h, w) float32, as DIFT's `extract_dift.py`
    writes it."""

    @property
    def is_folder(self) -> bool:
        """Whether it takes several files."""
        return self in (Layout.DIFT, Layout.DIFT_IMAGES)

    @property
    def value_bytes(self) -> int:
        """Of a value of a map."""
        return 2 if self is Layout.FEATURES else 4


@dataclass(frozen=True, slots=True)
class Export:
    """What is written: maps of `images` at `layers` (without weights). dataset: its name. about: where the maps came
    from, for the record."""

    maps: MapSource
    images: Sequence[ImageRecord]
    layers: Sequence[LayerSpec]
    dataset: str
    about: Mapping[str, Any]


def export(what: Export, layout: Layout, out: Path, progress: Progress) -> int:
    """Write maps to a file or folder, of which each file appears whole or not at all.

    Args:
        what: The maps; of one layer for the `.pt` layouts, which have no place for a layer's name.
        layout: How they lie in files.
        out: The file, or the folder of a layout of several.
        progress: Told how far it is.

    Returns:
        The bytes of the maps' values.

    Raises:
        ExportError: Where there is no image, or `out` cannot be written.
        DiskFullError: Where the disk is full.
    """
    check_out(layout, out)
    if not what.images:
        raise ExportError(f"There is no image whose maps {out} could hold.")
    shapes = [tuple(what.maps.load(what.images[0].id, layer).shape) for layer in what.layers]
    size = len(what.images) * sum(int(np.prod(shape)) for shape in shapes) * layout.value_bytes
    progress.start("writing", len(what.images) * len(what.layers), "maps")
    if layout is Layout.FEATURES:
        _write_features(what, shapes, out, progress)
    else:
        _write_torch(what, layout, out, progress)
    return size


def check_out(layout: Layout, out: Path) -> None:
    """Raise `ExportError`, before any work is done, where a folder lies where a file is to be written, or the other way
    round, or where nothing can be written."""
    if out.exists() and out.is_dir() != layout.is_folder:
        kind, there = ("a folder", "a file") if layout.is_folder else ("a file", "a folder")
        raise ExportError(f"The layout {layout.value} writes {kind}, and {out} is {there}: name another --out.")
    folder = out.absolute() if layout.is_folder else out.absolute().parent
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ExportError(f"{out} cannot be written in {existing}: name another --out.")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. images: how many. bytes: of the maps' values. about: where the maps came from. bad: images that
    could not be read, and are left out."""

    out: Path
    layout: Layout
    images: int
    bytes: int
    about: Mapping[str, Any]
    bad: tuple[ImageError, ...]

    def to_json(self) -> dict[str, Any]:
        """As `dualsd cache export --json` writes it."""
        written = {"out": str(self.out), "layout": self.layout.value, "images": self.images, "bytes": self.bytes}
        return written | dict(self.about)


def export_maps(config: ExportConfig, progress: Progress | None = None) -> Exported:
    """Write a store's maps for other programs; those that it lacks are made first, and kept.

    Args:
        config: Which maps, of which images, and how they lie in files.
        progress: Who is told how far it is; None for nobody.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is; the first image's that cannot be read,
            unless `skip_bad`.
    """
    progress, layout, out = progress or Silent(), Layout(config.layout), config.out
    check_out(layout, out)
    asked = asked_maps(config, WHOLE, "cache export", progress)
    opened = asked.opened
    store, dataset = opened.store, opened.dataset
    layers = opened.layers(asked.wanted, [1.0] * len(asked.wanted) if opened.adapter is None else None)
    if layout is not Layout.FEATURES and len(layers) != 1:
        raise InputError(f"--layout {layout.value} holds one layer: name one with --layers, e.g. --layers 2.")
    check_unchanged(store, dataset, asked.images, progress)
    made = require_maps(store, dataset, asked.rows, asked.wanted, opened.request, progress)
    if made.bad and not config.skip_bad:
        raise made.bad[0]
    left = set(asked.images) - {error.image_id for error in made.bad}
    images = [image for image in dataset.images() if image.id in left]
    about = opened.describe(made.extractor, made.others)
    maps = opened.maps(made, layers)
    size = export(Export(maps, images, layers, dataset.name, about), layout, out, progress)
    tell_shapes(progress, (_stored_shape(store, made, *key) for key in asked.wanted))
    named = ",".join(layer.layer for layer in layers)
    progress.tell(f"{out}: {len(images)} images, layers {named}, {human_bytes(size)} in the layout {layout.value}")
    for line in spell_bad(made.bad):
        progress.tell(line)
    return Exported(out, layout, len(images), size, about, made.bad)


def _stored_shape(store: Store, made: MadeMaps, layer: str, timestep: int | None) -> LayerShape:
    """From the store, so that no model need be at hand where all maps are."""
    other = made.others[family_of(layer)] if is_other(layer) else None
    extractor = other or made.extractor
    array = None if extractor is None else store.maps(extractor, layer, timestep)
    assert array is not None, "they were made"
    channels, side, _ = array.row_shape
    if other is None:
        return LayerShape(layer, channels, side, store.header.image_size // side)
    about = f"; images resized to {other.size} pixels, {other.family} {other.network.id}"
    return LayerShape(layer, channels, side, other.size // side, about)


def _write_features(what: Export, shapes: Sequence[tuple[int, ...]], out: Path, progress: Progress) -> None:
    named = {
        f"{image.id}|{layer.layer}": shape
        for image in what.images
        for layer, shape in zip(what.layers, shapes, strict=True)
    }

    loaded = _loaded(what, what.images, progress)
    arrays = (features.numpy() for image, maps in loaded for features in maps)
    about = {**what.about, "dataset": what.dataset, "t": [layer.timestep for layer in what.layers]}
    _make_folder(out.parent)
    with open_whole(out) as stream:
        write_float16(stream, named, arrays, {"dualsd": json.dumps(about)})


def _write_torch(what: Export, layout: Layout, out: Path, progress: Progress) -> None:
    """The files that torch reads."""
    if layout is Layout.DIFT_IMAGES:
        for image, (features,) in _loaded(what, what.images, progress):
            file = out / f"{image.id}.pt"
            _make_folder(file.parent)
            save_torch(features.float(), file)
        return
    files = {out: what.images}
    if layout is Layout.DIFT:
        categories = sorted({image.category for image in what.images})
        files = {out / f"{name}.pth": [own for own in what.images if own.category == name] for name in categories}
    identifier = partial(sd4match_identifier, with_mirroring=what.dataset == "pf-pascal")
    name_of = _file_name if layout is Layout.DIFT else identifier
    for file, images in files.items():
        loaded = _loaded(what, images, progress)
        found = {name_of(image): features[None].float() for image, (features,) in loaded}
        _make_folder(file.parent)
        save_torch(found, file)


def sd4match_identifier(image: ImageRecord, with_mirroring: bool) -> str:
    """What SD4Match calls an image: `cat-2008_000123`; of PF-Pascal (`with_mirroring`) `-0` follows, or `-1` where it
    is mirrored."""
    category, _, stem = image.id.removesuffix(MIRRORED).partition("/")
    return f"{category}-{stem}" + (f"-{int(image.mirrored)}" if with_mirroring else "")


def _file_name(image: ImageRecord) -> str:
    """`2008_000123.jpg`, as SPair-71k's annotations name it; of a mirrored image `2008_000123~mirrored.jpg`. What is
    drawn has no file, and no suffix."""
    return image.id.partition("/")[2] + PurePosixPath(image.file).suffix


def _loaded(
    what: Export, images: Sequence[ImageRecord], progress: Progress
) -> Iterator[tuple[ImageRecord, list[Tensor]]]:
    """Each image with its maps (C, h, w), a layer each; the next ones are read while these are written."""

    def load(image: ImageRecord) -> list[Tensor]:
        return [what.maps.load(image.id, layer) for layer in what.layers]

    for image, maps in read_ahead(images, load, images_ahead(what.maps, what.layers)):
        yield image, maps
        progress.advance(len(maps))


def _make_folder(folder: Path) -> None:
    with writing(f"The folder {folder}", place=folder):
        folder.mkdir(parents=True, exist_ok=True)
