"""Files that appear whole or not at all: what `dualsd train` and `eval` keep, and what `cache export` writes."""

import glob
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featstore.store.full_disk import AGAIN, Needed, naming_missing_bytes, writing

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
