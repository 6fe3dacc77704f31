"""Arrays whose rows are there or not: one row one object, written atomically, with a checksum.

No bookkeeping: which rows are there is read off the objects themselves, so it cannot go stale; an array's length, which
only readers without dualsd need, is not looked at. Rows are encoded and decoded here, by the codecs that the array's
Zarr metadata state. A finished array may be packed into few large files (see `featstore.store.pack`): zarr reads those,
and their rows are not written.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import BitRound, Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from featstore.errors import StoreError
from featstore.files import writing
from featstore.store.keys import METADATA, METADATA_ERRORS
from featstore.store.metadata import create_missing, damaged_metadata, objects_of, require_parents
from featstore.store.objects import Content, Objects

Row = tuple[int, ...]
"""Index of a row: (image,) or (image, draw)."""

DTYPE = np.dtype("<f2")
"""Of all rows: float16, little endian."""

CHECKSUM_BYTES = 4

MISSING = "missing"
"""The attribute of a packed array that lists the rows which it lacks: of images that are gone."""

_ROW_ERRORS = (ValueError, OSError, RuntimeError, IndexError, BufferError)

_EXPONENT = np.uint16(0x7C00)
"""The bits of a float16 that are all set where it is infinite or NaN."""

_BLOCK_VALUES = 2**18
"""Values that are looked at at once; they stay in the cache."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a row's values lie in its object: as they are, or rounded and compressed, and a CRC-32C behind.

    name: as `--encoding` has it. keepbits: of the 10 bits behind a value's point, those that are kept (numcodecs'
    BitRound); None for all, and then nothing is compressed. Rounding is to the nearest, so a value moves by at most
    2^-(keepbits + 1) of itself, or of float16's smallest normal number where it is smaller than that.
    """

    name: str
    keepbits: int | None = None

    @property
    def compressors(self) -> list[BloscCodec]:
        """Zarr's own codecs between the values' bytes and the checksum. Level 1 takes half the time of zarr's usual 5
        and gains 1 % less."""
        return [] if self.keepbits is None else [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=2)]

    def round(self, values: NDArray[Any]) -> NDArray[np.float16]:
        """Values of any precision as they are kept. Whatever is not finite in float16 stays so; rounding may make the
        largest of them infinite."""
        with np.errstate(over="ignore"):  # `is_finite` is what finds it
            kept = np.ascontiguousarray(values, dtype=DTYPE)
        return kept if self.keepbits is None else BitRound(self.keepbits).encode(kept).view(DTYPE)

    def encode(self, kept: NDArray[np.float16]) -> tuple[Content, bytes]:
        """The pieces of an object: what `round` gave, and its checksum."""
        content = kept.data if self.keepbits is None else Blosc("zstd", 1, Blosc.BITSHUFFLE).encode(kept)
        return content, _checksum(content)

    def decode(self, content: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.float16]:
        """The values of an object. Raises ValueError or RuntimeError where it is not one of that shape."""
        body, size = content[:-CHECKSUM_BYTES], math.prod(shape) * DTYPE.itemsize
        if self.keepbits is None and len(body) != size:
            raise ValueError(f"{len(content)} bytes instead of {size + CHECKSUM_BYTES}")
        if _checksum(body.data) != content[-CHECKSUM_BYTES:].tobytes():
            raise ValueError("its checksum does not match")
        if self.keepbits is None:
            return body.view(DTYPE).reshape(shape)
        values = np.empty(shape, dtype=DTYPE)
        Blosc().decode(body, out=values)
        return values


RAW = Encoding("raw")
ENCODINGS = {one.name: one for one in (RAW, Encoding("bitround4", 4), Encoding("bitround3", 3))}
"""By the name that `--encoding` takes."""


def _checksum(content: Content) -> bytes:
    # as an array, since of memoryviews it takes none that could be written to
    return google_crc32c.value(np.frombuffer(content, dtype=np.uint8)).to_bytes(CHECKSUM_BYTES, "little")


def is_finite(kept: NDArray[np.float16]) -> bool:
    """Whether all values are; numpy has no fast way to ask that of float16."""
    bits = kept.reshape(-1).view(np.uint16)
    exponents = np.empty(min(len(bits), _BLOCK_VALUES), dtype=np.uint16)
    for start in range(0, len(bits), _BLOCK_VALUES):
        block = bits[start : start + _BLOCK_VALUES]
        if np.bitwise_and(block, _EXPONENT, out=exponents[: len(block)]).max() == _EXPONENT:
            return False
    return True


def row_bytes(row_shape: Sequence[int]) -> int:
    """Bytes of a row of that shape that is kept as it is, with its checksum."""
    return math.prod(row_shape) * DTYPE.itemsize + CHECKSUM_BYTES


def row_name(row: Row, ndim: int) -> str:
    """The name of the object of a row of `ndim` dimensions: `c.3.0.0.0`."""
    return f"c.{'.'.join(map(str, (*row, *[0] * ndim)))}"


def row_of_name(name: str, leading: int, ndim: int) -> Row | None:
    """The row that an object's name names in an array of `ndim` dimensions, of which `leading` count rows; None for
    anything else, metadata among them."""
    kind, *parts = name.split(".")
    if kind != "c" or len(parts) != ndim or not all(part.isdecimal() for part in parts):
        return None
    return tuple(int(part) for part in parts[:leading])


class RowArray:
    """An array (*rows, *row shape) of float16, of which single rows are written, read and deleted.

    `leading` of its dimensions count rows: 1 for latents and maps, 2 for noisy latents (image, draw).

    objects, path: where it lies. array: as zarr knows it. rows_shape: (images,) or (images, draws), the images being
    those of the store whatever the array's own length. row_shape: of one row. row_bytes: of one row that is kept as it
    is. encoding: of its rows; None where zarr reads and writes them, as they are stored otherwise than dualsd does.
    packed: whether many rows share an object.
    """

    def __init__(self, array: zarr.Array[Any], leading: int, images: int) -> None:
        store = array.store_path.store
        self.objects: Objects = store.objects  # type: ignore[attr-defined]
        self.path = array.path
        self._images, self._leading = images, leading
        self._open(array)

    def _open(self, array: zarr.Array[Any]) -> None:
        self.array = array
        self.rows_shape = (self._images, *array.shape[1 : self._leading])
        self.row_shape = tuple(array.shape[self._leading :])
        self.row_bytes = row_bytes(self.row_shape)
        self.packed = array.shards is not None
        self.encoding = None if self.packed else encoding_of(array)

    def present(self) -> NDArray[np.bool_]:
        """Which rows are there, (images,) or (images, draws); one listing, no row is read. Of a packed array its
        metadata say which it lacks."""
        if self.packed:
            missing = np.array(self.array.attrs.get(MISSING, ()), dtype=np.intp).reshape(-1, self._leading)
            packed = np.ones(self.array.shape[: self._leading], dtype=bool)
            packed[tuple(missing.T)] = False
            found = np.zeros(self.rows_shape, dtype=bool)
            found[: len(packed)] = packed[: self._images]
            return found
        ndim = self.array.ndim
        rows = [row_of_name(name, self._leading, ndim) for name in self.objects.level(self.path)[0]]
        known = [row for row in rows if row is not None and row[0] < self._images]
        draws = (max(own, *(row[1] + 1 for row in known), 0) for own in self.rows_shape[1:])
        found = np.zeros((self._images, *draws), dtype=bool)
        found[tuple(np.array(known, dtype=np.intp).reshape(-1, self._leading).T)] = True
        return found

    def stored_bytes(self) -> int:
        """Of all its rows; of rounded ones every object is looked at."""
        if self.encoding is not None and self.encoding.keepbits is None:
            return int(self.present().sum()) * self.row_bytes
        return sum(one.bytes for one in self.objects.below(self.path) if not one.key.endswith(METADATA))

    def read(self, row: Row) -> NDArray[np.float16]:
        """The values of one row. Raises `StoreError`, naming array and row, where it is missing or fails its
        checksum."""
        try:
            values = self._values(row)
        except _ROW_ERRORS as error:
            by_hand = "" if self.packed else f"delete {self.key(row)} and run the same command again, or "
            raise StoreError(
                f"{self._named(row)} is damaged ({error}): {by_hand}run `dualsd cache verify --drop`."
            ) from error
        if values is None or not is_finite(values):
            raise StoreError(f"{self._named(row)} is not cached.")
        return values

    def damage(self, row: Row) -> str | None:
        """What is wrong with a row that is there, None where nothing is. The row is read whole."""
        try:
            values = self._values(row)
        except _ROW_ERRORS as error:
            return str(error) or repr(error)
        if values is None:
            return "it is missing" if self.packed else None
        return None if is_finite(values) else "it holds values that are not finite"

    def _values(self, row: Row) -> NDArray[np.float16] | None:
        while True:
            asked = self.array
            try:
                values = self._stored(row)
            except (ValueError, RuntimeError):
                if not self._changed(asked):
                    raise
                continue
            if values is not None or not self._changed(asked):
                return values

    def _stored(self, row: Row) -> NDArray[np.float16] | None:
        if self.encoding is None:
            inside = all(index < size for index, size in zip(row, self.array.shape, strict=False))
            values = np.asarray(self.array[row]) if inside else None
            return None if values is None or np.isnan(values).all() else values  # zarr fills what is not there
        content = self.objects.get(self.key(row))
        return None if content is None else self.encoding.decode(content, self.row_shape)

    def _changed(self, asked: zarr.Array[Any]) -> bool:
        """Whether another process packed or unpacked it since it was opened as it was `asked`; it is then opened again,
        by this thread or another."""
        try:
            now = zarr.open_array(asked.store_path, mode="r+", zarr_format=3)
        except METADATA_ERRORS:
            return False
        # not as objects: the values that missing rows are filled with are NaN, and differ from themselves
        if now.metadata.to_dict() == asked.metadata.to_dict():
            return False
        self._open(now)
        return True

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row atomically. Raises `StoreError` where a value is not finite as it is kept or the array is
        packed, `DiskFullError` where there is no room."""
        self.check_loose()
        encoding = self.encoding or RAW
        kept = encoding.round(values)
        if not is_finite(kept):
            raise StoreError(
                f"{self._named(row)} would hold values that are not finite in {kept.dtype}: the model overflowed; "
                "try --dtype float32."
            )
        if kept.shape != self.row_shape:
            raise StoreError(f"{self._named(row)} has shape {self.row_shape}, and cannot hold {kept.shape}.")
        with writing(self._named(row), self.row_bytes, place=self.objects.disk):
            if self.encoding is None:
                self.array[row] = kept
            else:
                self.objects.put(self.key(row), *encoding.encode(kept))

    def delete_rows(self, rows: Iterable[Row]) -> None:
        """Forget rows, whether they are there or not. Raises `StoreError` where the array is packed."""
        self.check_loose()
        self.objects.delete([self.key(row) for row in rows])

    def has_room(self, rows: Sequence[int]) -> bool:
        """Whether its metadata say that there is room for so many rows along each of the leading dimensions; readers
        without dualsd go by that. A packed array has the room that it has."""
        return self.packed or all(own >= asked for own, asked in zip(self.array.shape, rows, strict=False))

    def lengthen(self, rows: Sequence[int]) -> None:
        """Let the metadata say that there is room, see `has_room`. The caller holds the store's lock."""
        self._changed(self.array)
        if not self.has_room(rows):
            longer = (*map(max, self.array.shape, rows), *self.array.shape[len(rows) :])
            with writing(f"The size of {self._where}", place=self.objects.disk):
                metadata = self.array.metadata.update_shape(longer).to_buffer_dict(default_buffer_prototype())
                self.objects.put(f"{self.path}/{METADATA}", metadata[METADATA].to_bytes())
            self._changed(self.array)

    def check_loose(self) -> None:
        """Raise `StoreError` where the array is packed: to write a row of a shared object is to write that anew, and of
        two processes that do one would lose its rows."""
        if self.packed:
            self._changed(self.array)
        if self.packed:
            raise StoreError(f"The {self._where} is packed: run `dualsd cache unpack` before its rows change.")

    def key(self, row: Row) -> str:
        """The key of the object that a row is, within the store."""
        return f"{self.path}/{row_name(row, len(self.row_shape))}"

    def _named(self, row: Row) -> str:
        return f"Row {', '.join(map(str, row))} of {self._where}"

    @property
    def _where(self) -> str:
        return f"array {self.path!r} in {self.objects}"


