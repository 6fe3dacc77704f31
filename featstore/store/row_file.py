"""How rows lie: a file each in a folder, many in one packed file, an object each in a bucket."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, Endian, ShardingCodec
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


class StoredRows:
    """An array's rows where they lie. shape, dtype: of a row as it is stored."""

    __slots__ = ()
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """A row's stored bytes, None where it is not there; its checksum is not looked at.

        Raises:
            ValueError: Where the file that holds it is damaged.
            OSError: Where the disk does not give it.
        """
        raise NotImplementedError

    def read(self, row: Row) -> NDArray[Any] | None:
        """A row's stored values, of `shape`. Raises ValueError besides where its length or checksum is wrong."""
        content = self.content(row)
        return None if content is None else row_values(content, self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class RowFiles(StoredRows):
    """A folder of one file a row."""

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        try:
            return np.fromfile(self.file(row), dtype=np.uint8)
        except FileNotFoundError:
            return None

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


def row_files(array: zarr.Array[Any], leading: int) -> RowFiles | None:
    """An array's rows as plain files; None where they are none: another kind of store, or other codecs."""
    store = array.store_path.store
    if not isinstance(store, LocalStore) or not _is_plain(array):
        return None
    return RowFiles(store.root / array.path, tuple(array.shape[leading:]), array.dtype)


def _is_plain(array: zarr.Array[Any]) -> bool:
    """Whether an object of the array is a row's values and their checksum, and no more."""
    metadata = array.metadata
    if not isinstance(metadata, ArrayV3Metadata) or not array.dtype.isnative:
        return False
    return metadata.codecs == _plain_codecs(array.dtype)


def _plain_codecs(dtype: np.dtype[Any]) -> tuple[BytesCodec, Crc32cCodec]:
    """Zarr's, of an object that is a row's values and their checksum."""
    return BytesCodec(endian=Endian.little if dtype.itemsize > 1 else None), Crc32cCodec()


def row_values(content: NDArray[np.uint8], shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The row whose stored bytes are `content`. Raises ValueError where their length or checksum is wrong."""
    expected = int(np.prod(shape)) * dtype.itemsize + CHECKSUM_BYTES
    if len(content) != expected:
        raise ValueError(f"{len(content)} bytes instead of {expected}")
    values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if google_crc32c.value(values) != int.from_bytes(checksum.tobytes(), "little"):
        raise ValueError("its checksum does not match")
    return values.view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class RowObjects(StoredRows):
    """An array's rows in a bucket. path: the array's, within the store."""

    bucket: Bucket
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        content = self.bucket.read(self._key(row))
        # copied: whoever gets it may write to it, as to a row of a file
        return None if content is None else np.array(content, dtype=np.uint8)

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
    if bucket is None or array.shards is not None or not _is_plain(array):
        return None
    return RowObjects(bucket, array.path, tuple(array.shape[leading:]), array.dtype)


ABSENT = 2**64 - 1
"""Offset and length, in an index, of a row that is not in its file."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError)

Index = NDArray[np.uint64]
"""Of one file, (*rows a file, 2): offset and length in bytes of each row."""


@dataclass(frozen=True, slots=True)
class ShardFiles(StoredRows):
    """A folder of files of many rows. rows: in one file, along each leading dimension, e.g. (11,) images or (300, 8)
    images and draws.

    This is Zarr's sharding codec: rows one after the other, then an index of where each of them lies. A row's bytes in
    it are those of its own file, checksum and all, so that packing copies them as they are, and a damaged row stays
    known as damaged."""

    folder: Path
    rows: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of a row in a file, checksum included."""
        return math.prod(self.shape) * self.dtype.itemsize + CHECKSUM_BYTES

    @property
    def index_bytes(self) -> int:
        """Of a file's index, checksum included."""
        return 16 * math.prod(self.rows) + CHECKSUM_BYTES

    def shard_of(self, row: Row) -> Row:
        """Which file a row is in."""
        return tuple(index // size for index, size in zip(row, self.rows, strict=True))

    def place_of(self, row: Row) -> Row:
        """Where in its file's index a row is."""
        return tuple(index % size for index, size in zip(row, self.rows, strict=True))

    def file(self, shard: Row) -> Path:
        """`c/3/0/0/0`: names that no row of an array that is not packed has."""
        return self.folder.joinpath("c", *map(str, (*shard, *[0] * len(self.shape))))

    def shards(self, rows_shape: tuple[int, ...]) -> Iterator[Row]:
        """All files of an array of so many rows."""
        yield from np.ndindex(*(math.ceil(all_ / own) for all_, own in zip(rows_shape, self.rows, strict=True)))

    def rows_of(self, shard: Row, rows_shape: tuple[int, ...]) -> Iterator[Row]:
        """The rows that one file has room for, within an array of `rows_shape`."""
        for place in np.ndindex(*self.rows):
            row = tuple(s * size + p for s, size, p in zip(shard, self.rows, place, strict=True))
            if all(index < limit for index, limit in zip(row, rows_shape, strict=True)):
                yield row

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        try:
            with self.file(self.shard_of(row)).open("rb", buffering=0) as stream:
                offset, length = (int(number) for number in self._index(stream)[self.place_of(row)])
                if offset == ABSENT:
                    return None
                if length != self.row_bytes:
                    raise ValueError(f"{length} bytes instead of {self.row_bytes}")
                stream.seek(offset)
                return np.fromfile(stream, dtype=np.uint8, count=length)
        except _NOT_THERE:
            return None

    def index(self, shard: Row) -> Index | None:
        """Of one file, None where there is none. Raises ValueError where it is damaged, and OSError where the disk does
        not give it."""
        try:
            with self.file(shard).open("rb", buffering=0) as stream:
                return self._index(stream)
        except _NOT_THERE:
            return None

    def _index(self, stream: FileIO) -> Index:
        stream.seek(max(stream.seek(0, os.SEEK_END) - self.index_bytes, 0))
        stored = stream.readall()
        entries, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if len(stored) != self.index_bytes or google_crc32c.value(entries) != int.from_bytes(checksum, "little"):
            raise ValueError(f"the index of {stream.name} does not match its checksum")
        return np.frombuffer(entries, dtype="<u8").reshape(*self.rows, 2)

    def present(self, rows_shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which rows of an array of `rows_shape` are there; those of a file whose index is damaged are, damaged."""
        found = np.zeros(rows_shape, dtype=bool)
        for shard in self.shards(rows_shape):
            block = tuple(slice(start * size, (start + 1) * size) for start, size in zip(shard, self.rows, strict=True))
            own = found[block]  # smaller than a file at the array's end
            try:
                index = self.index(shard)
            except (ValueError, OSError):
                own[...] = True
                continue
            if index is not None:
                own[...] = (index[..., 0] != ABSENT)[tuple(slice(size) for size in own.shape)]
        return found

    def encode(self, rows: Iterable[tuple[Row, NDArray[np.uint8]]]) -> Iterator[bytes | memoryview]:
        """What a file of these rows' stored bytes holds, piece by piece: the rows, then the index."""
        index = np.full((*self.rows, 2), ABSENT, dtype="<u8")
        offset = 0
        for row, content in rows:
            index[self.place_of(row)] = offset, len(content)
            offset += len(content)
            yield content.data
        entries = index.tobytes()
        yield entries
        yield google_crc32c.value(entries).to_bytes(CHECKSUM_BYTES, "little")


def shard_files(array: zarr.Array[Any], leading: int) -> ShardFiles | None:
    """Where the rows of a packed array lie; None for one that is not packed, or not as `cache pack` does."""
    store, metadata, row_shape = array.store_path.store, array.metadata, tuple(array.shape[leading:])
    if not isinstance(store, LocalStore) or not isinstance(metadata, ArrayV3Metadata) or array.shards is None:
        return None
    rows = tuple(array.shards[:leading])
    packed = ShardingCodec(chunk_shape=(*[1] * leading, *row_shape), codecs=_plain_codecs(array.dtype))
    if metadata.codecs != (packed,) or array.shards != (*rows, *row_shape) or not array.dtype.isnative:
        return None
    return ShardFiles(store.root / array.path, rows, row_shape, array.dtype)
