"""Which images a store has: a log that only grows, and the table that its entries add up to.

An entry says which images came (id, category, key, size) and which went (ids). It is written by a put that only one
process can make, so that of several builders none loses what another wrote: whoever comes second reads on and tries
again. Row numbers follow from the order of the log: each (id, category, key) that was never there gets the next one,
and a number is never used again, but for the image that had it. So rows need no bookkeeping: a changed image has a
new row, the old one stays for those who are reading it, and an image that comes back finds its rows as they were.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from featstore.errors import StoreError
from featstore.files import writing
from featstore.sealed import check_seal, seal
from featstore.store.keys import IMAGES, METADATA_ERRORS
from featstore.store.objects import Objects

LOG = f"{IMAGES}/log"
"""Where the entries lie, named by their numbers: `000007.json`."""


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image in a data set. key: hash of the file's bytes and of the mirroring. size: original (width, height) in
    pixels, 0 for an image that could not be read."""

    id: str
    category: str
    key: str
    size: tuple[int, int]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What its row goes by."""
        return self.id, self.category, self.key


@dataclass(frozen=True)
class ImageTable:
    """Columns of equal length; row i of every array of the store belongs to image i.

    ids, categories: as in the dataset. keys: hash of the file's bytes and of the mirroring. sizes: (N, 2) original
    width and height in pixels, 0 for an image that could not be read. gone: rows of images that changed since or are no
    longer in the dataset; all others are here. entries: of the log that this was read from.
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    keys: tuple[str, ...]
    sizes: NDArray[np.int32]
    gone: frozenset[int] = frozenset()
    entries: int = 0

    def __len__(self) -> int:
        """How many rows there are, those of images that are gone included."""
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row by image id, of the images that are here, in the order of their rows."""
        return {image: row for row, image in enumerate(self.ids) if row not in self.gone}

    @cached_property
    def known_keys(self) -> dict[str, str]:
        """Key by image id, of the images that could be read."""
        return {image: self.keys[row] for image, row in self.rows.items() if self.sizes[row, 0]}

    def row(self, image: str) -> int:
        """The row of an image. Raises `StoreError` for one that is not in the store."""
        if image not in self.rows:
            raise StoreError(
                f"The image {image!r} is not in the store: run `dualsd cache build`, which adds what is new."
            )
        return self.rows[image]

    def size(self, image: str) -> tuple[int, int]:
        """Original (width, height) of an image in pixels. Raises `StoreError` where it could not be read."""
        width, height = self.sizes[self.row(image)]
        if width < 1 or height < 1:
            raise StoreError(
                f"The image {image!r} could not be read when the store was built: run `dualsd cache build`."
            )
        return int(width), int(height)

    def entry(self, row: int) -> ImageEntry:
        """What a row's image is."""
        width, height = self.sizes[row].tolist()
        return ImageEntry(self.ids[row], self.categories[row], self.keys[row], (width, height))


