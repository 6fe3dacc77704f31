"""Silence for what Pillow and libtiff print about a picture file: what matters of it is in the exception they raise."""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack


class Shared:
    """A context that several threads may be in at once: it begins with the first and ends with the last of them.

    The lists of warning filters and file descriptors that it changes belong to the process: were each thread to change
    and restore them on its own, the last would restore another's change.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[None]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(self._begin())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger("PIL")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (AttributeError, OSError, ValueError):  # there is no stderr that could be written to
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


quiet_pillow = Shared(_no_warnings)
"""No warnings and no log of Pillow's inside."""

quiet_libtiff = Shared(_no_stderr)
"""Nothing reaches the process's stderr inside. libtiff writes its errors there itself, and Pillow does not let anybody
turn that off; so this is for the moment in which a TIFF is decoded and for nothing else."""
