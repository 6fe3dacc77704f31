"""How rows lie: what their values are on the disk, and a file each in a folder, many in one packed file, or an object
each in a bucket.

Values are floating-point numbers as they are, or 8-bit integers that have one scale a channel. A missing row, which
zarr reads as the fill value, is never taken for one that is there: of floats the fill value is NaN, which no row holds,
and of integers the byte 0xFF, of which four are a scale that is NaN.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from io import FileIO
from itertools import product
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

_EXPONENT = np.uint16(0x7C00)
"""The bits of a float16 that are all set where it is infinite or NaN."""

_BLOCK_VALUES = 2**18
"""Values that are looked at at once; they stay in the cache."""

_SCALE = np.dtype("<f4")
_LARGEST = np.float32(127)
"""Of a quantised value: -128 is left out, so that zero is in the middle."""


class Floats:
    """Values as they are. A row is finite.

    dtype: of an array of such rows. read_dtype: of the values that `decode` gives. fill_value: what a missing row of
    such an array reads as. Both encodings have these and the same methods.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = self.read_dtype = dtype
        self.fill_value = float("nan")

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on the disk of a row of values of `shape`. Raises ValueError for a shape that it cannot hold."""
        return tuple(shape)

    def shape(self, stored_shape: Sequence[int]) -> tuple[int, ...]:
        """The other way round. Raises ValueError for a shape that no row has."""
        return tuple(stored_shape)

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as they are stored, rounded to the dtype; what cannot be held (not finite, too large) gives what
        `is_row` denies."""
        with np.errstate(over="ignore"):  # `is_row` is what finds it
            return np.asarray(values).astype(self.dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A stored row's values."""
        return stored

    def is_row(self, stored: NDArray[Any]) -> bool:
        """Whether this is a row that was written, whose values are finite, and no missing one; numpy has no fast way to
        ask that of float16."""
        if stored.dtype != np.float16:
            return bool(np.isfinite(stored).all())
        bits = stored.reshape(-1).view(np.uint16)
        exponents = np.empty(min(len(bits), _BLOCK_VALUES), dtype=np.uint16)
        for start in range(0, len(bits), _BLOCK_VALUES):
            block = bits[start : start + _BLOCK_VALUES]
            if np.bitwise_and(block, _EXPONENT, out=exponents[: len(block)]).max() == _EXPONENT:
                return False
        return True


class ScaledIntegers:
    """Square maps (C, h, h) as int8 rows (C, h * h + 4): of each channel its values, in C order, and then the four
    bytes of its scale, a little-endian float32.

    The scale is a channel's largest absolute value over 127, and a value is its integer times the scale: off by half a
    scale at most. A channel of zeros has the scale 0.
    """

    dtype = np.dtype(np.int8)
    read_dtype = np.dtype(np.float32)
    fill_value = -1

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, h * h + 4) of (C, h, h)."""
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"{tuple(shape)} is no shape of square maps (C, h, h)")
        return shape[0], shape[1] * shape[2] + _SCALE.itemsize

    def shape(self, stored_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, h, h) of (C, h * h + 4)."""
        cells = stored_shape[-1] - _SCALE.itemsize
        side = math.isqrt(max(cells, 0))
        if len(stored_shape) != 2 or side == 0 or side * side != cells:
            raise ValueError(f"{tuple(stored_shape)} is no shape of int8 maps (C, h * h + 4)")
        return stored_shape[0], side, side

    def encode(self, values: NDArray[Any]) -> NDArray[np.int8]:
        """Quantised from values of any precision, (C, h, h)."""
        with np.errstate(over="ignore"):  # infinite scales are what `is_row` finds
            channels = np.asarray(values).astype(np.float32, copy=False).reshape(len(values), -1)
        scales = np.abs(channels).max(axis=1, keepdims=True) / _LARGEST
        stored = np.full(self.stored_shape(values.shape), self.fill_value, dtype=np.int8)
        if np.isfinite(scales).all():
            steps = np.divide(channels, scales, out=np.zeros_like(channels), where=scales > 0)
            # scales so small that they have few bits of their own may leave a step above 127
            stored[:, : -_SCALE.itemsize] = np.clip(np.rint(steps, out=steps), -_LARGEST, _LARGEST, out=steps)
            stored[:, -_SCALE.itemsize :] = scales.astype(_SCALE).view(np.int8)
        return stored

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(C, h, h) in float32."""
        steps = stored[:, : -_SCALE.itemsize]
        values: NDArray[np.float32] = np.multiply(steps, self._scales(stored), dtype=np.float32)
        return values.reshape(self.shape(stored.shape))

    def is_row(self, stored: NDArray[Any]) -> bool:
        """Whether every scale is a finite number that is not negative."""
        scales = self._scales(stored)
        return bool((np.isfinite(scales) & (scales >= 0)).all())

    @staticmethod
    def _scales(stored: NDArray[Any]) -> NDArray[np.float32]:
        """(C, 1)."""
        return np.ascontiguousarray(stored[:, -_SCALE.itemsize :]).view(_SCALE)


RowEncoding = Floats | ScaledIntegers
"""How rows lie on the disk."""


def encoding_for(dtype: str) -> RowEncoding:
    """How rows of an array of that dtype lie on the disk."""
    return ScaledIntegers() if np.dtype(dtype) == np.int8 else Floats(np.dtype(dtype))


def encoding_of(array: zarr.Array[Any], leading: int) -> RowEncoding:
    """How the rows of an array lie on the disk, of whose dimensions `leading` count rows. Raises ValueError, saying
    why, where its missing rows could be taken for rows that are there, or it holds no rows of dualsd."""
    if array.dtype.kind != "f" and array.dtype != np.int8:
        raise ValueError(f"rows of {array.dtype} are none of dualsd's")
    found = encoding_for(array.dtype.name)
    found.shape(array.shape[leading:])
    same = np.isnan(array.fill_value) if array.dtype.kind == "f" else array.fill_value == found.fill_value
    if not same:
        raise ValueError(f"missing rows of {array.dtype} would read as {array.fill_value}")
    return found


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a row of values of `shape` on the disk, with its checksum of 4 bytes."""
    encoding = encoding_for(dtype)
    return math.prod(encoding.stored_shape(shape)) * encoding.dtype.itemsize + 4


