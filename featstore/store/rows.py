"""Arrays whose rows are there or not: one row one object, written atomically, with a checksum.

No bookkeeping: which rows are there is read off the objects themselves, so it cannot go stale. A finished array may be
packed into few large files (see `featstore.store.pack`): it is read as before, and its rows are not written.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, StorePath

from featstore.errors import MetadataError, StoreError
from featstore.files import writing
from featstore.store.keys import METADATA_ERRORS, StoreLocation
from featstore.store.row_file import Row as Row
from featstore.store.row_file import (
    RowObjects,
    ShardFiles,
    encoding_for,
    encoding_of,
    row_bytes,
    row_name,
    row_of_name,
    stored_rows,
)
from featstore.store.schema import create_missing

_ROW_ERRORS = (ValueError, OSError, RuntimeError, IndexError, BufferError)


class RowArray:
    """An array (*rows, *row shape) of which single rows are written, read and deleted.

    `leading` of its dimensions count rows: 1 for latents and maps, 2 for noisy latents (image, draw).

    array: as zarr knows it. path: within the store. rows_shape: (images,) or (images, draws). row_shape: of one row's
    values; on the disk it may be another, see `featstore.store.row_file`. dtype: of the values on the disk. row_bytes:
    of one row on the disk, checksum included. read_bytes: of one row's values as they are read. files: its rows where
    they lie; None where they are stored otherwise than dualsd does.
    """

    def __init__(self, array: zarr.Array[Any], leading: int) -> None:
        self._open(array, leading)

    def _open(self, array: zarr.Array[Any], leading: int) -> None:
        self._encoding = encoding_of(array, leading)
        self._stored_shape = tuple(array.shape[leading:])
        self.array, self.path, self.dtype = array, array.path, str(array.dtype.name)
        self.rows_shape = tuple(array.shape[:leading])
        self.row_shape = self._encoding.shape(self._stored_shape)
        self.row_bytes = row_bytes(self.dtype, self.row_shape)
        self.read_bytes = math.prod(self.row_shape) * self._encoding.read_dtype.itemsize
        self.files = stored_rows(array, leading)

    @property
    def packed(self) -> bool:
        """Whether many rows share a file."""
        return isinstance(self.files, ShardFiles)

    def present(self) -> NDArray[np.bool_]:
        """Which rows are there, shape `rows_shape`; one listing, no row is read."""
        if isinstance(self.files, ShardFiles):
            return self.files.present(self.rows_shape)
        found = np.zeros(self.rows_shape, dtype=bool)
        for name in sync(_names(self.array)):
            row = row_of_name(name, len(self.rows_shape), self.array.ndim)
            if row is not None and self._has_room_for(row):
                found[row] = True
        return found

    def read(self, row: Row) -> NDArray[Any]:
        """The values of one row. Raises `StoreError`, naming array and row, where it is missing or fails its
        checksum."""
        try:
            values = self._values(row)
        except _ROW_ERRORS as error:
            by_hand = "" if self.packed else f"delete {self._key(row)} and run the same command again, or "
            raise StoreError(
                f"{self._named(row)} is damaged ({error}): {by_hand}run `dualsd cache verify --drop`."
            ) from error
        if values is None or not self._encoding.is_row(values):
            raise StoreError(f"{self._named(row)} is not cached.")
        return self._encoding.decode(values)

    def damage(self, row: Row) -> str | None:
        """What is wrong with a row that is there, None where nothing is. The row is read whole."""
        try:
            values = self._values(row)
        except _ROW_ERRORS as error:
            return str(error)
        return None if values is None or self._encoding.is_row(values) else "it holds values that are not finite"

    def _values(self, row: Row) -> NDArray[Any] | None:
        """As they are stored."""
        while True:
            try:
                values = self._stored(row)
            except ValueError:
                if self._changed():
                    continue
                raise
            if values is not None:
                return values
            if not self._changed():
                return self._stored(row)  # it may have been packed and unpacked in between

    def _stored(self, row: Row) -> NDArray[Any] | None:
        if self.files is None or not self._has_room_for(row):
            return np.asarray(self.array[row])
        return self.files.read(row)

    def _has_room_for(self, row: Row) -> bool:
        return all(index < size for index, size in zip(row, self.rows_shape, strict=True))

    def _changed(self) -> bool:
        """Whether another process packed, unpacked or grew it since it was opened; it is then opened again."""
        try:
            now = zarr.open_array(self.array.store_path, mode="r+", zarr_format=3)
        except METADATA_ERRORS:
            return False
        # not as objects: the values that missing rows are filled with are NaN, and differ from themselves
        if now.metadata.to_dict() == self.array.metadata.to_dict():
            return False
        self._open(now, len(self.rows_shape))
        return True

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row atomically. Raises `StoreError` where a value is not finite in the stored precision or the
        array is packed, `DiskFullError` where there is no room."""
        self._check_loose()
        stored = self._encoding.encode(values)
        if not self._encoding.is_row(stored):
            raise StoreError(
                f"{self._named(row)} would hold values that are not finite in {stored.dtype}: the model overflowed; "
                "try --dtype float32."
            )
        with writing(self._named(row), self.row_bytes, place=disk_of(self.array.store_path)):
            if isinstance(self.files, RowObjects) and stored.shape == self._stored_shape:
                self.files.write(row, stored)
            else:
                self.array[row] = stored

    def delete(self, row: Row) -> None:
        """Forget one row, whether it is there or not. Raises `StoreError` where the array is packed."""
        self.delete_rows([row])

    def delete_rows(self, rows: Sequence[Row]) -> None:
        """Forget rows, whether they are there or not. Raises `StoreError` where the array is packed."""
        self._check_loose()
        keys = [self._key(row) for row in rows]
        if isinstance(self.files, RowObjects):  # a thousand a request: a lock that is held for it is not held for long
            self.files.bucket.delete(keys)
        else:
            for key in keys:
                sync(self.array.store_path.store.delete(key))

    def grow(self, draws: int) -> None:
        """Make room for `draws` draws an image; never shrinks. Raises `StoreError` where the array is packed."""
        # as it is now: another process may have grown it since it was opened
        self._changed()
        images, have = self.rows_shape
        if draws > have:
            self._check_loose()
            with writing(f"The size of {self._where}", place=disk_of(self.array.store_path)):
                self.array.resize((images, draws, *self._stored_shape))
            self._open(self.array, 2)

    def _check_loose(self) -> None:
        if self.packed:
            self._changed()
        if self.packed:
            # A row of a shared file is written by writing that file anew: of two processes one would lose its rows.
            raise StoreError(f"The {self._where} is packed: run `dualsd cache unpack` before its rows change.")

    def _key(self, row: Row) -> str:
        """The key of the object that a row is, within the store."""
        return f"{self.path}/{row_name(row, len(self._stored_shape))}"

    def _named(self, row: Row) -> str:
        return f"Row {', '.join(map(str, row))} of {self._where}"

    @property
    def _where(self) -> str:
        return f"array {self.path!r} in {self.array.store_path.store}"


