"""Bytes by key: the one interface to the place where a store lies, and the place that is a folder (a bucket is in
`featstore.store.bucket`). Nobody else asks where that is.

A key is a path within the store. An object is there whole or not at all, and what a kill left half done is swept by the
place itself. A store that was moved away is never made anew: nothing appears at its old place.
"""

import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import lock_descriptor
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.files import MAKING, PARTIAL, holder, sweep_making, sweep_old, waiting, writing
from featstore.store.keys import LOCK, StoredObject, StoreLocation

Content = bytes | memoryview
"""What is written: contiguous bytes, of whatever values."""

REMOVED = ".removed-"
"""Names a folder that is being removed: it lies at the top of the store, where nothing looks for arrays."""

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no links: exFAT, many network mounts, Google Drive in Colab."""


class Objects(Protocol):
    """The place of one store.

    All methods raise `StoreError` where the place cannot be used, with a sentence that says why: a store that was moved
    away, a bucket out of reach. A folder raises what the disk refuses as it comes, an `OSError`, see
    `featstore.files.writing`.
    """

    @property
    def disk(self) -> Path | None:
        """The folder on a local disk, whose room can be looked at; None elsewhere."""

    def get(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8] | None:
        """An object's bytes from `start` to before `stop`, as of a list's items, which whoever gets them may change;
        None where it is not there."""

    def put(self, key: str, *pieces: Content) -> None:
        """Write an object, in the place of the one that is there."""

    def create(self, key: str, *pieces: Content) -> bool:
        """Write an object that is not there yet; whether this did. Of several that do it at once one does."""

    def level(self, prefix: str = "") -> tuple[list[str], list[str]]:
        """(objects, folders) right below a prefix: their names, in no order."""

    def below(self, prefix: str = "") -> list[StoredObject]:
        """All objects below a prefix (all where it is empty), sorted by key."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are not there are none."""

    def remove(self, prefix: str) -> None:
        """Delete all below a prefix. Killed, it leaves nothing that could be taken for whole."""

    def exists(self) -> bool:
        """Whether anything lies where a store would."""

    def make(self, contents: Mapping[str, Content]) -> bool:
        """Put the first objects of a store, its root's metadata among them, where nothing lies; whether this did. It
        appears whole or not at all."""

    def exclusive(self, doing: str, note: Callable[[str], None]) -> Any:
        """A context in which no other process rearranges the store: packs, unpacks, removes. A wait is told to `note`:
        for whom, and since when. Not to be nested."""

    def settle(self, prefixes: Iterable[str]) -> None:
        """See to it that the objects right below some prefixes are still there after a power cut."""

    def sweep(self, prefixes: Iterable[str] = ()) -> None:
        """Delete what killed writes left right below some prefixes and above them, and what killed makings left beside
        the store; all that kills left where none is given, by whoever holds the lock (`exclusive`)."""

    def left_over(self) -> list[StoredObject]:
        """What killed runs left: files half written, and folders that were being removed."""


