"""One process at a time does what rearranges a store: packs, unpacks, removes, forgets the rows of changed images. And
one at a time trains a run.

Rows are read and written without it: each is one object, and whole. A lock goes with the process that holds it, however
that ends. Where a file system has none, two processes at once are not kept apart."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from featstore.files import writing
from featstore.store.bucket import exclusive_in, open_bucket
from featstore.store.keys import StoreLocation
from matcher.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""A file in the store's folder."""


@contextmanager
def exclusive(store: StoreLocation) -> Iterator[None]:
    """Waits until no other process rearranges the store there, and keeps others waiting. Not to be nested."""
    if not isinstance(store, Path):
        with exclusive_in(open_bucket(store), LOCK):
            yield
        return
    with _opened(store / LOCK, os.O_CREAT) as lock:
        _take(lock, blocking=True)
        yield


@contextmanager
def held(file: Path, busy: InputError) -> Iterator[None]:
    """Holds the lock of a file that is there, until this process ends, however it does. Raises `busy` where another
    process holds it; nobody is kept waiting."""
    with _opened(file) as lock:
        if not _take(lock, blocking=False):
            raise busy
        yield


@contextmanager
def _opened(file: Path, more: int = 0) -> Iterator[int]:
    with writing(file):
        lock = os.open(file, os.O_RDWR | more, 0o666)
    try:
        yield lock
    finally:
        os.close(lock)


def take_if_free(file: Path) -> int | None:
    """The lock of a file, to be let go with `os.close` or by ending; None where there is none, or another has it."""
    try:
        lock = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    if _take(lock, blocking=False):
        return lock
    os.close(lock)
    return None


def check_free(file: Path, busy: InputError) -> None:
    """Raise `busy` where another process holds a file's lock just now. Several may ask at once."""
    # filelock's own shared lock, ReadWriteLock, is one of a data base beside the file, which no process of a dualsd
    # before this one would hold; a lock of a file's own that several may have it knows none
    if fcntl is None:
        return
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:  # a file system without locks
            return


def _take(lock: int, *, blocking: bool) -> bool:
    # not filelock's FileLock: it makes the file, where a run's must be there, and ends where a file system has no locks
    try:
        return lock_descriptor(lock, blocking=blocking)
    except OSError:  # a file system without locks
        return True