def require_rows(group: zarr.Group, path: str, rows: Sequence[int], row_shape: Sequence[int], dtype: str) -> RowArray:
    """The array at `path`, made where it is not there: rows of `row_shape`, chunks of one row. Any number of processes
    may ask for it at once. Raises `StoreError` where other rows lie there."""
    for parent in PurePosixPath(path).parents[:-1]:
        # Stores of earlier versions may lack some: a kill could leave an array in a folder that is no group, where no
        # listing finds it. Damaged ones are what `cache verify` is for; what lies in them can be read without.
        with suppress(MetadataError):
            require_group(group, parent.as_posix(), {})
    if open_rows(group, path, len(rows)) is None:
        with writing(f"The array {path!r} of {group.store_path}", place=disk_of(group.store_path)):
            create_missing(group, lambda made: create_rows(made, path, rows, row_shape, dtype))
    found = open_rows(group, path, len(rows))
    if found is None or found.row_shape != tuple(row_shape):
        raise StoreError(f"The array {path!r} of the store has another shape than {tuple(row_shape)} a row.")
    if found.dtype != dtype:
        raise StoreError(
            f"The array {path!r} of the store holds {found.dtype} where {dtype} belongs: delete that folder and run "
            "the same command again."
        )
    return found


def require_group(root: zarr.Group, path: str, description: Mapping[str, Any]) -> None:
    """Make a group where it is not there, and let it say what its arrays are. Raises `MetadataError` where its own
    metadata are damaged."""
    try:
        with writing(f"The group {path!r} of {root.store_path}", place=disk_of(root.store_path)):
            if path not in root:
                # in one write, and not an attribute at a time: a kill would leave a group that says half of what it is
                create_missing(root, lambda made: made.create_group(path, attributes=dict(description)))
            group = root.require_group(path)
            if group.attrs.keys() < description.keys():  # one that was made on the way to an array, or half described
                group.update_attributes(dict(description))
    except METADATA_ERRORS as error:
        raise damaged_metadata(root, path, str(error) or repr(error)) from error


def disk_of(place: StorePath) -> Path | None:
    """The folder of a store on a local disk, None where it lies elsewhere."""
    return place.store.root if isinstance(place.store, LocalStore) else None


def create_rows(
    group: zarr.Group,
    path: str,
    rows: Sequence[int],
    row_shape: Sequence[int],
    dtype: str,
    shard: Sequence[int] | None = None,
) -> None:
    """Make an array of rows of `row_shape`, whose values lie on the disk as `dtype`: one row one object or, packed, one
    object for as many rows as `shard` says along each of the leading dimensions."""
    encoding = encoding_for(dtype)
    stored_shape = encoding.stored_shape(row_shape)
    group.create_array(
        path,
        shape=(*rows, *stored_shape),
        chunks=(*[1] * len(rows), *stored_shape),
        shards=None if shard is None else (*shard, *stored_shape),
        dtype=dtype,
        fill_value=encoding.fill_value,
        filters=None,
        # zarr's default, zstd, is slow to read and gains nothing on features
        compressors=Crc32cCodec(),
        # Flat names: the default puts a folder a dimension around every row. Shards have it, so that they and rows can
        # lie beside each other while one is made of the other.
        chunk_key_encoding={"name": "default", "separator": "." if shard is None else "/"},
    )


