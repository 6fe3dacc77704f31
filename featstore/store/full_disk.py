"""A disk that fills up in the middle: one sentence that says how many bytes are missing."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import DiskFullError, StoreError
from featstore.sizes import free_bytes, human_bytes
from featstore.store.location import StoreLocation

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
