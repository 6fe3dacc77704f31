"""DINOv2's patch maps of images, made once and kept: the layer `dino`, matched alone or fused with the UNet's.

The last layer's patch tokens after its normalisation, of the whole image as a square: the frame of the diffusion
model's images, so that cells of both lie over the same pixels. The fusion is that of SD4Match's code (a layer of the
UNet and DINOv2, each cell normalised, 0.5 and 0.5, concatenated), with these differences:

- SD4Match hands DINOv2 the diffusion model's pixels, in [-1, 1]; here it gets ImageNet's statistics, as in training.
- SD4Match resizes those pixels again, to 14 a cell of the UNet's map (672 for 48 cells: `--dino-size 672`); here the
  file's image is resized once, by default to sd-dino's 840 pixels, 60 cells, and the coarser map is upsampled.
- SD4Match's fused maps correlate to (cos + cos) / 4; ours, normalised once more, to (cos + cos) / 2. Nearest neighbours
  are the same; its softmax at a temperature of 0.04 is ours at 0.08.

From sd-dino (Zhang et al.) there is the size alone: it pads images to squares, takes the tokens before the last
normalisation, and reduces the UNet's layers by a PCA of each pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featstore.backbones.dino_location import HUB_NAME, SUBFOLDER, DinoShape, locate_dino, read_shape
from featstore.backbones.location import locate
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, ModelError
from featstore.pipeline.batches import padded
from featstore.pipeline.compute import Compute
from featstore.pipeline.pixels import pixel_batches
from featstore.progress import Progress
from featstore.store.keys import DinoExtractor, Stored, dino_path
from featstore.store.overlap import row_writer
from featstore.store.pack import unpack
from featstore.store.row_encoding import row_bytes
from featstore.store.store import Store
from featstore.store.sweep import folders_of, sweep_partial


@dataclass(frozen=True, slots=True)
class AskedDino:
    """What `--dino` and `--dino-size` say. name: a folder or hub name, None for the model's own, else
    `facebook/dinov2-base`. size: side in pixels of the square that images are resized to, None for the usual one."""

    name: str | None
    size: int | None


@dataclass(frozen=True, slots=True)
class FoundDino:
    """A DINOv2 at hand. extractor: under whose name its maps lie."""

    extractor: DinoExtractor
    folder: Path
    shape: DinoShape

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, side, side) of a patch map."""
        side = self.shape.side(self.extractor.size)
        return self.shape.channels, side, side


@dataclass(frozen=True, slots=True)
class MadeDinoMaps:
    """extractor: under whose name the maps lie. shape: (C, side, side) of each. images: that went through DINOv2. bad:
    that could not be read, whose maps are missing."""

    extractor: DinoExtractor
    shape: tuple[int, int, int]
    images: int
    bad: tuple[ImageError, ...]


@dataclass(frozen=True, slots=True)
class DinoCost:
    """What making patch maps would take: images through DINOv2, a file each, and bytes to write."""

    images: int
    bytes_to_write: int


def find_dino(store: Store, asked: AskedDino, compute: Compute, stored: Stored = Stored.FLOAT16) -> FoundDino:
    """The DINOv2 asked for; no weights are loaded. Raises `ModelError` where it is out of reach, no DINOv2, or cannot
    take images of that size."""
    name, folder = locate_dino(asked.name, locate(store.header.model_id, store.header.model_revision))
    shape = read_shape(folder)
    size = shape.usual_size if asked.size is None else asked.size
    shape.side(size)
    return FoundDino(DinoExtractor(name, size, compute.dtype_name, stored), folder, shape)


def missing_dino_maps(store: Store, extractor: DinoExtractor, rows: Sequence[int]) -> list[int]:
    """Those of `rows` whose patch maps are not cached."""
    array = store.dino_maps(extractor)
    present = None if array is None else array.present()
    return [row for row in rows if present is None or not present[row]]


def estimate_dino_maps(store: Store, rows: Sequence[int], found: FoundDino) -> DinoCost:
    """What `require_dino_maps` would do now; nothing is written."""
    missing = len(missing_dino_maps(store, found.extractor, rows))
    return DinoCost(missing, missing * row_bytes(found.extractor.stored.value, found.map_shape))


def require_dino_maps(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    asked: AskedDino,
    compute: Compute,
    progress: Progress,
    stored: Stored = Stored.FLOAT16,
) -> MadeDinoMaps:
    """Cache the patch maps of the images of `rows`, mirrored where the image is; what is cached already is left alone.

    A store that has them all needs no DINOv2 at hand. Raises what `find_dino` raises, and `StoreError` for an image
    that has changed.
    """
    try:
        found = find_dino(store, asked, compute, stored)
    except ModelError:
        kept = _kept(store, rows, asked, compute, stored)
        if kept is None:
            raise
        return kept
    missing = missing_dino_maps(store, found.extractor, rows)
    if not missing:
        return MadeDinoMaps(found.extractor, found.map_shape, 0, ())
    # Only now: loading transformers takes longer than an evaluation from the cache.
    from featstore.backbones.dino import load_dino

    network = load_dino(found.folder, compute.device, compute.dtype)
    unpack(store, [dino_path(found.extractor)], progress)
    array = store.require_dino_maps(found.extractor, found.map_shape)
    sweep_partial(folders_of(store.path, [dino_path(found.extractor)]))
    made, bad = 0, list[ImageError]()
    progress.start("DINOv2 patch maps", len(missing), "images")
    with row_writer(store.path) as write:
        for batch in pixel_batches(store, dataset, missing, found.extractor.size, compute.batch_size):
            bad.extend(batch.bad)
            if batch.rows:
                pixels = padded(torch.from_numpy(np.stack(batch.pixels)), compute.batch_size).to(compute.device)
                for row, own in zip(batch.rows, network.patch_maps(pixels), strict=False):  # the padding falls off here
                    write(array, (row,), own.numpy())
                made += len(batch.rows)
            progress.advance(len(batch.rows) + len(batch.bad))
    return MadeDinoMaps(found.extractor, found.map_shape, made, tuple(bad))


def _kept(store: Store, rows: Sequence[int], asked: AskedDino, compute: Compute, stored: Stored) -> MadeDinoMaps | None:
    """What the store has of the one extractor that fits what is asked for; None where there is none, or several."""
    if asked.name is None:
        ids = {HUB_NAME, f"{store.header.model_id}/{SUBFOLDER}"}
    else:
        ids = {asked.name, str(Path(asked.name).expanduser().resolve())}
    fitting = [
        extractor
        for extractor in store.dino_extractors()
        if extractor.dino.id in ids
        and asked.size in (None, extractor.size)
        and (extractor.dtype, extractor.stored) == (compute.dtype_name, stored)
        and not missing_dino_maps(store, extractor, rows)
    ]
    if len(fitting) != 1:
        return None
    array = store.dino_maps(fitting[0])
    assert array is not None, "no row of it is missing"
    channels, height, width = array.row_shape
    return MadeDinoMaps(fitting[0], (channels, height, width), 0, ())