def folders(store: StoreLocation, pattern: str) -> list[str]:
    """Paths of the folders that a pattern such as `maps/*` names, sorted. On object storage a request a folder above
    them, whatever they hold."""
    if isinstance(store, Path):
        return [folder.relative_to(store).as_posix() for folder in sorted(store.glob(pattern)) if folder.is_dir()]
    first, *rest = pattern.split("/*")
    found = [first]
    for _ in rest:
        found = [below for folder in found for below in open_bucket(store).level(folder)[1]]
    return sorted(found)


def objects(store: StoreLocation, path: str = "", named: str = "*") -> list[StoredObject]:
    """All files or objects below a path, sorted; all of the store where it is empty. named: a pattern of their names,
    by which a disk has to look at fewer."""
    if not isinstance(store, Path):
        found = sorted(open_bucket(store).objects(path), key=lambda one: one.path)
        return [one for one in found if fnmatch(one.path.rpartition("/")[2], named)]
    files = [(file, file.stat()) for file in sorted((store / path).rglob(named)) if file.is_file()]
    return [StoredObject(file.relative_to(store).as_posix(), stat.st_size, stat.st_mtime) for file, stat in files]


Row = tuple[int, ...]
"""Index of a row: (image,) or (image, draw)."""

CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class StoredRows(ABC):
    """An array's rows where they lie. shape, dtype: of a row as it is stored."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """A row's stored bytes, None where it is not there; its checksum is not looked at.

        Raises:
            ValueError: Where the file that holds it is damaged.
            OSError: Where the disk does not give it.
        """

    def read(self, row: Row) -> NDArray[Any] | None:
        """A row's stored values, of `shape`. Raises ValueError besides where its length or checksum is wrong."""
        content = self.content(row)
        return None if content is None else self.values(content)

    @property
    def row_bytes(self) -> int:
        """Of a stored row, checksum included."""
        return math.prod(self.shape) * self.dtype.itemsize + CHECKSUM_BYTES

    def values(self, content: NDArray[np.uint8]) -> NDArray[Any]:
        """The row whose stored bytes are `content`. Raises ValueError where their length or checksum is wrong."""
        if len(content) != self.row_bytes:
            raise ValueError(f"{len(content)} bytes instead of {self.row_bytes}")
        values, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if _checksum(values) != checksum.tobytes():
            raise ValueError("its checksum does not match")
        return values.view(self.dtype).reshape(self.shape)

    def name(self, row: Row) -> str:
        """The name of a row's file or object: `c.3.0.0.0`."""
        return row_name(row, len(self.shape))


def row_name(row: Row, ndim: int) -> str:
    """The name of the file or object of a row of `ndim` dimensions: `c.3.0.0.0`."""
    return f"c.{'.'.join(map(str, (*row, *[0] * ndim)))}"


@dataclass(frozen=True, slots=True)
class RowFiles(StoredRows):
    """A folder of one file a row."""

    folder: Path

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        try:
            return np.fromfile(self.file(row), dtype=np.uint8)
        except FileNotFoundError:
            return None

    def file(self, row: Row) -> Path:
        """Where a row is or would be."""
        return self.folder / self.name(row)


def row_of_name(name: str, leading: int, ndim: int) -> Row | None:
    """The row that an object's name names in an array of `ndim` dimensions, of which `leading` count rows; None for
    metadata, and for what a killed write left."""
    kind, *parts = name.split(".")
    if kind != "c" or len(parts) != ndim or not all(part.isdecimal() for part in parts):
        return None
    return tuple(int(part) for part in parts[:leading])


