"""One process at a time does what rearranges a store: packs, unpacks, removes, forgets the rows of changed images.

Rows are read and written without it: each is one object, and whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featstore.store.full_disk import writing

try:
    import fcntl
except ImportError:  # Windows: two processes at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""A file in the store's folder. Its lock goes with the process that holds it, however that ends."""


@contextmanager
def exclusive(store: Path) -> Iterator[None]:
    """Waits until no other process rearranges the store in this folder, and keeps others waiting. Not to be nested."""
    with writing(f"{store / LOCK}"):
        lock = os.open(store / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(lock)
        yield
    finally:
        os.close(lock)


def _take(lock: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: two processes at once are not kept apart there
        return
