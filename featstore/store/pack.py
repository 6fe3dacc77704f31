"""Pack the rows of finished arrays into few large files, and unpack them again (Zarr's sharding codec).

A store of SPair-71k holds 1,800 files an array, and file systems of clusters count files. Packed rows are read as
before, by every reader and by plain zarr, but they are not written: to write a row of a shared file is to write that
file anew, and of two processes that do one would lose its rows. Whatever has to change a packed array unpacks it first:
more noise draws, an image whose file changed, a damaged row. Pack again afterwards.

The shards lie beside the rows, under names of their own, and the array's metadata say which of the two is the array.
They are one small file, replaced in one step: before it the old ones count, after it the new ones. Whichever are left
over when a run is killed take room and are never read; the next packing or unpacking sweeps them away.
"""

import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.files import replacing, writing
from featstore.plain_text import free_bytes, human_bytes
from featstore.progress import Progress
from featstore.store.keys import METADATA
from featstore.store.lock import exclusive
from featstore.store.row_file import Row, RowFiles, ShardFiles, row_of_name
from featstore.store.rows import RowArray, create_rows
from featstore.store.schema import metadata_of
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
    """Pack every array whose rows are all there. Raises `StoreError` for a damaged row, and where the disk has no room
    for an array beside itself; what was packed before stays packed; and on object storage, which does not count
    files."""
    if not isinstance(store.path, Path):
        raise StoreError(f"{store.path} cannot be packed: packing is for file systems that count their files.")
    found = []
    for path in store.arrays():
        with exclusive(store.path):
            array = store.array(path)
            found.append(Packed(path, 0, 0, 0, "it is gone") if array is None else _pack_if_whole(array, progress))
    return found


def unpack(store: Store, paths: Iterable[str], progress: Progress) -> list[str]:
    """Unpack those arrays at `paths` that are packed, and clear away what a killed run left beside the others: which
    were packed. Raises `StoreError` where the disk has no room."""
    unpacked = []
    for path in paths:
        array = store.array(path)
        if array is None or not (array.packed or strays(array)):
            continue
        with exclusive(store.path):
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


def pack_array(array: RowArray, progress: Progress) -> ShardFiles:
    """Pack an array whose rows are all there, files of their own. The caller holds the store's lock.

    Raises `StoreError` for a damaged row, and where the disk has no room for the array beside itself.
    """
    rows = array.files
    assert isinstance(rows, RowFiles), "its rows are files of their own"
    shard = shard_rows(array.rows_shape, array.row_bytes)
    shards = ShardFiles(rows.shape, rows.dtype, rows.folder, shard)
    count = math.prod(array.rows_shape)
    with _replacing(array, rows.folder, shard, "packing"):
        progress.start(f"packing {array.path}", count, "rows")
        for part in shards.shards(array.rows_shape):
            contents = _checked(array, rows, shards.rows_of(part, array.rows_shape), progress)
            _write(shards.file(part), shards.encode(contents))
        progress.start(f"reading {array.path} again", count, "rows")
        for row in np.ndindex(*array.rows_shape):
            if not _is_sound(shards, row):
                raise StoreError(f"Row {row[0]} of array {array.path!r} was not packed as it was: the disk is failing.")
            progress.advance()
    return shards


def unpack_array(array: RowArray, progress: Progress) -> list[Row]:
    """Give every row of a packed array a file of its own again, as it is, be it damaged. Rows whose file has lost its
    index are lost: returned, and noted. The caller holds the store's lock.

    Raises `StoreError` where the disk has no room for the array beside itself.
    """
    shards = array.files
    assert isinstance(shards, ShardFiles), "it is packed"
    lost: list[Row] = []
    with _replacing(array, shards.folder, None, "unpacking"):
        progress.start(f"unpacking {array.path}", math.prod(array.rows_shape), "rows")
        for row in np.ndindex(*array.rows_shape):
            try:
                content = shards.content(row)
            except ValueError:
                content = None
            if content is None:
                lost.append(row)
            else:
                _write(shards.folder / shards.name(row), [content.data])
            progress.advance()
    if lost:
        progress.note(f"{len(lost)} rows of {array.path} were lost in damaged files; they can be made anew")
    return lost


@contextmanager
def _replacing(array: RowArray, folder: Path, shard: Row | None, doing: str) -> Iterator[None]:
    """Within, the files are made that are then the array, packed as `shard` says or not. Until it is done the array
    lies there twice."""
    sweep_strays(array)
    size, free = math.prod(array.rows_shape) * array.row_bytes, free_bytes(folder)
    if size > free:
        raise StoreError(
            f"For {doing} the array {array.path!r} its {human_bytes(size)} must fit beside it, but only "
            f"{human_bytes(free)} are free: make room and run the same command again."
        )
    try:
        with writing(f"The {doing.removesuffix('ing')}ed array {array.path!r}", place=folder):
            yield
            shape, row_shape = array.rows_shape, array.row_shape
            made = metadata_of(lambda group: create_rows(group, "x", shape, row_shape, array.dtype, shard))
            _write(folder / METADATA, [made[f"x/{METADATA}"].to_bytes()])
    finally:
        # whichever does not count now: the old files where it went well, else the new ones
        now = zarr.open_array(array.array.store_path, mode="r+", zarr_format=3)
        sweep_strays(RowArray(now, len(array.rows_shape)))


def _pack_if_whole(array: RowArray, progress: Progress) -> Packed:
    present = array.present()
    there = files = int(present.sum())
    why = ""
    if isinstance(array.files, ShardFiles):
        sweep_strays(array)
        files, why = len(array.files.shards(array.rows_shape)), "packed already"
    elif array.files is None:
        why = "stored otherwise than dualsd does"
    elif there < present.size:
        why = f"{present.size - there} of {present.size} rows are missing"
    elif there < 2:
        why = "one file already"
    after = files if why else len(pack_array(array, progress).shards(array.rows_shape))
    return Packed(array.path, there * array.row_bytes, files, after, why)


def _checked(
    array: RowArray, files: RowFiles, rows: Iterable[Row], progress: Progress
) -> Iterator[tuple[Row, NDArray[np.uint8]]]:
    """The stored bytes of rows that are files of their own, each held against its checksum."""
    for row in rows:
        content = files.content(row)
        try:
            if content is None:
                raise ValueError("it is gone")
            files.values(content)
        except ValueError as error:
            raise StoreError(
                f"Row {', '.join(map(str, row))} of array {array.path!r} is damaged ({error}): run `dualsd cache "
                "verify --drop` before packing."
            ) from error
        yield row, content
        progress.advance()


def _is_sound(shards: ShardFiles, row: Row) -> bool:
    try:
        return shards.read(row) is not None
    except ValueError:
        return False


def _write(file: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file, which appears whole or not at all, and is on the disk then: what it stands for is deleted next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.writelines(pieces)


def strays(array: RowArray) -> list[Path]:
    """What packing or unpacking left when it was killed: single rows of a packed array, or packed ones of one that is
    not."""
    if isinstance(array.files, RowFiles):
        return [folder for folder in [array.files.folder / "c"] if folder.is_dir()]
    if not isinstance(array.files, ShardFiles):
        return []
    leading, ndim = len(array.rows_shape), array.array.ndim
    return [file for file in array.files.folder.iterdir() if row_of_name(file.name, leading, ndim) is not None]


def sweep_strays(array: RowArray) -> None:
    """Delete them. The caller holds the store's lock: another process may be packing."""
    for path in strays(array):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
