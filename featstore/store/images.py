"""The store's table of images: which row is which image, from which bytes, of what original size."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from featstore.errors import StoreError
from featstore.store.keys import IMAGES
from featstore.store.rows import METADATA_ERRORS


@dataclass(frozen=True)
class ImageTable:
    """Columns of equal length; row i of every array of the store belongs to image i.

    ids, categories: as in the dataset. keys: hash of the file's bytes and of the mirroring. sizes: (N, 2) original
    width and height in pixels, 0 for an image that could not be read.
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    keys: tuple[str, ...]
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row by image id."""
        return {image: row for row, image in enumerate(self.ids)}

    @cached_property
    def known_keys(self) -> dict[str, str]:
        """Key by image id, of the images that could be read."""
        return {image: key for image, key, (width, _) in zip(self.ids, self.keys, self.sizes, strict=True) if width}

    def row(self, image: str) -> int:
        """The row of an image. Raises `StoreError` for one that is not in the store."""
        if image not in self.rows:
            raise StoreError(f"The image {image!r} is not in the store.")
        return self.rows[image]

    def size(self, image: str) -> tuple[int, int]:
        """Original (width, height) of an image in pixels. Raises `StoreError` where it could not be read."""
        width, height = self.sizes[self.row(image)]
        if width < 1 or height < 1:
            raise StoreError(
                f"The image {image!r} could not be read when the store was built: run `dualsd cache build`."
            )
        return int(width), int(height)

    def with_contents(self, keys: tuple[str, ...], sizes: NDArray[np.int32]) -> "ImageTable":
        """The same images with other contents."""
        return replace(self, keys=keys, sizes=sizes)


_TEXT_COLUMNS = ("id", "category", "key")
COLUMNS = tuple(f"{IMAGES}/{name}" for name in (*_TEXT_COLUMNS, "width", "height"))
"""Paths of the table's arrays."""


def write_images(group: zarr.Group, table: ImageTable) -> None:
    """Write the table; each column is one object."""
    images = group.require_group(IMAGES)
    # The key comes last: a run killed before it finds the image changed again, and writes its size again.
    columns: dict[str, NDArray[Any]] = {
        "id": np.array(table.ids, dtype=object),
        "category": np.array(table.categories, dtype=object),
        "width": table.sizes[:, 0],
        "height": table.sizes[:, 1],
        "key": np.array(table.keys, dtype=object),
    }
    for name, values in columns.items():
        if name not in images:
            images.create_array(
                name,
                shape=values.shape,
                chunks=values.shape,
                dtype="string" if name in _TEXT_COLUMNS else "int32",
                # what a lost column reads as, so that it shows
                fill_value="" if name in _TEXT_COLUMNS else -1,
                compressors=Crc32cCodec(),
            )
        column = images[name]
        assert isinstance(column, zarr.Array)
        column[:] = values


def read_images(group: zarr.Group, where: str) -> ImageTable:
    """Read the table. Raises `StoreError` where it is missing or its columns do not fit together."""
    try:
        columns = {name: np.asarray(group[f"{IMAGES}/{name}"]) for name in (*_TEXT_COLUMNS, "width", "height")}
    except METADATA_ERRORS as error:
        raise StoreError(f"{where} has no readable table of images ({error}): delete it and build it again.") from error
    lengths = {len(values) for values in columns.values()}
    lost = [name for name in _TEXT_COLUMNS if not all(columns[name])]
    lost += [name for name in ("width", "height") if (columns[name] < 0).any()]
    if len(lengths) != 1 or lost:
        raise StoreError(f"The table of images of {where} is incomplete: delete the store and build it again.")
    doubled = [str(image) for image, count in Counter(columns["id"].tolist()).items() if count > 1]
    if doubled:
        raise StoreError(
            f"The table of images of {where} has the image {doubled[0]!r} more than once: delete the store and "
            "build it again."
        )
    ids, categories, keys = (tuple(str(value) for value in columns[name]) for name in _TEXT_COLUMNS)
    return ImageTable(ids, categories, keys, np.stack([columns["width"], columns["height"]], axis=1).astype(np.int32))
