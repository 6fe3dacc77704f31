"""Read everything that a store holds against its checksums, and take away what is damaged."""

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featstore.errors import MetadataError, StoreError
from featstore.files import PARTIAL, sweep_old, writing
from featstore.progress import Progress
from featstore.store.images import COLUMNS
from featstore.store.keys import CONDITIONING, IMAGES, LATENTS, MAPS, NOISY, DinoExtractor, Extractor, StoreLocation
from featstore.store.ledger import GRIDS
from featstore.store.lock import exclusive
from featstore.store.pack import shard_rows, unpack_array
from featstore.store.row_encoding import encoding_for, row_bytes
from featstore.store.row_file import Row, delete, names, objects, row_of_name
from featstore.store.rows import METADATA, RowArray, create_rows, unlike
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from featstore.store.sweep import REMOVED, remove_folder, strays, sweep_removed, sweep_strays

READERS = 4
"""Threads that read rows; checksums and the disk both let go of the interpreter."""

_DEPTHS = {LATENTS: 1, IMAGES: 2, NOISY: 2, CONDITIONING: 2, GRIDS: 2, MAPS: 4}
"""How deep arrays lie; what lies higher is a group."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is there and cannot be used. image: whose it is. why: what is wrong with it."""

    array: str
    row: Row
    image: str
    why: str


@dataclass(frozen=True, slots=True)
class CheckedArray:
    """rows: that could be there, each an object of its own or part of a packed one; present: that are, `bad` of them
    damaged. bytes: of those that are there."""

    path: str
    rows: int
    present: int
    bytes: int
    packed: bool
    bad: tuple[BadRow, ...]


