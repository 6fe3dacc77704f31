"""A disk that fills up in the middle: one sentence that says how many bytes are missing."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import DiskFullError, StoreError
from featstore.sizes import free_bytes, human_bytes
from featstore.store.location import StoreLocation

BLOCK_BYTES = 4096
"""A file takes whole blocks, of this size almost everywhere. One more a file is counted, and `ARRAY_BLOCKS` for folders
and metadata that an array may lack yet, so that what is said to be missing is never too little."""

ARRAY_BLOCKS = 4

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Needed:
    """What is still to be written: so many bytes, in so many files, of so many arrays."""

    bytes: int
    files: int
    arrays: int


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Whatever the disk refuses within becomes a `StoreError` that says so of `what`; a `DiskFullError` where there is
    no room."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(f"{what} could not be written: the disk is full.") from error
        raise StoreError(f"{what} could not be written: {error}.") from error


@contextmanager
def naming_missing_bytes(path: StoreLocation, left: Callable[[], Needed]) -> Iterator[None]:
    """A `DiskFullError` from within is raised again with the bytes that are missing where `path` lies: what is `left`
    to write, less what is free."""
    try:
        yield
    except DiskFullError as error:
        if not isinstance(path, Path):  # some other disk: object storage is never full
            raise
        raise DiskFullError(_sentence(path, left())) from error


def missing_bytes(path: Path, needed: Needed) -> int:
    """Bytes that are missing where `path` lies for what is needed; zero or fewer where it fits."""
    return needed.bytes + (needed.files + needed.arrays * ARRAY_BLOCKS) * BLOCK_BYTES - free_bytes(path)


def _sentence(path: Path, needed: Needed) -> str:
    missing, free = missing_bytes(path, needed), human_bytes(free_bytes(path))
    still = f"{human_bytes(needed.bytes)} in {needed.files} files are still to be written"
    if missing <= 0:
        return (
            f"The disk of {path} takes no more, though {free} are free and {still}: there is a quota, or it holds no "
            "more files (`dualsd cache pack` makes fewer of them); run the same command again then."
        )
    return (
        f"The disk of {path} is full, {human_bytes(missing)} are missing ({still}, {free} are free): make room and run "
        "the same command again, what is complete is kept."
    )
