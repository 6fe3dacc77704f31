"""Files that appear whole or not at all: what `dualsd train` and `eval` keep, and what `cache export` writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featstore.store.full_disk import AGAIN, Needed, naming_missing_bytes, writing


@contextmanager
def open_whole(file: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write, or the one that lies there stays as it is. One process at a time writes it: what a kill leaves
    half written has the same name each time, and the next write takes it away. size: in bytes, where it is known.

    Raises `DiskFullError` where there is no room, `StoreError` where the disk does not take it for another reason.
    """
    partial = file.with_name(f"{file.name}.partial")
    with writing(str(file), size):
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
