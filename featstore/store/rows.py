"""Arrays whose rows are there or not: one row one object, written atomically, with a checksum.

No bookkeeping: which rows are there is read off the objects themselves, so it cannot go stale. A finished array may be
packed into few large files (see `featstore.store.pack`): it is read as before, and its rows are not written.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, StorePath

from featstore.errors import MetadataError, StoreError
from featstore.files import writing
from featstore.store.row_encoding import encoding_for, encoding_of, row_bytes
from featstore.store.row_file import Row as Row
from featstore.store.row_file import (
    RowFiles,
    ShardFiles,
    row_files,
    row_name,
    row_objects,
    row_of_name,
    shard_files,
)
from featstore.store.schema import create_missing

METADATA = "zarr.json"
"""The name of an array's or a group's metadata."""

METADATA_ERRORS = (ValueError, KeyError, TypeError, OSError, AttributeError, OverflowError, AssertionError)
"""What zarr raises of metadata that are damaged."""

_ROW_ERRORS = (ValueError, OSError, RuntimeError, IndexError, BufferError)


class RowArray:
    """An array (*rows, *row shape) of which single rows are written, read and deleted.

    `leading` of its dimensions count rows: 1 for latents and maps, 2 for noisy latents (image, draw).
    """

    def __init__(self, array: zarr.Array[Any], leading: int) -> None:
        self._leading = leading
        self._open(array)

    def _open(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._shards = shard_files(array, self._leading)
        self._encoding = encoding_of(array, self._leading)
        self._stored_shape = tuple(array.shape[self._leading :])
        self._files: RowFiles | ShardFiles | None = self._shards or row_files(array, self._leading)
        self._objects = row_objects(array, self._leading)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row's values; on the disk it may be another, see `featstore.store.row_encoding`."""
        return self._encoding.shape(self._stored_shape)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """(images,) or (images, draws)."""
        return tuple(self._array.shape[: self._leading])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk, checksum included."""
        return row_bytes(self.dtype, self.row_shape)

    @property
    def read_bytes(self) -> int:
        """Bytes of one row's values as they are read."""
        return int(np.prod(self.row_shape)) * self._encoding.read_dtype.itemsize

    @property
    def dtype(self) -> str:
        """Of the values on the disk."""
        return str(self._array.dtype.name)

    @property
    def path(self) -> str:
        """Within the store."""
        return self._array.path

    @property
    def array(self) -> zarr.Array[Any]:
        """As zarr knows it."""
        return self._array

    @property
    def files(self) -> RowFiles | ShardFiles | None:
        """Its rows on a local disk; None where they are elsewhere, or stored otherwise than dualsd does."""
        return self._files

    @property
    def packed(self) -> bool:
        """Whether many rows share a file."""
        return self._shards is not None

    def present(self) -> NDArray[np.bool_]:
        """Which rows are there, shape `rows_shape`; one listing, no row is read."""
        if self._shards is not None:
            return self._shards.present(self.rows_shape)
        found = np.zeros(self.rows_shape, dtype=bool)
        for name in sync(_names(self._array.store_path.store, self._array.path)):
            row = row_of_name(name, self._leading, self._array.ndim)
            if row is not None and all(index < size for index, size in zip(row, self.rows_shape, strict=True)):
                found[row] = True
        return found

    def read(self, row: Row) -> NDArray[Any]:
        """The values of one row. Raises `StoreError`, naming array and row, where it is missing or fails its
        checksum."""
        try:
            values = self._values(row)
        except _ROW_ERRORS as error:
            raise StoreError(
                f"Row {_spell(row)} of {self._where} is damaged ({error}): {self._way_out(row)}."
            ) from error
        if values is None or not self._encoding.is_row(values):
            raise StoreError(f"Row {_spell(row)} of {self._where} is not cached.")
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
        rows = self._files or self._objects
        if rows is None or any(index >= size for index, size in zip(row, self.rows_shape, strict=True)):
            return np.asarray(self._array[row])
        return rows.read(row)

    def _changed(self) -> bool:
        """Whether another process packed, unpacked or grew it since it was opened; it is then opened again."""
        try:
            now = zarr.open_array(self._array.store_path, mode="r+", zarr_format=3)
        except METADATA_ERRORS:
            return False
        # not as objects: the values that missing rows are filled with are NaN, and differ from themselves
        if now.metadata.to_dict() == self._array.metadata.to_dict():
            return False
        self._open(now)
        return True

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row atomically. Raises `StoreError` where a value is not finite in the stored precision or the
        array is packed, `DiskFullError` where there is no room."""
        self._check_loose()
        stored = self._encoding.encode(values)
        if not self._encoding.is_row(stored):
            raise StoreError(
                f"Row {_spell(row)} of {self._where} would hold values that are not finite in {stored.dtype}: the "
                "model overflowed; try --dtype float32."
            )
        with writing(f"Row {_spell(row)} of {self._where}", self.row_bytes, place=disk_of(self._array.store_path)):
            if self._objects is None or stored.shape != self._stored_shape:
                self._array[row] = stored
            else:
                self._objects.write(row, stored)

    def delete(self, row: Row) -> None:
        """Forget one row, whether it is there or not. Raises `StoreError` where the array is packed."""
        self.delete_rows([row])

    def delete_rows(self, rows: Sequence[Row]) -> None:
        """Forget rows, whether they are there or not. Raises `StoreError` where the array is packed."""
        self._check_loose()
        if self._objects is not None:
            self._objects.delete(rows)
            return
        store: ZarrStore = self._array.store_path.store
        for row in rows:
            sync(store.delete(self._object(row)))

    def grow(self, draws: int) -> None:
        """Make room for `draws` draws an image; never shrinks. Raises `StoreError` where the array is packed."""
        # as it is now: another process may have grown it since it was opened
        self._changed()
        images, have = self.rows_shape
        if draws > have:
            self._check_loose()
            with writing(f"The size of {self._where}", place=disk_of(self._array.store_path)):
                self._array.resize((images, draws, *self._stored_shape))

    def _check_loose(self) -> None:
        if self.packed:
            self._changed()
        if self.packed:
            # A row of a shared file is written by writing that file anew: of two processes one would lose its rows.
            raise StoreError(f"The {self._where} is packed: run `dualsd cache unpack` before its rows change.")

    def _way_out(self, row: Row) -> str:
        if self.packed:
            return "run `dualsd cache verify --drop`"
        return f"delete {self._object(row)} and run the same command again, or run `dualsd cache verify --drop`"

    def _object(self, row: Row) -> str:
        """The key of the object that a row is, within the store."""
        return f"{self._array.path}/{row_name(row, len(self._stored_shape))}"

    @property
    def _where(self) -> str:
        return f"array {self._array.path!r} in {self._array.store_path.store}"


def require_rows(group: zarr.Group, path: str, rows: Sequence[int], row_shape: Sequence[int], dtype: str) -> RowArray:
    """The array at `path`, made where it is not there: rows of `row_shape`, chunks of one row. Any number of processes
    may ask for it at once. Raises `StoreError` where other rows lie there."""
    _require_parents(group, path)
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


def _require_parents(group: zarr.Group, path: str) -> None:
    """Make the groups that an array lies in. Stores of earlier versions may lack some: a kill could leave an array in a
    folder that is no group, where no listing finds it."""
    for parent in PurePosixPath(path).parents:
        name = parent.as_posix()
        if parent.name and _lacks(group, name):
            with writing(f"The group {name!r} of {group.store_path}", place=disk_of(group.store_path)):
                create_missing(group, lambda made, name=name: made.create_group(name))  # type: ignore[misc]


def disk_of(place: StorePath) -> Path | None:
    """The folder of a store on a local disk, None where it lies elsewhere."""
    return place.store.root if isinstance(place.store, LocalStore) else None


def _lacks(group: zarr.Group, path: str) -> bool:
    try:
        return path not in group
    except METADATA_ERRORS:  # damaged, which `cache verify` is for; what lies in it can be read without
        return False


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
        found = group.get(path)
        if isinstance(found, zarr.Array) and found.shards and not isinstance(group.store_path.store, LocalStore):
            raise StoreError(
                f"{path!r} in {group.store_path} is packed, which only a store on a local disk may be: unpack it there "
                "with `dualsd cache unpack`, and copy it again."
            )
        fault = _fault(found, leading) if isinstance(found, zarr.Array) else None
    except METADATA_ERRORS as error:
        fault = str(error) or repr(error)
    if fault is not None:
        raise damaged_metadata(group, path, fault)
    return RowArray(found, leading) if isinstance(found, zarr.Array) else None


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
    if not isinstance(array.metadata, ArrayV3Metadata):
        return "it is not of Zarr v3"
    if array.shards is not None and shard_files(array, leading) is None:
        return f"its shards of {array.shards} are not those of `dualsd cache pack`"
    if array.shards is None and array.metadata.encode_chunk_key((0,) * array.ndim) != row_name((0,), array.ndim - 1):
        return "its rows have other names"
    return None


def _spell(row: Row) -> str:
    return ", ".join(str(index) for index in row)


async def _names(store: ZarrStore, path: str) -> list[str]:
    return [name async for name in store.list_dir(path)]