def open_rows(group: zarr.Group, path: str, leading: int) -> RowArray | None:
    """The array at `path`, None where there is none. Raises `MetadataError` where its metadata are damaged, and
    `StoreError` for a packed one on object storage."""
    try:
        array = group.get(path)
        if not isinstance(array, zarr.Array):
            return None
        if array.shards and not isinstance(group.store_path.store, LocalStore):
            raise StoreError(
                f"{path!r} in {group.store_path} is packed, which only a store on a local disk may be: unpack it there "
                "with `dualsd cache unpack`, and copy it again."
            )
        fault = _fault(array, leading)
        if fault is None:
            return RowArray(array, leading)
    except METADATA_ERRORS as error:
        fault = str(error) or repr(error)
    raise damaged_metadata(group, path, fault)


def unlike(array: RowArray, row_shape: Sequence[int], dtype: str) -> str | None:
    """What of an array's metadata is not what is written for rows of `row_shape` that lie on the disk as `dtype`; None
    where all is. Its values may read well all the same: in another order of bytes, of cells or of channels."""
    made = zarr.create_group(MemoryStore())
    leading = len(array.rows_shape)
    shards = array.array.shards
    try:
        create_rows(made, "x", array.rows_shape, row_shape, dtype, None if shards is None else shards[:leading])
    except ValueError as error:
        return str(error)
    expected = made["x"]
    assert isinstance(expected, zarr.Array)
    ours, theirs = (one.metadata.to_dict() for one in (expected, array.array))
    for name in ("shape", "data_type", "fill_value", "chunk_grid", "codecs", "chunk_key_encoding"):
        if str(ours[name]) != str(theirs[name]):  # as text: the NaN that rows are filled with differs from itself
            return f"its {name} is {theirs[name]} where {ours[name]} belongs"
    return None


def damaged_metadata(group: zarr.Group, path: str, fault: str) -> MetadataError:
    """What to raise of an array or a group whose metadata cannot be what was written."""
    return MetadataError(
        f"{path!r} in {group.store_path} has damaged metadata ({fault}): run `dualsd cache verify --drop`, or delete "
        "that folder and run the same command again.",
        fault,
    )


def _fault(array: zarr.Array[Any], leading: int) -> str | None:
    """Why an array is none of rows, or none that is read here."""
    dimensions, stored_shape = array.ndim - leading, array.shape[leading:]
    if dimensions < 1 or array.chunks != (*[1] * leading, *stored_shape):
        return f"chunks of {array.chunks} are not one row each"
    encoding_of(array, leading)  # says by a ValueError what is wrong with its values
    if array.shards is not None and stored_rows(array, leading) is None:
        return f"its shards of {array.shards} are not those of `dualsd cache pack`"
    if array.shards is None and array.metadata.encode_chunk_key((0,) * array.ndim) != f"c{'.0' * array.ndim}":
        return "its rows have other names"
    return None


async def _names(array: zarr.Array[Any]) -> list[str]:
    return [name async for name in array.store_path.store.list_dir(array.path)]


REQUESTS = 8
"""Requests under way at once, of reading ahead and of writing behind."""

AHEAD_BYTES = 256 * 2**20
"""Of rows that are read ahead, at most; two images are always."""

BEHIND_BYTES = 256 * 2**20
"""Of rows that wait to be written, at most, and one row more."""

WriteRow = Callable[[RowArray, Row, NDArray[Any]], None]
"""Writes a row of an array, see `RowArray.write`; where it is behind, errors come up later."""


def reads_ahead(store: StoreLocation) -> int:  # noqa: ARG001
    """How many reads of small rows run ahead of what is computed."""
    return REQUESTS


@contextmanager
def row_writer(store: StoreLocation) -> Iterator[WriteRow]:  # noqa: ARG001
    """Writes rows in threads, a few at a time. When it ends all are written, or what one of them raised is raised; that
    comes up with the next row at the latest. Rows that were handed over must not be changed any more. `BEHIND_BYTES` of
    them wait at most."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="write-behind") as writers:
        under_way: deque[tuple[Future[None], int]] = deque()

        def write(array: RowArray, row: Row, values: NDArray[Any]) -> None:
            while under_way and (under_way[0][0].done() or sum(size for _, size in under_way) > BEHIND_BYTES):
                under_way.popleft()[0].result()
            under_way.append((writers.submit(array.write, row, values), values.nbytes))

        yield write
        for written, _ in under_way:
            written.result()
