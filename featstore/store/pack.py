"""Pack the rows of finished arrays into few large objects, and unpack them again: Zarr's own sharding codec, which
zarr writes and reads.

A store of SPair-71k holds 1,800 files an array, and file systems of clusters count files. Packed rows are read as
before, but they are not written: to write a row of a shared file is to write that file anew, and of two processes that
do one would lose its rows. Whatever has to change a packed array unpacks it first: new images, more noise draws, a
damaged row. Pack again afterwards.

The shards lie beside the rows, under names of their own, and the array's metadata say which of the two is the array.
They are one small object, replaced in one step: before it the old ones count, after it the new ones. Whichever are left
over when a run is killed take room and are never read; the next packing or unpacking sweeps them away.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zarr
from zarr import AsyncArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV3Metadata

from featstore.errors import StoreError
from featstore.files import writing
from featstore.plain_text import free_bytes, human_bytes
from featstore.progress import Progress
from featstore.store.keys import METADATA, StoredObject
from featstore.store.metadata import metadata_of
from featstore.store.rows import ENCODINGS, MISSING, RAW, Encoding, Row, RowArray, create_rows, row_of_name
from featstore.store.store import Store

SHARD_BYTES = 128_000_000
"""About as large as a file becomes: 64 to 256 MB are few enough files, and small enough to move."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What became of an array. files_before, files_after: that hold its rows; equal for one that was left as it was, as
    `why` says."""

    path: str
    bytes: int
    files_before: int
    files_after: int
    why: str = ""


def pack(store: Store, progress: Progress) -> list[Packed]:
    """Pack every array that has the rows of all images that are here. Raises `StoreError` for a damaged row, and where
    the disk has no room for an array beside itself; what was packed before stays packed."""
    found = []
    for path in store.arrays():
        with store.objects.exclusive("packing", progress.note):
            now = store.newest()  # whoever adds images waits for the lock before their rows are written
            array = now.array(path)
            found.append(Packed(path, 0, 0, 0, "it is gone") if array is None else _pack(now, array, progress))
    return found


def unpack(store: Store, paths: Iterable[str], progress: Progress) -> list[str]:
    """Unpack those arrays at `paths` that are packed, and clear away what a killed run left beside the others: which
    were packed. Raises `StoreError` where the disk has no room."""
    unpacked = []
    for path in paths:
        array = store.array(path)
        if array is None or not (array.packed or strays(array)):
            continue
        with store.objects.exclusive("unpacking", progress.note):
            again = store.array(path)  # another process may have been first
            if again is not None and again.packed:
                unpack_array(again, progress)
                unpacked.append(path)
            elif again is not None:
                sweep_strays(again)
    return unpacked


def shard_rows(rows_shape: Row, row_bytes: int) -> Row:
    """How many rows go into a file, along each leading dimension: all draws of an image into one file."""
    images, *draws = rows_shape
    files = max(round(math.prod(rows_shape) * row_bytes / SHARD_BYTES), 1)
    return (math.ceil(images / files), *draws)


def _pack(store: Store, array: RowArray, progress: Progress) -> Packed:
    """Pack an array where that can be done. The caller holds the store's lock."""
    present = array.present()
    files = int(present.sum())
    missing = int((~present[[*store.images.rows.values()]]).sum())
    why = ""
    if array.packed:
        sweep_strays(array)
        files, why = len(array.objects.below(f"{array.path}/c")), "packed already"
    elif array.encoding is None:
        why = "stored otherwise than dualsd does"
    elif missing:
        why = f"{missing} of {present.size} rows are missing"
    elif files < 2:
        why = "one file already"
    size = array.stored_bytes()
    return Packed(array.path, size, files, files if why else pack_array(array, progress), why)


def pack_array(array: RowArray, progress: Progress) -> int:
    """Pack an array, whose missing rows are those of images that are gone: into how many files. The caller holds the
    store's lock.

    Raises `StoreError` for a damaged row, and where the disk has no room for the array beside itself.
    """
    shard = shard_rows(array.rows_shape, array.row_bytes)
    starts = range(0, array.rows_shape[0], shard[0])
    present, packed = array.present(), _rearranged(array, shard)
    if not present.all():
        packed.metadata.attributes[MISSING] = np.argwhere(~present).tolist()
    with _replacing(array, packed, "packing"):
        progress.start(f"packing {array.path}", present.size, "rows")
        for start in starts:
            images = range(start, min(start + shard[0], array.rows_shape[0]))
            block = np.full((len(images), *array.array.shape[1:]), np.nan, dtype=np.float16)
            for row in _rows(images, array):
                block[(row[0] - start, *row[1:])] = array.read(row) if present[row] else np.nan
                progress.advance()
            packed[start : images.stop] = block
        progress.start(f"reading {array.path} again", present.size, "rows")
        for row in map(tuple, np.argwhere(present).tolist()):
            if not np.array_equal(np.asarray(packed[row]), array.read(row)):
                raise StoreError(f"Row {row[0]} of array {array.path!r} was not packed as it was: the disk is failing.")
            progress.advance()
    return len(starts)


