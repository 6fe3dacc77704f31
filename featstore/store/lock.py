"""One process at a time does what rearranges a store: packs, unpacks, removes, forgets the rows of changed images. And
one at a time trains a run.

Rows are read and written without it: each is one object, and whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featstore.files import writing
from featstore.store.bucket import exclusive_in, open_bucket
from featstore.store.keys import StoreLocation
from matcher.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two processes at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""A file in the store's folder. Its lock goes with the process that holds it, however that ends."""


@contextmanager
def exclusive(store: StoreLocation) -> Iterator[None]:
    """Waits until no other process rearranges the store there, and keeps others waiting. Not to be nested."""
    with _exclusive_folder(store) if isinstance(store, Path) else exclusive_in(open_bucket(store), LOCK):
        yield


@contextmanager
def _exclusive_folder(store: Path) -> Iterator[None]:
    with writing(f"{store / LOCK}"):
        lock = os.open(store / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(lock)
        yield
    finally:
        os.close(lock)


@contextmanager
def held(file: Path, busy: InputError) -> Iterator[None]:
    """Holds the lock of a file that is there, until this process ends, however it does. Raises `busy` where another
    process holds it; nobody is kept waiting."""
    with writing(f"{file}"):
        lock = os.open(file, os.O_RDWR)
    try:
        if not _try(lock, "LOCK_EX"):
            raise busy
        yield
    finally:
        os.close(lock)


def check_free(file: Path, busy: InputError) -> None:
    """Raise `busy` where another process holds a file's lock just now. Several may ask at once."""
    with file.open("rb") as opened:
        if not _try(opened.fileno(), "LOCK_SH"):
            raise busy


def _take(lock: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: two processes at once are not kept apart there
        return


def take_if_free(file: Path) -> int | None:
    """The lock of a file, to be let go with `os.close` or by ending; None where there is none, or another has it."""
    try:
        lock = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    if _try(lock, "LOCK_EX"):
        return lock
    os.close(lock)
    return None


def _try(lock: int, kind: str) -> bool:
    """Whether a lock could be had at once."""
    try:
        if fcntl is not None:
            fcntl.flock(lock, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # see `_take`
        pass
    return True