def encoding_of(array: zarr.Array[Any]) -> Encoding | None:
    """How the rows of an array lie in objects of their own; None where that is not a way of dualsd's."""
    metadata = array.metadata
    if not isinstance(metadata, ArrayV3Metadata) or array.dtype != DTYPE:
        return None
    bits = metadata.attributes.get("keepbits")
    for encoding in ENCODINGS.values():
        kinds = [BytesCodec, *map(type, encoding.compressors), Crc32cCodec]
        if encoding.keepbits == bits and [*map(type, metadata.codecs)] == kinds and metadata.codecs[0] == BytesCodec():
            return encoding
    return None


def _dimension_names(path: str, leading: int, dimensions: int) -> list[str]:
    """What readers such as xarray call an array's dimensions."""
    rest = ("token", "channel") if path.startswith("cond/") else ("channel", "y", "x")
    usual = dimensions == len(rest) and not path.startswith("grids/")
    return [*("image", "draw")[:leading], *(rest if usual else (f"axis{index}" for index in range(dimensions)))]


def create_rows(
    group: zarr.Group,
    path: str,
    rows: Sequence[int],
    row_shape: Sequence[int],
    encoding: Encoding = RAW,
    shard: Sequence[int] | None = None,
) -> None:
    """Make an array of rows of `row_shape`: one row one object or, packed, one object for as many rows as `shard` says
    along each of the leading dimensions."""
    group.create_array(
        path,
        shape=(*rows, *row_shape),
        chunks=(*[1] * len(rows), *row_shape),
        shards=None if shard is None else (*shard, *row_shape),
        dtype="float16",
        fill_value=float("nan"),
        filters=None,
        # zarr's default, zstd alone, is slow to read and gains nothing on features
        compressors=[*encoding.compressors, Crc32cCodec()],
        # Flat names: the default puts a folder a dimension around every row. Shards have it, so that they and rows can
        # lie beside each other while one is made of the other.
        chunk_key_encoding={"name": "default", "separator": "." if shard is None else "/"},
        attributes={} if encoding.keepbits is None else {"keepbits": encoding.keepbits},
        dimension_names=_dimension_names(path, len(rows), len(row_shape)),
    )