@dataclass(frozen=True, slots=True)
class RowObjects(StoredRows):
    """An array's rows in a bucket. path: the array's, within the store."""

    bucket: Bucket
    path: str

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        content = self.bucket.read(f"{self.path}/{self.name(row)}")
        # copied: whoever gets it may write to it, as to a row of a file
        return None if content is None else np.array(content, dtype=np.uint8)

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row, of this shape and dtype."""
        content = np.ascontiguousarray(values).tobytes()
        self.bucket.write(f"{self.path}/{self.name(row)}", content + _checksum(content))


ABSENT = 2**64 - 1
"""Offset and length, in an index, of a row that is not in its file."""

_NOT_THERE = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class ShardFiles(StoredRows):
    """A folder of files of many rows. rows: in one file, along each leading dimension, e.g. (11,) images or (300, 8)
    images and draws.

    This is Zarr's sharding codec: rows one after the other, then an index of where each of them lies. A row's bytes in
    it are those of its own file, checksum and all, so that packing copies them as they are, and a damaged row stays
    known as damaged."""

    folder: Path
    rows: tuple[int, ...]

    @property
    def index_bytes(self) -> int:
        """Of a file's index, checksum included."""
        return 16 * math.prod(self.rows) + CHECKSUM_BYTES

    def place_of(self, row: Row) -> tuple[Row, Row]:
        """Which file a row is in, and where in its index."""
        file, place = zip(*map(divmod, row, self.rows), strict=True)
        return file, place

    def file(self, shard: Row) -> Path:
        """`c/3/0/0/0`: names that no row of an array that is not packed has."""
        return self.folder.joinpath("c", *map(str, (*shard, *[0] * len(self.shape))))

    def shards(self, rows_shape: tuple[int, ...]) -> list[Row]:
        """All files of an array of so many rows."""
        return [*np.ndindex(*(math.ceil(count / own) for count, own in zip(rows_shape, self.rows, strict=True)))]

    def rows_of(self, shard: Row, rows_shape: tuple[int, ...]) -> Iterator[Row]:
        """The rows that one file has room for, within an array of `rows_shape`."""
        sizes = zip(shard, self.rows, rows_shape, strict=True)
        return product(*(range(start * size, min((start + 1) * size, limit)) for start, size, limit in sizes))

    def content(self, row: Row) -> NDArray[np.uint8] | None:
        """See `StoredRows.content`."""
        shard, place = self.place_of(row)
        try:
            with self.file(shard).open("rb", buffering=0) as stream:
                offset, length = (int(number) for number in self._index(stream)[place])
                if offset == ABSENT:
                    return None
                if length != self.row_bytes:
                    raise ValueError(f"{length} bytes instead of {self.row_bytes}")
                stream.seek(offset)
                return np.fromfile(stream, dtype=np.uint8, count=length)
        except _NOT_THERE:
            return None

    def index(self, shard: Row) -> NDArray[np.uint64] | None:
        """Of one file, (*rows a file, 2): offset and length in bytes of each row; None where there is no file. Raises
        ValueError where it is damaged, and OSError where the disk does not give it."""
        try:
            with self.file(shard).open("rb", buffering=0) as stream:
                return self._index(stream)
        except _NOT_THERE:
            return None

    def _index(self, stream: FileIO) -> NDArray[np.uint64]:
        stream.seek(max(stream.seek(0, os.SEEK_END) - self.index_bytes, 0))
        stored = stream.readall()
        entries, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if len(stored) != self.index_bytes or _checksum(entries) != checksum:
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
            index[self.place_of(row)[1]] = offset, len(content)
            offset += len(content)
            yield content.data
        entries = index.tobytes()
        yield entries
        yield _checksum(entries)


def _checksum(content: bytes | NDArray[np.uint8]) -> bytes:
    return google_crc32c.value(content).to_bytes(CHECKSUM_BYTES, "little")


def stored_rows(array: zarr.Array[Any], leading: int) -> StoredRows | None:
    """Where an array's rows lie, of whose dimensions `leading` count rows; None where they are stored otherwise than
    dualsd does: in another kind of store, by other codecs, or packed otherwise than `cache pack` does."""
    store, metadata, dtype, shape = array.store_path.store, array.metadata, array.dtype, tuple(array.shape[leading:])
    if not isinstance(metadata, ArrayV3Metadata) or not dtype.isnative:
        return None
    # an object is a row's values and their checksum, and no more
    plain = BytesCodec(endian=Endian.little if dtype.itemsize > 1 else None), Crc32cCodec()
    if array.shards is not None and isinstance(store, LocalStore):
        packed = ShardingCodec(chunk_shape=(*[1] * leading, *shape), codecs=plain)
        if metadata.codecs == (packed,) and array.shards[leading:] == shape:
            return ShardFiles(shape, dtype, store.root / array.path, tuple(array.shards[:leading]))
    elif metadata.codecs == plain and isinstance(store, LocalStore):
        return RowFiles(shape, dtype, store.root / array.path)
    elif metadata.codecs == plain and (bucket := getattr(store, "bucket", None)) is not None:
        return RowObjects(shape, dtype, bucket, array.path)
    return None