@dataclass(frozen=True, slots=True)
class Change:
    """What an entry of the log says. added: images that are new, changed or back. gone: ids of those that are no longer
    there; an image that changed is not among them."""

    added: tuple[ImageEntry, ...] = ()
    gone: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """As it lies in the log."""
        added = [[one.id, one.category, one.key, *one.size] for one in self.added]
        return json.dumps(seal({"added": added, "gone": [*self.gone]})).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Read an entry. Raises ValueError for what is none, or is not what was written."""
        stated = json.loads(content)
        if not isinstance(stated, dict) or "checksum" not in stated:
            raise ValueError("it has no checksum")
        check_seal(stated)
        try:
            added = tuple(ImageEntry(one[0], one[1], one[2], (one[3], one[4])) for one in stated["added"])
            return cls(added, tuple(stated["gone"]))
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"it is no entry: {error}") from error


def table_of(changes: Iterable[Change]) -> ImageTable:
    """What the entries of a log add up to, in their order."""
    rows: dict[tuple[str, str, str], int] = {}
    images: list[ImageEntry] = []
    here: dict[str, int] = {}
    entries = 0
    for change in changes:
        for image in change.added:
            row = rows.setdefault(image.identity, len(images))
            images[row : row + 1] = [image]  # its size may be another now: nobody could read it then
            here[image.id] = row
        for gone in change.gone:
            here.pop(gone, None)
        entries += 1
    return ImageTable(
        tuple(image.id for image in images),
        tuple(image.category for image in images),
        tuple(image.key for image in images),
        np.array([image.size for image in images], dtype=np.int32).reshape(-1, 2),
        frozenset(range(len(images))) - frozenset(here.values()),
        entries,
    )


def change_of(found: Sequence[ImageEntry], before: ImageTable, now: ImageTable) -> Change:
    """What is to be said of a data set's images.

    Args:
        found: All that the data set has.
        before: The store's when the data set was looked at.
        now: The store's as they are: what another builder has said since stays.
    """
    ids = {image.id for image in found}
    added = tuple(
        image
        for image in found
        if (row := now.rows.get(image.id)) == before.rows.get(image.id) and (row is None or now.entry(row) != image)
    )
    gone = tuple(image for image, row in before.rows.items() if image not in ids and now.rows.get(image) == row)
    return Change(added, gone)


def first_entry(table: ImageTable) -> dict[str, bytes]:
    """The first entry of a log, by its key: all images of a table, in the order of its rows."""
    return {_entry(0): Change(tuple(map(table.entry, range(len(table))))).to_json()}


def record(objects: Objects, found: Sequence[ImageEntry], before: ImageTable) -> ImageTable:
    """Bring a store's log up to date with a data set; what other builders say meanwhile is kept.

    Args:
        objects: The store's.
        found: All images that the data set has.
        before: The store's when the data set was looked at.

    Returns:
        The images as the log says then.

    Raises:
        StoreError, DiskFullError: Where the entry cannot be written.
    """
    now = before
    while (change := change_of(found, before, now)) != Change():
        with writing(f"The log of images of {objects}", place=objects.disk):
            objects.create(_entry(now.entries), change.to_json())  # or another builder did
            objects.settle([LOG])
        now = read_log(objects) or now
    return now


def read_log(objects: Objects) -> ImageTable | None:
    """The images of a store as its log says now, None where it has none: versions before this one wrote none. Raises
    `StoreError` where an entry is damaged or missing."""
    names = sorted(name for name in objects.level(LOG)[0] if name.endswith(".json"))
    if not names:
        return None
    changes = []
    for key in map(_entry, range(len(names))):
        content = objects.get(key)
        try:
            changes.append(Change.from_json(b"" if content is None else content.tobytes()))
        except ValueError as error:
            raise StoreError(
                f"The log of images of {objects} is damaged, its entry {key} cannot be read ({error}): put that back "
                "from a copy, or delete the store and build it again."
            ) from error
    return table_of(changes)


def _entry(number: int) -> str:
    return f"{LOG}/{number:06}.json"


_COLUMNS = {"id": "string", "category": "string", "width": "int32", "height": "int32", "key": "string", "here": "bool"}
"""Names of the table's arrays and their types, in the order in which they are written."""

COLUMNS = tuple(f"{IMAGES}/{name}" for name in _COLUMNS)
"""Paths of those arrays: copies of what the log says, for readers that do not know it."""


def _columns_of(table: ImageTable) -> dict[str, NDArray[Any]]:
    here = np.ones(len(table), dtype=bool)
    here[[*table.gone]] = False
    values = [table.ids, table.categories, *table.sizes.T, table.keys, here]
    kinds = (object if kind == "string" else kind for kind in _COLUMNS.values())
    return {name: np.array(own, dtype=kind) for name, own, kind in zip(_COLUMNS, values, kinds, strict=True)}


def write_columns(group: zarr.Group, table: ImageTable) -> None:
    """Write the table as arrays, each column one object."""
    images = group.require_group(IMAGES)
    for name, values in _columns_of(table).items():
        kind = _COLUMNS[name]
        lost = {"string": "", "int32": -1, "bool": False}[kind]  # what a lost column reads as
        images.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=kind,
            fill_value=lost,
            compressors=Crc32cCodec(),
            dimension_names=("image",),
            overwrite=True,
        )[:] = values


def has_columns(group: zarr.Group, table: ImageTable) -> bool:
    """Whether the arrays say what the table does."""
    expected = _columns_of(table)
    try:
        return all(np.array_equal(np.asarray(group[f"{IMAGES}/{name}"]), own) for name, own in expected.items())
    except METADATA_ERRORS:
        return False


def read_columns(group: zarr.Group, where: str) -> ImageTable:
    """The table of a store that has no log, of which every image is here. Raises `StoreError` where it is missing or
    its columns do not fit together."""
    texts, numbers = ("id", "category", "key"), ("width", "height")
    try:
        columns = {name: np.asarray(group[f"{IMAGES}/{name}"]) for name in (*texts, *numbers)}
    except METADATA_ERRORS as error:
        raise StoreError(f"{where} has no readable table of images ({error}): delete it and build it again.") from error
    lengths = {len(values) for values in columns.values()}
    lost = [name for name in texts if not all(columns[name])]
    lost += [name for name in numbers if (columns[name] < 0).any()]
    if len(lengths) != 1 or lost:
        raise StoreError(f"The table of images of {where} is incomplete: delete the store and build it again.")
    doubled = [str(image) for image, count in Counter(columns["id"].tolist()).items() if count > 1]
    if doubled:
        raise StoreError(
            f"The table of images of {where} has the image {doubled[0]!r} more than once: delete the store and "
            "build it again."
        )
    ids, categories, keys = (tuple(str(value) for value in columns[name]) for name in texts)
    return ImageTable(ids, categories, keys, np.stack([columns["width"], columns["height"]], axis=1).astype(np.int32))