def require_rows(
    root: zarr.Group, path: str, rows: Sequence[int], row_shape: Sequence[int], encoding: Encoding = RAW
) -> RowArray:
    """The array at `path`, made where it is not there. Any number of processes may ask for it at once.

    Args:
        root: The store's root group.
        path: Within it.
        rows: (images,) or (images, draws).
        row_shape: Of one row.
        encoding: How its rows are kept.

    Raises:
        StoreError: Where other rows lie there.
    """
    require_parents(root, path)
    found = open_rows(root, path, len(rows), rows[0])
    if found is None:
        objects = objects_of(root)
        with writing(f"The array {path!r} of {objects}", place=objects.disk):
            create_missing(objects, lambda made: create_rows(made, path, rows, row_shape, encoding))
        found = open_rows(root, path, len(rows), rows[0])
    if found is None or found.row_shape != tuple(row_shape):
        raise StoreError(f"The array {path!r} of the store has another shape than {tuple(row_shape)} a row.")
    if not found.has_room(rows):
        with found.objects.exclusive("room for more rows", lambda _: None):
            found.lengthen(rows)
    return found


def open_rows(root: zarr.Group, path: str, leading: int, images: int) -> RowArray | None:
    """The array at `path`, None where there is none. Raises `MetadataError` where its metadata are damaged."""
    try:
        array = root.get(path)
        if not isinstance(array, zarr.Array):
            return None
        fault = _fault(array, leading)
        if fault is None:
            return RowArray(array, leading, images)
    except METADATA_ERRORS as error:
        fault = str(error) or repr(error)
    raise damaged_metadata(root, path, fault)


