"""Read a row's object straight from a local disk.

zarr reads an object, copies it, and copies it again into an array that it has filled with NaN; for rows of 12 MB that
takes longer than the reading. A row is one object of plain values and a checksum, so its file is the array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, Endian
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

CHECKSUM_BYTES = 4


def row_folder(array: zarr.Array[Any]) -> Path | None:
    """Where the rows of an array lie as plain files; None where they do not: another kind of store, or other codecs."""
    store, metadata = array.store_path.store, array.metadata
    if not isinstance(store, LocalStore) or not isinstance(metadata, ArrayV3Metadata):
        return None
    plain = metadata.codecs == (BytesCodec(endian=Endian.little), Crc32cCodec())
    return store.root / array.path if plain and array.dtype.isnative else None


def read_row_file(file: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The row in `file`, None where there is no such file. Raises ValueError where its length or checksum is wrong, and
    OSError where the disk does not give it."""
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except FileNotFoundError:
        return None
    expected = int(np.prod(shape)) * dtype.itemsize + CHECKSUM_BYTES
    if len(content) != expected:
        raise ValueError(f"{len(content)} bytes instead of {expected}")
    values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if google_crc32c.value(values) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError("its checksum does not match")
    return values.view(dtype).reshape(shape)
