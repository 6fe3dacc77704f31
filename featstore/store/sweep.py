"""Clear away what killed runs leave behind. No reader ever sees it: it takes room, and nothing else."""

import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from featstore.files import IN_FLIGHT_SECONDS, PARTIAL, sweep_old
from featstore.store.bucket import open_bucket
from featstore.store.keys import StoreLocation
from featstore.store.row_file import row_of_name
from featstore.store.rows import RowArray

MAKING = ".making"
"""Ends the name of a folder beside a store, or a run, that is being made and will take its place whole."""

REMOVED = ".removed-"
"""Names a folder that is being removed: it lies at the top of the store, where nothing looks for arrays."""


def folders_of(store: StoreLocation, arrays: Iterable[str]) -> list[Path]:
    """The folders of some arrays and those above them, whose own metadata may be half-written, up to the store's; none
    on object storage, where nothing is ever half-written."""
    if not isinstance(store, Path):
        return []
    found = {folder for array in arrays for folder in (store / array, *(store / array).parents)}
    return sorted(folder for folder in found if folder == store or store in folder.parents)


def sweep_partial(folders: Iterable[Path]) -> int:
    """Delete the half-written files in some arrays' folders, and in those of their packed rows, that are older than
    `IN_FLIGHT_SECONDS`: how many."""
    half_written = f"*{PARTIAL}"
    return sum(sweep_old([*own.glob(half_written), *(own / "c").rglob(half_written)]) for own in folders)


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


def strays(array: RowArray) -> list[Path]:
    """What packing or unpacking left when it was killed: single rows of a packed array, or packed ones of one that is
    not."""
    if array.files is None:
        return []
    if not array.packed:
        return [array.files.folder / "c"] if (array.files.folder / "c").is_dir() else []
    leading, ndim = len(array.rows_shape), array.array.ndim
    return [file for file in array.files.folder.iterdir() if row_of_name(file.name, leading, ndim) is not None]


def sweep_strays(array: RowArray) -> None:
    """Delete them. The caller holds the store's lock: another process may be packing."""
    for path in strays(array):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_folder(store: StoreLocation, path: str) -> None:
    """Remove an array or a group. On a disk it is gone at once; rows of a removal that was killed are never seen again,
    as they might have gone stale meanwhile. On object storage rows go first and metadata last: what a killed removal
    leaves is an array that lacks rows."""
    if not isinstance(store, Path):
        bucket = open_bucket(store)
        keys = [found.path for found in bucket.objects(path)]
        metadata = [key for key in keys if key.endswith("/zarr.json")]
        bucket.delete([key for key in keys if not key.endswith("/zarr.json")])
        bucket.delete(sorted(metadata, key=len, reverse=True))
        return
    gone = store / f"{REMOVED}{uuid.uuid4().hex}"
    (store / path).rename(gone)
    shutil.rmtree(gone)


def sweep_removed(store: StoreLocation) -> None:
    """Finish removals that were killed. The caller holds the store's lock."""
    if not isinstance(store, Path):
        return
    for folder in store.glob(f"{REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)