def _fault(array: zarr.Array[Any], leading: int) -> str | None:
    """Why an array is none of rows."""
    dimensions, row_shape = array.ndim - leading, array.shape[leading:]
    if dimensions < 1 or array.chunks != (*[1] * leading, *row_shape):
        return f"chunks of {array.chunks} are not one row each"
    if array.dtype != DTYPE:
        return f"rows of {array.dtype} are none of dualsd's"
    if not np.isnan(array.fill_value):
        return f"missing rows of {array.dtype} would read as {array.fill_value}"
    if array.shards is None and array.metadata.encode_chunk_key((0,) * array.ndim) != f"c{'.0' * array.ndim}":
        return "its rows have other names"
    return None


def unlike(array: RowArray, row_shape: Sequence[int]) -> str | None:
    """What of an array's metadata is not what is written for rows of `row_shape`; None where all is. Its values may
    read well all the same: in another order of bytes, of cells or of channels."""
    made, shape, shards = zarr.create_group(MemoryStore()), array.array.shape, array.array.shards
    leading = len(array.rows_shape)
    bits = array.array.attrs.get("keepbits")
    encoding = next((own for own in ENCODINGS.values() if own.keepbits == bits), RAW)
    shard = None if shards is None else shards[:leading]
    try:
        create_rows(made, array.path, shape[:leading], row_shape, encoding, shard)
    except ValueError as error:
        return str(error)
    expected = made[array.path]
    assert isinstance(expected, zarr.Array)
    ours, theirs = (one.metadata.to_dict() for one in (expected, array.array))
    for name in ("shape", "data_type", "fill_value", "chunk_grid", "codecs", "chunk_key_encoding"):
        if str(ours[name]) != str(theirs[name]):  # as text: the NaN that rows are filled with differs from itself
            return f"its {name} is {theirs[name]} where {ours[name]} belongs"
    return None


