"""A store kept whole and small: everything is read against its checksums; what is damaged, and what nobody needs any
more, is taken away. Latents stay."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.errors import MetadataError, StoreError
from featstore.files import writing
from featstore.progress import Progress
from featstore.store import keys
from featstore.store.images import COLUMNS, write_columns
from featstore.store.metadata import rewrite_metadata
from featstore.store.pack import shard_rows, strays, sweep_strays, unpack_array
from featstore.store.rows import ENCODINGS, Row, RowArray, create_rows, row_bytes, row_of_name, unlike
from featstore.store.store import Store

READERS = 4
"""Threads that read rows; checksums and the disk both let go of the interpreter."""

_DEPTHS = {keys.LATENTS: 1, keys.IMAGES: 2, keys.NOISY: 2, keys.CONDITIONING: 2, keys.GRIDS: 2, keys.MAPS: 4}
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


Expected = Callable[[str], Sequence[int] | None]
"""Of an array's path the shape of its rows, as model, header and layer make them; None where that is not known."""


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
    if keys.LATENTS not in paths:
        metadata.append(BadMetadata(keys.LATENTS, "there are none"))
    opened: list[RowArray] = []
    for path in paths:
        try:
            array = store.array(path)
        except MetadataError as error:
            metadata.append(BadMetadata(path, error.fault))
            continue
        if array is None:
            continue
        row_shape = expected(path) or array.row_shape
        fault = unlike(array, row_shape)
        if fault is None:
            opened.append(array)
        elif path == keys.LATENTS and _reads_well(array) and math.prod(array.row_shape) != math.prod(row_shape):
            raise StoreError(
                f"The header of {store.path} says images of {store.header.image_size} pixels and the model "
                f"{store.header.model_id}, whose latents are {tuple(row_shape)}, but whole ones of {array.row_shape} "
                f"lie there: the header was edited; set it right in {keys.METADATA}, or build the store anew."
            )
        else:
            metadata.append(BadMetadata(path, fault))
    metadata += _copies(store)
    checked = _columns(store) + check_arrays(store, opened, progress)
    return Verification(tuple(checked), tuple(metadata), tuple(_left_over(store, opened)))


def _reads_well(array: RowArray) -> bool:
    """Whether a row is there that is what the metadata say."""
    rows = np.argwhere(array.present())
    return len(rows) > 0 and array.damage(tuple(rows[0].tolist())) is None


def check_arrays(store: Store, arrays: Sequence[RowArray], progress: Progress) -> list[CheckedArray]:
    """Read every row of some arrays."""
    present = [[*map(tuple, np.argwhere(array.present()).tolist())] for array in arrays]
    progress.start("reading rows", sum(map(len, present)), "rows")
    return [_check(store, array, rows, progress) for array, rows in zip(arrays, present, strict=True)]


def drop_rows(store: Store, rows: Iterable[BadRow], progress: Progress) -> None:
    """Delete rows; packed arrays are unpacked for it. Raises `StoreError` where the disk has no room for that."""
    by_array: dict[str, list[Row]] = {}
    for bad in rows:
        by_array.setdefault(bad.array, []).append(bad.row)
    for path, own in by_array.items():
        with store.objects.exclusive("dropping rows", progress.note):
            array = store.array(path)
            if array is None:
                continue
            if array.packed:
                unpack_array(array, progress)
            array.delete_rows(own)


def gone_rows(store: Store) -> list[BadRow]:
    """The rows of images that changed or are gone, of every array. Without them an image that comes back has to be
    encoded again."""
    found = []
    for path, array in store.arrays().items() if store.images.gone else ():
        present = array.present()
        present[[*store.images.rows.values()]] = False
        rows = map(tuple, np.argwhere(present).tolist())
        found += [BadRow(path, row, store.images.ids[row[0]], "its image is gone") for row in rows]
    return found


def drop_metadata(store: Store, damaged: BadMetadata, progress: Progress) -> str:
    """Take away metadata that cannot be used, and with them what cannot be used without; a sentence that says what that
    was. Raises `StoreError` for those of the latents, which are not to be thrown away."""
    if damaged.path == keys.LATENTS:
        raise StoreError(
            f"The metadata of the latents of {store.path} are damaged, and its rows may be whole: put the model "
            f"{store.header.model_id} in reach and run the same command again, which then writes them anew."
        )
    with store.objects.exclusive("dropping metadata", progress.note):
        if damaged.is_array or damaged.path == keys.CONDITIONING:  # rows whose shape or maker nobody knows
            store.objects.remove(damaged.path)
            return f"{damaged.path} was removed, its metadata were damaged; it is made anew when it is needed"
        with writing(f"The metadata of {damaged.path!r}", place=store.objects.disk):
            rewrite_metadata(store.objects, damaged.path, lambda made: made.create_group(damaged.path))
            if damaged.path == keys.IMAGES:
                write_columns(store.group, store.images)
        return f"the metadata of {damaged.path} were written anew; its arrays are kept"


