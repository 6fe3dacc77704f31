"""Rows on object storage, read and written as the objects that they are: one GET or PUT a row, no copy of zarr's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.store.bucket import Bucket
from featstore.store.row_file import CHECKSUM_BYTES, Row, is_plain, row_name, row_values


@dataclass(frozen=True, slots=True)
class RowObjects:
    """An array's rows in a bucket. path: the array's, within the store. shape, dtype: of a row."""

    bucket: Bucket
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, row: Row) -> NDArray[Any] | None:
        """One row, None where it is not there. Raises ValueError where its length or checksum is wrong."""
        content = self.bucket.read(self._key(row))
        # copied: whoever gets it may write to it, as to a row of a file
        return None if content is None else row_values(np.array(content, dtype=np.uint8), self.shape, self.dtype)

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row, of this shape and dtype."""
        content = np.ascontiguousarray(values).tobytes()
        checksum = google_crc32c.value(content).to_bytes(CHECKSUM_BYTES, "little")
        self.bucket.write(self._key(row), content + checksum)

    def delete(self, rows: Sequence[Row]) -> None:
        """Delete rows, a thousand a request: whoever holds the bucket's lock for it holds it for a while only."""
        self.bucket.delete([self._key(row) for row in rows])

    def _key(self, row: Row) -> str:
        return f"{self.path}/{row_name(row, len(self.shape))}"


def row_objects(array: zarr.Array[Any], leading: int) -> RowObjects | None:
    """An array's rows; None where they are no objects of a bucket, or stored otherwise than dualsd does."""
    bucket: Bucket | None = getattr(array.store_path.store, "bucket", None)
    if bucket is None or array.shards is not None or not is_plain(array):
        return None
    return RowObjects(bucket, array.path, tuple(array.shape[leading:]), array.dtype)