REQUESTS = 8
"""Rows that are read ahead or written behind at once."""

AHEAD_BYTES = 256 * 2**20
"""Of rows that are read ahead or written behind, at most; two are always."""

SETTLE_SECONDS = 10.0
"""After which the names of the rows that were written are on the disk as well."""

WriteRow = Callable[[RowArray, Row, NDArray[Any]], None]
"""Writes a row of an array behind, see `RowArray.write`: errors come up later."""


@contextmanager
def row_writer() -> Iterator[WriteRow]:
    """Writes rows in threads, a few at a time, while others are computed; whoever is too fast waits. When it ends all
    are written, or what one of them raised is raised. Rows that were handed over must not be changed any more."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="write-behind") as writers:
        under_way: deque[tuple[int, Future[None]]] = deque()
        arrays: dict[int, RowArray] = {}
        settled = time.monotonic()

        def settle() -> None:
            while under_way:
                under_way.popleft()[1].result()
            for array in arrays.values():
                array.objects.settle([array.path])
            arrays.clear()

        def write(array: RowArray, row: Row, values: NDArray[Any]) -> None:
            nonlocal settled
            if time.monotonic() - settled > SETTLE_SECONDS:
                settle()
                settled = time.monotonic()
            # what is done is looked at with every row, so that an error comes up at the next
            while (
                (under_way and under_way[0][1].done())
                or len(under_way) >= 2 * REQUESTS
                or (len(under_way) > 1 and sum(size for size, _ in under_way) + values.nbytes > AHEAD_BYTES)
            ):
                under_way.popleft()[1].result()
            arrays[id(array)] = array
            under_way.append((values.nbytes, writers.submit(array.write, row, values)))

        try:
            yield write
        except BaseException:
            for _, waiting in under_way:
                waiting.cancel()
            raise
        settle()