def restore_metadata(store: Store, damaged: BadMetadata, row_shape: Sequence[int], progress: Progress) -> bool:
    """Write the metadata of an array anew, so that its rows are found again.

    Args:
        store: The store.
        damaged: The array.
        row_shape: Shape of a row's values.
        progress: Told for whom it waits.

    Returns:
        Whether that could be done; where it cannot be found how many draws packed noisy latents had, they are removed.
    """
    path, leading, images = damaged.path, keys.leading_of(damaged.path), len(store.images)
    ndim = leading + len(row_shape)
    name = path.split("/")[1] if path.startswith(f"{keys.MAPS}/") else ""
    encoding = ENCODINGS[store.descriptions().get(name, {}).get("encoding", keys.RAW)]
    with store.objects.exclusive("writing metadata", progress.note):
        names, folders = store.objects.level(path)
        rows = [row for name in names if (row := row_of_name(name, leading, ndim)) is not None]
        if leading == 2 and not rows:
            store.objects.remove(path)
            return False
        rows_shape = (images, 1 + max(row[1] for row in rows)) if leading == 2 else (images,)
        shard = shard_rows(rows_shape, row_bytes(row_shape)) if not rows and "c" in folders else None
        with writing(f"The metadata of {path!r}", place=store.objects.disk):
            rewrite_metadata(
                store.objects, path, lambda made: create_rows(made, path, rows_shape, row_shape, encoding, shard)
            )
    return True


def sweep(store: Store, progress: Progress) -> None:
    """Clear away what killed runs left, but for files that may still be in flight."""
    with store.objects.exclusive("sweeping", progress.note):
        store.objects.sweep()
        for array in store.arrays().values():
            sweep_strays(array)


def _arrays(store: Store) -> tuple[list[str], list[BadMetadata]]:
    """Paths of all arrays of rows, and what is wrong with the metadata of groups."""
    paths, bad = [], []
    old = {f"{keys.MAPS}/{name}" for name in store.outdated()}
    for path in sorted(_with_metadata(store)):
        if path in COLUMNS or "/".join(path.split("/")[:2]) in old:  # looked at by themselves, or by nobody
            continue
        if BadMetadata(path, "").is_array:
            paths.append(path)
            continue
        try:
            attributes = store.attributes(path)
        except MetadataError as error:
            bad.append(BadMetadata(path, error.fault))
            continue
        if path.startswith(f"{keys.MAPS}/") and path.count("/") == 1 and not _is_described(path, attributes):
            bad.append(BadMetadata(path, "its description is not that of the extractor which its name stands for"))
    return paths, bad


def _is_described(path: str, attributes: dict[str, Any]) -> bool:
    """Whether an extractor's description makes its name; none was written where a run was killed in between."""
    if not attributes:
        return True
    kinds = (keys.Extractor, keys.PixelExtractor, keys.AdaptedExtractor)
    made = [kind.from_description(attributes) for kind in kinds]
    own = [extractor for extractor in made if extractor is not None and extractor.describe() == attributes]
    return any(extractor.key == path.rpartition("/")[2] for extractor in own)


def _check(store: Store, array: RowArray, rows: Sequence[Row], progress: Progress) -> CheckedArray:
    bad = []
    with ThreadPoolExecutor(READERS) as pool:
        for row, damage in zip(rows, pool.map(array.damage, rows), strict=True):
            if damage is not None:
                bad.append(BadRow(array.path, row, store.images.ids[row[0]], damage))
            progress.advance()
    total = math.prod(array.rows_shape)
    return CheckedArray(array.path, total, len(rows), array.stored_bytes(), array.packed, tuple(bad))


def _with_metadata(store: Store) -> Iterator[str]:
    """Paths of all arrays and groups but the root. Not by zarr's own listing, which damaged metadata end."""
    for kind, depth in _DEPTHS.items():
        for level in range(depth):
            for path in store.folders(kind, level):
                if store.objects.get(f"{path}/{keys.METADATA}", 0, 1) is not None:
                    yield path


def _columns(store: Store) -> list[CheckedArray]:
    """The columns of the table of images, each one object. Those of a store without a log were read in opening it;
    others are copies of what the log says, which was."""
    sizes = {path: sum(one.bytes for one in store.objects.below(f"{path}/c")) for path in COLUMNS}
    return [CheckedArray(path, 1, 1, size, False, ()) for path, size in sizes.items() if size]


def _copies(store: Store) -> list[BadMetadata]:
    """What is wrong with those copies. A run that was killed may leave some of them missing or out of date; the next
    build writes them anew."""
    for path in COLUMNS if store.images.entries else ():
        try:
            np.asarray(store.group[path])
        except KeyError:
            continue
        except keys.METADATA_ERRORS as error:
            return [
                BadMetadata(keys.IMAGES, f"{path}, a copy of what the log of images says, cannot be read ({error})")
            ]
    return []


def _left_over(store: Store, arrays: Iterable[RowArray]) -> list[LeftOver]:
    found = [*store.objects.left_over(), *(one for array in arrays for one in strays(array))]
    return [LeftOver(one.key, one.bytes) for one in found]
