"""Files written whole or not at all, full disks named; and files that one process at a time works with.

A lock goes with the process that holds it, however that ends. Where a file system has none, two processes at once are
not kept apart."""

import errno
import glob
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from featstore.errors import AGAIN as AGAIN
from featstore.errors import DiskFullError, StoreError
from featstore.plain_text import free_bytes, human_bytes
from matcher.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

PARTIAL = ".partial"

IN_FLIGHT_SECONDS = 60.0
"""A younger half-written file may be another process's, about to be renamed: a row is written in well under a second,
and a file's time is that of the last bytes that went into it."""

_LITTLE = 2**20
"""Bytes that a disk may have left while it is called full, where it is not known how many are needed."""


@contextmanager
def writing(
    what: Path | str, size: int | None = None, *, place: Path | None = None, way_on: str = AGAIN
) -> Iterator[None]:
    """Turn whatever the disk refuses within into an error that says so.

    Args:
        what: What is written, a file or a name for it.
        size: Bytes of the file, where they are known.
        place: The folder where it lies, so that what is free there can be said; that of a file needs not be named.
        way_on: What to do once there is room.

    Raises:
        DiskFullError: Where there is no room.
        StoreError: Where the disk does not take it for another reason.
    """
    try:
        yield
    except (OSError, DiskFullError) as error:
        if isinstance(error, DiskFullError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            room = _lack_of_room(what if isinstance(what, Path) else place, size)
            raise DiskFullError(f"{what} could not be written: {room}", way_on) from error
        why = _beyond_limit(size) if error.errno == errno.EFBIG else str(error)
        raise StoreError(f"{what} could not be written: {why}.") from error


def _lack_of_room(place: Path | None, size: int | None) -> str:
    takes = "" if size is None else f", it takes {human_bytes(size)}"
    if place is None:
        return f"the disk is full{takes}"
    free = free_bytes(place)
    if free > max(size or 0, _LITTLE):
        return (
            f"the disk takes no more, though {human_bytes(free)} are free{takes}: there is a quota, or it holds no "
            "more files (`dualsd cache pack` makes fewer of them)"
        )
    return f"the disk is full, {human_bytes(free)} are free{takes}"


def _beyond_limit(size: int | None) -> str:
    """That a file would be larger than this process, or the file system, lets one be."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0] if resource else -1
    if size is None or limit < 0 or limit >= size:
        return "no file may be that large there"
    return (
        f"it takes {human_bytes(size)}, {human_bytes(size - limit)} more than the {human_bytes(limit)} that a file may "
        f"have here; raise that limit (`ulimit -f`) and {AGAIN}"
    )


@contextmanager
def open_whole(file: Path, size: int | None = None, way_on: str = AGAIN) -> Iterator[BinaryIO]:
    """Open a file to be written whole, or the one that lies there stays as it is.

    Several processes may write it: each writes under a name of its own, and the last one's stays. What a kill left half
    written goes with the next write, once it is older than `IN_FLIGHT_SECONDS`.

    Args:
        file: The file to write, in a folder that is there.
        size: Its bytes, where they are known.
        way_on: What to do once there is room.

    Raises:
        DiskFullError: Where there is no room.
        StoreError: Where the disk does not take it for another reason.
    """
    with writing(file, size, way_on=way_on):
        sweep_old(file.parent.glob(f"{glob.escape(file.name)}.*{PARTIAL}"))
        with replacing(file) as stream:
            yield stream


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place whole and is on the disk then, or the one that lies there stays as it is; what
    the disk refuses is raised as it comes."""
    # random, and not the process's number: two containers on one disk may both have a process 7
    partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}{PARTIAL}")
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
    """Write a file whole, or leave the one that lies there as it is. Arguments and errors are those of `open_whole`."""
    with open_whole(file, len(content), way_on) as stream:
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


MAKING = ".making"
"""Ends the name of a folder beside a store, or a run, that is being made and will take its place whole."""


def sweep_making(beside: Path, names: str) -> None:
    """Delete what killed attempts to make a store or a run left in the folder `beside`, older than `IN_FLIGHT_SECONDS`
    as a whole. names: a pattern of what was being made."""
    for folder in beside.glob(f"{names}.*{MAKING}"):
        try:
            youngest = max(one.stat().st_mtime for one in (folder, *folder.rglob("*")))
        except OSError:  # it is being swept, or takes its place just now
            continue
        if time.time() - youngest > IN_FLIGHT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def making_folder(beside: Path, name: str) -> Iterator[Path]:
    """A folder to be filled in `beside` that is to take its place whole, see `take_place`: else nothing of it stays.
    What killed attempts left there, whose names begin with `name`, is swept. What the disk refuses is raised as it
    comes."""
    sweep_making(beside, f"{glob.escape(name)}*")
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}.", suffix=MAKING, dir=beside) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        yield made


def take_place(made: Path, places: Iterable[Path]) -> Path | None:
    """Rename a folder that is made to the first of some places where nothing lies but, at most, an empty folder; None
    where something lies at each. Of several processes that want a place one gets it."""
    for place in places:
        try:
            return made.rename(place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
    return None


@contextmanager
def held(file: Path, busy: InputError) -> Iterator[None]:
    """Holds the lock of a file that is there, until this process ends, however it does. Raises `busy` where another
    process holds it; nobody is kept waiting."""
    with writing(file):
        lock = os.open(file, os.O_RDWR)
    try:
        if not _take(lock):
            raise busy
        yield
    finally:
        os.close(lock)


def take_if_free(file: Path) -> int | None:
    """The lock of a file, to be let go with `os.close` or by ending; None where there is none, or another has it."""
    try:
        lock = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return None
    if _take(lock):
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


def _take(lock: int) -> bool:
    # not filelock's FileLock: it makes the file, where a run's must be there, and ends where a file system has no locks
    try:
        return lock_descriptor(lock, blocking=False)
    except OSError:  # a file system without locks
        return True


def holder(doing: str) -> bytes:
    """What a lock's object holds, for those who wait."""
    return f"process {os.getpid()} on {socket.gethostname()}|{doing}|{time.time()}".encode()


def waiting(place: object, held: bytes) -> str:
    """A sentence on who is waited for, of what a lock's object holds."""
    who, doing, since = (*held.decode(errors="replace").split("|"), "", "", "")[:3]
    try:
        seconds = f", for {max(time.time() - float(since), 0):.0f} s now"
    except ValueError:
        seconds = ""
    return f"Waiting for {who or 'another process'}, which holds {place}{f' for {doing}' if doing else ''}{seconds}."
