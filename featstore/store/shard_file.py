"""A packed array's files: many rows one after the other, then an index of where each of them lies.

This is Zarr's sharding codec. A row's bytes in it are those of its own file, checksum and all, so that packing copies
them as they are, and a damaged row stays known as damaged."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ShardingCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import LocalStore

from featstore.store.row_file import CHECKSUM_BYTES, Row, plain_codecs, row_values

ABSENT = 2**64 - 1
"""Offset and length, in an index, of a row that is not in its file."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError)

Index = NDArray[np.uint64]
"""Of one file, (*rows a file, 2): offset and length in bytes of each row."""


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """A folder of files of many rows. rows: in one file, along each leading dimension, e.g. (11,) images or (300, 8)
    images and draws. shape, dtype: of a row."""

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

    def read(self, row: Row) -> NDArray[Any] | None:
        """One row, None where it is not there. Raises ValueError where its file or it is damaged, and OSError where the
        disk does not give it."""
        content = self.content(row)
        return None if content is None else row_values(content, self.shape, self.dtype)

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """The same, as it is stored, its own checksum not looked at."""
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
    packed = ShardingCodec(chunk_shape=(*[1] * leading, *row_shape), codecs=plain_codecs(array.dtype))
    if metadata.codecs != (packed,) or array.shards != (*rows, *row_shape) or not array.dtype.isnative:
        return None
    return ShardFiles(store.root / array.path, rows, row_shape, array.dtype)