def unpack_array(array: RowArray, progress: Progress) -> list[Row]:
    """Give every row of a packed array an object of its own again. Rows that are damaged are lost: returned, and noted.
    The caller holds the store's lock.

    Raises `StoreError` where the disk has no room for the array beside itself.
    """
    loose, encoding = _rearranged(array, None), _stated(array)
    everyone = RowArray(array.array, len(array.rows_shape), array.array.shape[0])  # more than this process knows, maybe
    lost: list[Row] = []
    with _replacing(array, loose, "unpacking"):
        rows = [*map(tuple, np.argwhere(everyone.present()).tolist())]
        progress.start(f"unpacking {array.path}", len(rows), "rows")
        for row in rows:
            if everyone.damage(row) is None:
                array.objects.put(array.key(row), *encoding.encode(everyone.read(row)))
            else:
                lost.append(row)
            progress.advance()
    if lost:
        progress.note(f"{len(lost)} rows of {array.path} were damaged and are lost; they can be made anew")
    return lost


def _rows(images: Iterable[int], array: RowArray) -> Iterator[Row]:
    return ((image, *draws) for image in images for draws in np.ndindex(array.array.shape[1 : len(array.rows_shape)]))


def _stated(array: RowArray) -> Encoding:
    """The encoding that an array's attributes state."""
    bits = array.array.attrs.get("keepbits")
    return next((own for own in ENCODINGS.values() if own.keepbits == bits), RAW)


def _rearranged(array: RowArray, shard: Sequence[int] | None) -> zarr.Array[ArrayV3Metadata]:
    """An array's rows in the other way of storing them, whose metadata are not there yet: nobody sees it."""
    rows = (max(array.rows_shape[0], array.array.shape[0]), *array.array.shape[1 : len(array.rows_shape)])
    made = metadata_of(lambda group: create_rows(group, array.path, rows, array.row_shape, _stated(array), shard))
    metadata = ArrayV3Metadata.from_dict(json.loads(made[f"{array.path}/{METADATA}"]))
    return zarr.Array(AsyncArray(metadata, array.array.store_path))


@contextmanager
def _replacing(array: RowArray, by: zarr.Array[ArrayV3Metadata], doing: str) -> Iterator[None]:
    """Within, what `by` consists of is made, which is then the array. Until it is done the array lies there twice."""
    sweep_strays(array)
    disk = array.objects.disk
    size = array.stored_bytes()
    free = size if disk is None else free_bytes(disk)
    if size > free:
        raise StoreError(
            f"For {doing} the array {array.path!r} its {human_bytes(size)} must fit beside it, but only "
            f"{human_bytes(free)} are free: make room and run the same command again."
        )
    try:
        with writing(f"The {doing.removesuffix('ing')}ed array {array.path!r}", place=disk):
            yield
            metadata = by.metadata.to_buffer_dict(default_buffer_prototype())
            array.objects.put(f"{array.path}/{METADATA}", metadata[METADATA].to_bytes())
    finally:
        # whichever does not count now: the old objects where it went well, else the new ones
        now = zarr.open_array(array.array.store_path, mode="r+", zarr_format=3)
        sweep_strays(RowArray(now, len(array.rows_shape), array.rows_shape[0]))


def strays(array: RowArray) -> list[StoredObject]:
    """What packing or unpacking left when it was killed: single rows of a packed array, or packed ones of one that is
    not."""
    if not array.packed:
        return array.objects.below(f"{array.path}/c") if "c" in array.objects.level(array.path)[1] else []
    leading, ndim = len(array.rows_shape), array.array.ndim
    found = array.objects.below(array.path)
    return [one for one in found if row_of_name(one.key.rpartition("/")[2], leading, ndim) is not None]


def sweep_strays(array: RowArray) -> None:
    """Delete them, and what was half written. The caller holds the store's lock: another process may be packing."""
    array.objects.sweep([array.path])
    if array.packed:
        array.objects.delete([one.key for one in strays(array)])
    else:
        array.objects.remove(f"{array.path}/c")