@dataclass(frozen=True)
class Folder:
    """A store in a folder of a disk. durable: whether what is written is on the disk before it takes its place, so that
    a power cut costs nothing; scratch disks do without."""

    root: Path
    durable: bool = True

    def __str__(self) -> str:
        return str(self.root)

    @property
    def disk(self) -> Path:
        """See `Objects.disk`."""
        return self.root

    def get(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8] | None:
        """See `Objects.get`."""
        try:
            if (start, stop) == (0, None):
                return np.fromfile(self.root / key, dtype=np.uint8)
            with (self.root / key).open("rb", buffering=0) as stream:
                first, last, _ = slice(start, stop).indices(os.fstat(stream.fileno()).st_size)
                stream.seek(first)
                return np.fromfile(stream, dtype=np.uint8, count=max(last - first, 0))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._check_there()
            return None

    def put(self, key: str, *pieces: Content) -> None:
        """See `Objects.put`."""
        with self._written(key, pieces) as partial:
            partial.replace(self.root / key)

    def create(self, key: str, *pieces: Content) -> bool:
        """See `Objects.create`."""
        file = self.root / key
        with self._written(key, pieces) as partial:
            try:
                file.hardlink_to(partial)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if file.exists():
                    return False
                partial.replace(file)
        return True

    def level(self, prefix: str = "") -> tuple[list[str], list[str]]:
        """See `Objects.level`."""
        objects: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self.root / prefix) as entries:
                for entry in entries:
                    if not entry.name.endswith(PARTIAL) and not entry.name.startswith(REMOVED):
                        (folders if entry.is_dir() else objects).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            self._check_there()
        return objects, folders

    def below(self, prefix: str = "") -> list[StoredObject]:
        """See `Objects.below`."""
        return sorted(self._found(prefix, left_over=False), key=lambda one: one.key)

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects.delete`."""
        for key in keys:
            (self.root / key).unlink(missing_ok=True)

    def remove(self, prefix: str) -> None:
        """See `Objects.remove`: what is removed is gone at once, since its rows might go stale meanwhile."""
        gone = self.root / f"{REMOVED}{secrets.token_hex(8)}"
        with suppress(FileNotFoundError):  # another process was first
            (self.root / prefix).rename(gone)
            shutil.rmtree(gone)

    def exists(self) -> bool:
        """See `Objects.exists`."""
        return self.root.exists()

    def make(self, contents: Mapping[str, Content]) -> bool:
        """See `Objects.make`: made beside its place, and renamed."""
        with writing(f"The store {self.root}", place=self.root):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            sweep_making(self.root.parent, glob.escape(self.root.name))
            made = tempfile.TemporaryDirectory(prefix=f"{self.root.name}.", suffix=MAKING, dir=self.root.parent)
            with made as folder:
                making = Folder(Path(folder) / "store", self.durable)
                making.root.mkdir()
                for key, content in contents.items():
                    making.put(key, content)
                try:
                    making.root.rename(self.root)
                except OSError as error:
                    if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                        return False
                    raise
        return True

    @contextmanager
    def exclusive(self, doing: str, note: Callable[[str], None]) -> Iterator[None]:
        """See `Objects.exclusive`. The lock goes with the process that holds it, however that ends; a file system
        without locks keeps nobody apart."""
        with writing(self.root / LOCK):
            self._check_there()
            lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with suppress(OSError):  # no locks there
                if not lock_descriptor(lock, blocking=False):
                    note(waiting(self, os.pread(lock, 1000, 0)))
                    lock_descriptor(lock, blocking=True)
                os.truncate(lock, 0)
                os.pwrite(lock, holder(doing), 0)
            self._check_there()
            yield
        finally:
            os.close(lock)

    def settle(self, prefixes: Iterable[str]) -> None:
        """See `Objects.settle`."""
        for prefix in prefixes if self.durable else ():
            with suppress(OSError):  # some systems open no folders, and some network mounts sync none
                folder = os.open(self.root / prefix, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def sweep(self, prefixes: Iterable[str] = ()) -> None:
        """See `Objects.sweep`; what may still be in flight is left alone."""
        sweep_making(self.root.parent, glob.escape(self.root.name))
        below = {folder for prefix in prefixes for folder in (self.root / prefix, *(self.root / prefix).parents)}
        for folder in sorted(below or [self.root]):
            if folder.is_relative_to(self.root):
                sweep_old(folder.glob(f"*{PARTIAL}") if below else folder.rglob(f"*{PARTIAL}"))
        for removed in self.root.glob(f"{REMOVED}*"):  # none can become an array again, whoever is removing it
            shutil.rmtree(removed, ignore_errors=True)

    def left_over(self) -> list[StoredObject]:
        """See `Objects.left_over`."""
        removed = []
        for folder in self.root.glob(f"{REMOVED}*"):
            sizes = (file.stat().st_size for file in folder.rglob("*") if file.is_file())
            removed.append(StoredObject(folder.name, sum(sizes), folder.stat().st_mtime))
        return sorted([*self._found("", left_over=True), *removed], key=lambda one: one.key)

    def _found(self, prefix: str, left_over: bool) -> Iterator[StoredObject]:
        """Files below a prefix: those that are objects, or those that are not."""
        self._check_there()
        for folder, folders, names in os.walk(self.root / prefix):
            folders[:] = [name for name in folders if not name.startswith(REMOVED)]
            for name in names:
                if name.endswith(PARTIAL) == left_over:
                    with suppress(FileNotFoundError):
                        file = Path(folder, name)
                        stat = file.stat()
                        key = file.relative_to(self.root).as_posix()
                        yield StoredObject(key, stat.st_size, stat.st_mtime)

    @contextmanager
    def _written(self, key: str, pieces: Iterable[Content]) -> Iterator[Path]:
        """A file beside an object's place that holds its bytes, gone after it unless it was renamed."""
        file = self.root / key
        # random, and not the process's number: two containers on one disk may both have a process 7
        partial = file.with_name(f"{file.name}.{secrets.token_hex(8)}{PARTIAL}")
        try:
            try:
                stream = partial.open("wb")
            except FileNotFoundError:
                self._make_folder(partial.parent)
                stream = partial.open("wb")
            with stream:
                stream.writelines(memoryview(piece).cast("B") for piece in pieces)
                stream.flush()
                if self.durable:
                    # some disks say only now that they are full; and after a power cut no empty file lies in its place
                    os.fsync(stream.fileno())
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """A folder of the store, never the store's own."""
        if folder == self.root:
            self._check_there()
        elif not folder.is_dir():
            self._make_folder(folder.parent)
            with suppress(FileExistsError):
                folder.mkdir()

    def _check_there(self) -> None:
        """Raise `StoreError` where the store's folder is gone."""
        if not self.root.exists():
            raise StoreError(
                f"The store {self.root} is no longer there: it was moved or removed while this command worked on it; "
                "run the same command again where it lies now."
            )


def objects_at(location: StoreLocation, durable: bool = True) -> Objects:
    """The objects of a store that lies, or will lie, at a location; nothing is asked of it yet.

    Args:
        location: A local folder, or a prefix in a bucket.
        durable: See `Folder`; object storage always is.

    Raises:
        StoreError: Where it is a bucket and obstore is not installed, or an AWS setting cannot be understood.
    """
    if isinstance(location, Path):
        return Folder(location, durable)
    from featstore.store.bucket import open_bucket

    return open_bucket(location)
