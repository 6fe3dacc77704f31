"""Files written whole or not at all; full disks named."""

import errno
import glob
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featstore.errors import DiskFullError, StoreError
from featstore.plain_text import free_bytes, human_bytes
from featstore.store.keys import StoreLocation

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

BLOCK_BYTES = 4096
"""A file takes whole blocks, of this size almost everywhere. One more a file is counted, and `ARRAY_BLOCKS` for folders
and metadata that an array may lack yet, so that what is said to be missing is never too little."""

ARRAY_BLOCKS = 4

AGAIN = "run the same command again"
"""What to do when there is room, of nearly every command."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Needed:
    """What is still to be written: so many bytes, in so many files, of so many arrays."""

    bytes: int
    files: int
    arrays: int


@contextmanager
def writing(what: str, size: int | None = None) -> Iterator[None]:
    """Whatever the disk refuses within becomes a `StoreError` that says so of `what`; a `DiskFullError` where there is
    no room. size: in bytes of the file, for where files may not be that large."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"{what} could not be written: the disk is full.") from error
        if error.errno == errno.EFBIG:
            raise StoreError(f"{what} could not be written: {_beyond_limit(size)}.") from error
        raise StoreError(f"{what} could not be written: {error}.") from error


@contextmanager
def naming_missing_bytes(path: StoreLocation, left: Callable[[], Needed], way_on: str = AGAIN) -> Iterator[None]:
    """A `DiskFullError` from within is raised again with the bytes that are missing where `path` lies: what is `left`
    to write, less what is free. way_on: what to do when there is room."""
    try:
        yield
    except DiskFullError as error:
        if not isinstance(path, Path):  # some other disk: object storage is never full
            raise
        raise DiskFullError(_sentence(path, left(), way_on)) from error


def missing_bytes(path: Path, needed: Needed) -> int:
    """Bytes that are missing where `path` lies for what is needed; zero or fewer where it fits."""
    return needed.bytes + (needed.files + needed.arrays * ARRAY_BLOCKS) * BLOCK_BYTES - free_bytes(path)


def _sentence(path: Path, needed: Needed, way_on: str) -> str:
    missing, free = missing_bytes(path, needed), human_bytes(free_bytes(path))
    still = f"{human_bytes(needed.bytes)} in {needed.files} files are still to be written"
    if missing <= 0:
        return (
            f"The disk of {path} takes no more, though {free} are free and {still}: there is a quota, or it holds no "
            f"more files (`dualsd cache pack` makes fewer of them); {way_on} then."
        )
    return (
        f"The disk of {path} is full, {human_bytes(missing)} are missing ({still}, {free} are free): make room and "
        f"{way_on}, what is complete is kept."
    )


def _beyond_limit(size: int | None) -> str:
    """That a file would be larger than this process, or the file system, lets one be."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource else -1
    if size is None or limit < 0 or limit >= size:
        return "no file may be that large there"
    return (
        f"it takes {human_bytes(size)}, {human_bytes(size - limit)} more than the {human_bytes(limit)} that a file may "
        f"have here; raise that limit (`ulimit -f`) and {AGAIN}"
    )


PARTIAL = ".partial"

IN_FLIGHT_SECONDS = 60.0
"""A younger half-written file may be another process's, about to be renamed: a row is written in well under a second,
and a file's time is that of the last bytes that went into it."""


@contextmanager
def open_whole(file: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write, or the one that lies there stays as it is. Several processes may write it: each writes under a
    name of its own, and the last one's stays. What a kill left half written goes with the next write, once it is
    older than `IN_FLIGHT_SECONDS`. size: in bytes, where it is known.

    Raises `DiskFullError` where there is no room, `StoreError` where the disk does not take it for another reason.
    """
    # random, and not the process's number: two containers on one disk may both have a process 7
    partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}{PARTIAL}")
    with writing(str(file), size):
        sweep_old(file.parent.glob(f"{glob.escape(file.name)}.*{PARTIAL}"))
        try:
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                # some disks say only now that they are full; and after a power cut no empty file lies in its place
                os.fsync(stream.fileno())
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(file: Path, content: bytes, way_on: str = AGAIN) -> None:
    """Write a file, or leave the one that lies there as it is, see `open_whole`. way_on: what to do when there is room.
    Raises `DiskFullError` with the bytes that are missing where there is none, `StoreError` where the disk does not
    take it for another reason."""
    needed = Needed(len(content), 1, 0)
    with naming_missing_bytes(file, lambda: needed, way_on), open_whole(file, len(content)) as stream:
        stream.write(content)


def sweep_old(partial: Iterable[Path]) -> int:
    """Delete those of some half-written files that are older than `IN_FLIGHT_SECONDS`: how many."""
    swept = 0
    for file in partial:
        try:
            if time.time() - file.stat().st_mtime > IN_FLIGHT_SECONDS:
                file.unlink()
                swept += 1
        except OSError:  # finished or swept by another meanwhile, or a disk that may only be read
            continue
    return swept
