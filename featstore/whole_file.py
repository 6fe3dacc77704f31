"""Files that appear whole or not at all: what a run of `dualsd train` or `eval` keeps."""

import os
from pathlib import Path

from featstore.store.full_disk import Needed, naming_missing_bytes, writing


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, or leave the one that lies there as it is. One process at a time writes it: what a kill leaves half
    written has the same name each time, and the next write takes it away.

    Raises `DiskFullError` with the bytes that are missing where there is no room, `StoreError` where the disk does not
    take it for another reason.
    """
    partial = file.with_name(f"{file.name}.partial")
    with naming_missing_bytes(file, lambda: Needed(len(content), 1, 0)), writing(str(file), len(content)):
        try:
            with partial.open("wb") as stream:
                stream.write(content)
                stream.flush()
                # some disks say only now that they are full; and after a power cut no empty file lies in its place
                os.fsync(stream.fileno())
            partial.replace(file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
