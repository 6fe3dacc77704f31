"""Read a row's object straight from a local disk.

zarr reads an object, copies it, and copies it again into an array that it has filled with NaN; for rows of 12 MB that
takes longer than the reading. A row is one object of plain values and a checksum, so its file is the array."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, Endian
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

Row = tuple[int, ...]
"""Index of a row: (image,) or (image, draw)."""

CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class RowFiles:
    """A folder of one file a row. shape, dtype: of a row."""

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, row: Row) -> NDArray[Any] | None:
        """See `read_row_file`."""
        return read_row_file(self.file(row), self.shape, self.dtype)

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """The same, as it is stored, its checksum not looked at."""
        return _content(self.file(row))

    def file(self, row: Row) -> Path:
        """Where a row is or would be."""
        return self.folder / row_name(row, len(self.shape))


def row_name(row: Row, dimensions: int) -> str:
    """The name of a row's object, of which `dimensions` count values: `c.3.0.0.0`."""
    return f"c.{'.'.join(map(str, (*row, *[0] * dimensions)))}"


def row_of_name(name: str, leading: int, ndim: int) -> Row | None:
    """The row that an object's name names in an array of `ndim` dimensions, of which `leading` count rows; None for
    metadata, and for what a killed write left."""
    kind, *parts = name.split(".")
    if kind != "c" or len(parts) != ndim or not all(part.isdecimal() for part in parts):
        return None
    return tuple(int(part) for part in parts[:leading])


def row_folder(array: zarr.Array[Any]) -> Path | None:
    """Where the rows of an array lie as plain files; None where they do not: another kind of store, or other codecs."""
    store = array.store_path.store
    return store.root / array.path if isinstance(store, LocalStore) and is_plain(array) else None


def is_plain(array: zarr.Array[Any]) -> bool:
    """Whether an object of the array is a row's values and their checksum, and no more."""
    metadata = array.metadata
    if not isinstance(metadata, ArrayV3Metadata) or not array.dtype.isnative:
        return False
    return metadata.codecs == plain_codecs(array.dtype)


def plain_codecs(dtype: np.dtype[Any]) -> tuple[BytesCodec, Crc32cCodec]:
    """Zarr's, of an object that is a row's values and their checksum."""
    return BytesCodec(endian=Endian.little if dtype.itemsize > 1 else None), Crc32cCodec()


def read_row_file(file: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The row in `file`, None where there is no such file. Raises ValueError where its length or checksum is wrong, and
    OSError where the disk does not give it."""
    content = _content(file)
    return None if content is None else row_values(content, shape, dtype)


def row_values(content: NDArray[np.uint8], shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The row whose stored bytes are `content`. Raises ValueError where their length or checksum is wrong."""
    expected = int(np.prod(shape)) * dtype.itemsize + CHECKSUM_BYTES
    if len(content) != expected:
        raise ValueError(f"{len(content)} bytes instead of {expected}")
    values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if google_crc32c.value(values) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError("its checksum does not match")
    return values.view(dtype).reshape(shape)


def _content(file: Path) -> NDArray[np.uint8] | None:
    try:
        return np.fromfile(file, dtype=np.uint8)
    except FileNotFoundError:
        return None