@dataclass(frozen=True, slots=True)
class BadMetadata:
    """An array or a group whose metadata cannot be used, so that none of its rows is found."""

    path: str
    why: str

    @property
    def is_array(self) -> bool:
        """Else it is a group."""
        kind, *rest = self.path.split("/")
        return len(rest) + 1 == _DEPTHS.get(kind)


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A file or folder that a killed run left. path: within the store."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What a store was found to hold."""

    arrays: tuple[CheckedArray, ...]
    metadata: tuple[BadMetadata, ...]
    left_over: tuple[LeftOver, ...]

    @property
    def bad(self) -> tuple[BadRow, ...]:
        """All bad rows."""
        return tuple(row for array in self.arrays for row in array.bad)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged; rows may be missing, and files left over."""
        return not self.bad and not self.metadata


Expected = Callable[[str], tuple[Sequence[int], str] | None]
"""Of an array's path the shape of its rows and how they lie on the disk, as model, header and layer make them; None
where that is not known."""


def unknown(_: str) -> None:
    """Where no model is at hand: arrays are held against what they say of themselves."""


def verify(store: Store, progress: Progress, expected: Expected = unknown) -> Verification:
    """Read every chunk of every array of an open store, and hold its metadata against what is expected of it; the
    header and the table of images were read in opening it.

    Args:
        store: The store.
        progress: Told how far it is.
        expected: What its arrays should be, see `Expected`.

    Returns:
        What it holds, and all that is damaged.

    Raises:
        StoreError: Where the header contradicts all that lies there.
    """
    paths, metadata = _arrays(store)
    if LATENTS not in paths:
        metadata.append(BadMetadata(LATENTS, "there are none"))
    opened: list[RowArray] = []
    for path in paths:
        try:
            array = store.array(path)
        except MetadataError as error:
            metadata.append(BadMetadata(path, error.fault))
            continue
        if array is None:
            continue
        row_shape, dtype = expected(path) or (array.row_shape, _usual_dtype(array))
        fault = unlike(array, row_shape, dtype)
        if fault is None:
            opened.append(array)
        elif path == LATENTS and _reads_well(array) and math.prod(array.row_shape) != math.prod(row_shape):
            raise StoreError(
                f"The header of {store.path} says images of {store.header.image_size} pixels and the model "
                f"{store.header.model_id}, whose latents are {tuple(row_shape)}, but whole ones of {array.row_shape} "
                f"lie there: the header was edited; set it right in {METADATA}, or build the store anew."
            )
        else:
            metadata.append(BadMetadata(path, fault))
    checked = [_column(store, path) for path in COLUMNS] + check_arrays(store, opened, progress)
    return Verification(tuple(checked), tuple(metadata), tuple(_left_over(store, opened)))


def _usual_dtype(array: RowArray) -> str:
    """How its rows lie on the disk where nothing else is known: maps may be of 8 bits."""
    return array.dtype if array.path.startswith(f"{MAPS}/") else STORED_DTYPE


def _reads_well(array: RowArray) -> bool:
    """Whether a row is there that is what the metadata say."""
    rows = np.argwhere(array.present())
    return len(rows) > 0 and array.damage(tuple(rows[0].tolist())) is None


def check_arrays(store: Store, arrays: Sequence[RowArray], progress: Progress) -> list[CheckedArray]:
    """Read every row of some arrays."""
    present = [array.present() for array in arrays]
    progress.start("reading rows", int(sum(rows.sum() for rows in present)), "rows")
    return [
        _check(store, array, np.argwhere(rows).tolist(), progress) for array, rows in zip(arrays, present, strict=True)
    ]


def drop_rows(store: Store, rows: Iterable[BadRow], progress: Progress) -> None:
    """Delete rows; packed arrays are unpacked for it. Raises `StoreError` where the disk has no room for that."""
    by_array: dict[str, list[Row]] = {}
    for bad in rows:
        by_array.setdefault(bad.array, []).append(bad.row)
    for path, own in by_array.items():
        with exclusive(store.path):
            array = store.array(path)
            if array is not None and array.packed:
                unpack_array(array, progress)
                array = store.array(path)
            if array is not None:
                array.delete_rows(own)


def drop_metadata(store: Store, damaged: BadMetadata) -> str:
    """Take away metadata that cannot be used, and with them what cannot be used without; a sentence that says what that
    was. Raises `StoreError` for those of the latents, which are not to be thrown away."""
    if damaged.path == LATENTS:
        raise StoreError(
            f"The metadata of the latents of {store.path} are damaged, and its rows may be whole: put the model "
            f"{store.header.model_id} in reach and run the same command again, which then writes them anew."
        )
    with exclusive(store.path):
        if damaged.is_array or damaged.path == CONDITIONING:  # rows whose shape or maker nobody knows
            remove_folder(store.path, damaged.path)
            return f"{damaged.path} was removed, its metadata were damaged; it is made anew when it is needed"
        with writing(f"The metadata of {damaged.path!r}", place=store.path):
            delete(store.path, f"{damaged.path}/{METADATA}")
            store.group.require_group(damaged.path)
        return f"the metadata of {damaged.path} were written anew; its arrays are kept"


def restore_metadata(store: Store, damaged: BadMetadata, row_shape: Sequence[int], dtype: str = STORED_DTYPE) -> bool:
    """Write the metadata of an array anew, so that its rows are found again.

    Args:
        store: The store.
        damaged: The array.
        row_shape: Shape of a row's values.
        dtype: How they lie on the disk.

    Returns:
        Whether that could be done; where it cannot be found how many draws packed noisy latents had, they are removed.
    """
    leading = 2 if damaged.path.startswith(f"{NOISY}/") else 1
    stored_shape = encoding_for(dtype).stored_shape(row_shape)
    images = (len(store.images),)
    with exclusive(store.path):
        found = names(store.path, damaged.path)
        named = (row_of_name(name, leading, leading + len(stored_shape)) for name in found)
        rows = [row for row in named if row is not None]
        if leading == 2 and not rows:
            remove_folder(store.path, damaged.path)
            return False
        draws = [1 + max(row[1] for row in rows)] if leading == 2 else []
        packed = not rows and "c" in found
        with writing(f"The metadata of {damaged.path!r}", place=store.path):
            delete(store.path, f"{damaged.path}/{METADATA}")
            shard = shard_rows(images, row_bytes(dtype, row_shape)) if packed else None
            create_rows(store.group, damaged.path, (*images, *draws), row_shape, dtype, shard)
    return True


def sweep(store: Store) -> None:
    """Clear away what killed runs left, but for files that may still be in flight."""
    with exclusive(store.path):
        if isinstance(store.path, Path):
            sweep_old(store.path.rglob(f"*{PARTIAL}"))
        sweep_removed(store.path)
        for array in store.arrays().values():
            sweep_strays(array)


def _arrays(store: Store) -> tuple[list[str], list[BadMetadata]]:
    """Paths of all arrays of rows, and what is wrong with the metadata of groups."""
    paths, bad = [], []
    for path in _with_metadata(store.path):
        if path in COLUMNS or path.split("/")[0] not in _DEPTHS:  # read already, or not dualsd's
            continue
        if BadMetadata(path, "").is_array:
            paths.append(path)
            continue
        try:
            attributes = store.attributes(path)
        except MetadataError as error:
            bad.append(BadMetadata(path, error.fault))
            continue
        if path.startswith(f"{MAPS}/") and path.count("/") == 1 and not _is_described(path, attributes):
            bad.append(BadMetadata(path, "its description is not that of the extractor which its name stands for"))
    return paths, bad


def _with_metadata(store: StoreLocation) -> list[str]:
    """All arrays and groups but the root."""
    if isinstance(store, Path):  # not by listing all files, of which there may be very many
        return [file.parent.relative_to(store).as_posix() for file in sorted(store.rglob(METADATA))]
    return [found.path.rpartition("/")[0] for found in objects(store) if found.path.endswith(f"/{METADATA}")]


def _is_described(path: str, attributes: dict[str, Any]) -> bool:
    """Whether an extractor's description makes its name; none was written where a run was killed in between."""
    if not attributes:
        return True
    made = [kind.from_description(attributes) for kind in (Extractor, DinoExtractor)]
    own = [extractor for extractor in made if extractor is not None and extractor.describe() == attributes]
    return any(extractor.key == path.rpartition("/")[2] for extractor in own)


def _check(store: Store, array: RowArray, rows: Sequence[Sequence[int]], progress: Progress) -> CheckedArray:
    places = [tuple(row) for row in rows]
    bad = []
    with ThreadPoolExecutor(READERS) as pool:
        for row, damage in zip(places, pool.map(array.damage, places), strict=True):
            if damage is not None:
                bad.append(BadRow(array.path, row, store.images.ids[row[0]], damage))
            progress.advance()
    total = int(np.prod(array.rows_shape))
    return CheckedArray(array.path, total, len(places), len(places) * array.row_bytes, array.packed, tuple(bad))


def _column(store: Store, path: str) -> CheckedArray:
    """A column of the table of images: one object, which was read when the store was opened."""
    column = store.group[path]
    assert isinstance(column, zarr.Array)
    size = sum(found.bytes for found in objects(store.path, f"{path}/c") if not found.path.endswith(PARTIAL))
    return CheckedArray(path, 1, 1, size, False, ())


def _left_over(store: Store, arrays: Iterable[RowArray]) -> list[LeftOver]:
    if not isinstance(store.path, Path):  # objects are whole or not there
        return []
    found = [*store.path.rglob(f"*{PARTIAL}"), *store.path.glob(f"{REMOVED}*")]
    found += [path for array in arrays for path in strays(array)]
    return [LeftOver(path.relative_to(store.path).as_posix(), _size(path)) for path in sorted(found)]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
