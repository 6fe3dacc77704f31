"""How a row lies: a file in a folder, an object in a bucket."""

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

from featstore.store.bucket import Bucket, StoredObject, open_bucket
from featstore.store.keys import StoreLocation


def folders(store: StoreLocation, pattern: str) -> list[str]:
    """Paths of the folders that a pattern such as `maps/*` names, sorted. On object storage a request a folder above
    them, whatever they hold."""
    if isinstance(store, Path):
        return [folder.relative_to(store).as_posix() for folder in sorted(store.glob(pattern)) if folder.is_dir()]
    bucket = open_bucket(store)
    first, *rest = pattern.split("/*")
    found = [first]
    for _ in rest:
        found = [below for folder in found for below in bucket.level(folder)[1]]
    return sorted(found)


def objects(store: StoreLocation, path: str = "") -> list[StoredObject]:
    """All files or objects below a path, sorted; all of the store where it is empty."""
    if isinstance(store, Path):
        files = [file for file in sorted((store / path).rglob("*")) if file.is_file()]
        return [
            StoredObject(file.relative_to(store).as_posix(), stat.st_size, stat.st_mtime)
            for file in files
            for stat in [file.stat()]
        ]
    return sorted(open_bucket(store).objects(path), key=lambda found: found.path)


def names(store: StoreLocation, path: str) -> list[str]:
    """Names of the files or objects right below a path; none where it is not there."""
    if isinstance(store, Path):
        folder = store / path
        return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return sorted(key.rpartition("/")[2] for key in open_bucket(store).level(path)[0])


def delete(store: StoreLocation, path: str) -> None:
    """Delete a file or an object, be it there or not."""
    if isinstance(store, Path):
        (store / path).unlink(missing_ok=True)
    else:
        open_bucket(store).delete([path])


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
