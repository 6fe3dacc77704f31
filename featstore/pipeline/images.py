"""Which images there are, and what their bytes are now: the table of a new store, and what is stale in an old one."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.pictures import exif_orientation, image_key, original_size
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.pairs import copies
from featstore.progress import Progress
from featstore.store.images import ImageTable
from featstore.store.lock import exclusive
from featstore.store.pack import unpack_array
from featstore.store.store import Store, open_store, replace_stale

READERS = 8
"""Threads that read image files; reading waits for the disk, not for a core."""

UNREADABLE = "unreadable"
"""The key of an image that the disk has not given yet."""


@dataclass(frozen=True, eq=False)
class Survey:
    """A dataset's images with what their bytes are now: keys, None for one that the disk does not give, and (N, 2)
    original sizes, 0 for one that is no readable image."""

    records: tuple[ImageRecord, ...]
    keys: tuple[str | None, ...]
    sizes: NDArray[np.int32]

    def table(self) -> ImageTable:
        """The table of a store made of these images."""
        return ImageTable(
            tuple(record.id for record in self.records),
            tuple(record.category for record in self.records),
            tuple(key or UNREADABLE for key in self.keys),
            self.sizes,
        )


def survey_images(dataset: Dataset, progress: Progress) -> Survey:
    """Read and hash every image's bytes, and its header. Broken images are not raised: encoding them will say. Images
    that ask to be turned are noted once (`featstore.datasets.pictures`)."""
    records = dataset.images()
    progress.start("reading images", len(records), "images")

    def inspect(record: ImageRecord) -> tuple[str | None, tuple[int, int], int]:
        key = None
        try:
            data = dataset.read(record)
            key = image_key(record, data)
            return key, original_size(record, data), exif_orientation(record, data)
        except ImageError:
            return key, (0, 0), 1

    keys, sizes, turned = [], [], []
    with ThreadPoolExecutor(READERS) as pool:
        for record, (key, size, orientation) in zip(records, pool.map(inspect, records), strict=True):
            keys.append(key)
            sizes.append(size)
            if orientation != 1:
                turned.append(record.id)
            progress.advance()
    if turned:
        progress.note(
            f"{len(turned)} images of {dataset.name}, e.g. {turned[0]}, ask to be turned when they are shown (EXIF "
            "orientation); their pixels are taken as stored, and keypoints must count in those."
        )
    known = {record.id: key for record, key in zip(records, keys, strict=True) if key is not None}
    for sentence in (*dataset.notes(None), *copies(dataset.name, [record.id for record in records], known)):
        progress.note(sentence)
    return Survey(records, tuple(keys), np.array(sizes, dtype=np.int32).reshape(-1, 2))


def check_unchanged(store: Store, dataset: Dataset, images: Collection[str], progress: Progress) -> None:
    """Raise `StoreError` where an image's bytes are not those that the store was made from: its maps would be matched
    against keypoints of another picture. Or where the table of images has another size or category of it: keypoints
    would be scaled by a wrong size, and its maps be another prompt's."""
    wanted = set(images)
    records = [record for record in dataset.images() if record.id in wanted]
    progress.start("checking images", len(records), "images")

    def inspect(record: ImageRecord) -> tuple[str | None, tuple[int, int]]:
        try:
            data = dataset.read(record)
        except ImageError:
            return None, (0, 0)
        return image_key(record, data), _size_of(record, data)

    with ThreadPoolExecutor(READERS) as pool:
        for record, (key, size) in zip(records, pool.map(inspect, records), strict=True):
            row = store.images.row(record.id)
            check_category(store, row, record)
            if key not in (None, store.images.keys[row]):
                raise StoreError(
                    f"The file of image {record.id!r} has changed since `cache build`: run `dualsd cache build` again."
                )
            fault = _size_fault(store.images, row, size)
            if fault is not None:
                raise StoreError(
                    f"Of image {record.id!r} in {store.path} {fault}: run `dualsd cache build`, which writes the table "
                    "of images anew."
                )
            progress.advance()


def check_category(store: Store, row: int, record: ImageRecord) -> None:
    """Raise `StoreError` where the table of images has another category of an image than the dataset."""
    fault = _category_fault(store.images, row, record)
    if fault is not None:
        raise StoreError(
            f"Of image {record.id!r} in {store.path} {fault}: its maps may be of the wrong category's prompt; make the "
            "store anew with `dualsd cache build` and another --store."
        )


def _size_of(record: ImageRecord, data: bytes) -> tuple[int, int]:
    """Original width and height, 0 for what is no readable image."""
    try:
        return original_size(record, data)
    except ImageError:
        return 0, 0


def check_same_images(store: Store, survey: Survey) -> None:
    """Raise `StoreError` where the dataset has other images than the store."""
    ids = [record.id for record in survey.records]
    if tuple(ids) != store.images.ids:
        raise StoreError(f"{store.path} was made from other images: {_difference(store.images.ids, ids)}.")


def image_faults(store: Store, survey: Survey) -> list[tuple[int, str]]:
    """What the table of images says otherwise than the dataset and its files, by row. The dataset has the store's
    images."""
    table = store.images
    found = []
    for row, record in enumerate(survey.records):
        if survey.keys[row] not in (None, table.keys[row]):
            found.append((row, "its file is not the one that the store was made from"))
            continue
        size = tuple(survey.sizes[row].tolist())
        faults = (_size_fault(table, row, size), _category_fault(table, row, record))
        found += [(row, fault) for fault in faults if fault is not None]
    return found


def _size_fault(table: ImageTable, row: int, size: tuple[int, ...]) -> str | None:
    stored = tuple(table.sizes[row].tolist())
    if stored == size or 0 in size:  # one that cannot be read now says nothing
        return None
    spelt = " where its file has ".join(f"{width} x {height}" for width, height in (stored, size))
    return f"the table of images says {spelt} pixels"


def _category_fault(table: ImageTable, row: int, record: ImageRecord) -> str | None:
    stored = table.categories[row]
    if stored == record.category:
        return None
    return f"the table of images says category {stored!r} where the dataset says {record.category!r}"


def refresh(store: Store, survey: Survey, progress: Progress) -> tuple[Store, int]:
    """Forget the rows of images whose bytes changed: (the store, how many images). See `replace_stale`. Packed arrays
    are unpacked for it. A size in the table of images that is not the file's is set right, with a note.

    Raises `StoreError` where the dataset has other images than the store, or other categories of them.
    """
    check_same_images(store, survey)
    for row, record in enumerate(survey.records):
        check_category(store, row, record)
    if _is_current(store, survey):
        return store, 0
    with exclusive(store.path):  # nobody packs a row of what an image was while it is forgotten
        store = open_store(store.path)
        if _is_current(store, survey):  # another process was first, and may have made rows of the new ones since
            return store, 0
        keys, sizes = _keys_now(store, survey), _sizes_now(store, survey)
        same = np.array(keys) == np.array(store.images.keys)
        resized = same & (sizes != store.images.sizes).any(axis=1)
        if resized.any():
            first = store.images.ids[int(np.flatnonzero(resized)[0])]
            progress.note(
                f"Of {int(resized.sum())} image(s), e.g. {first}, the table of images said another size than the file "
                "has; it is set right."
            )
        for array in store.arrays().values() if not same.all() else ():
            if array.packed:
                unpack_array(array, progress)
        return replace_stale(store, keys, sizes)


def _is_current(store: Store, survey: Survey) -> bool:
    return _keys_now(store, survey) == store.images.keys and np.array_equal(
        _sizes_now(store, survey), store.images.sizes
    )


def _sizes_now(store: Store, survey: Survey) -> NDArray[np.int32]:
    """Of a file that is no readable image just now the size that is known."""
    given = np.array([key is not None for key in survey.keys])[:, None] & (survey.sizes > 0)
    changed = np.array([now not in (None, then) for now, then in zip(survey.keys, store.images.keys, strict=True)])
    return np.where(given | changed[:, None], survey.sizes, store.images.sizes)


def _keys_now(store: Store, survey: Survey) -> tuple[str, ...]:
    """An image that the disk does not give just now is not one that changed."""
    return tuple(now or then for now, then in zip(survey.keys, store.images.keys, strict=True))


def _difference(stored: Sequence[str], found: Sequence[str]) -> str:
    gone, new = sorted(set(stored) - set(found)), sorted(set(found) - set(stored))
    parts = []
    if gone:
        parts.append(f"{len(gone)} of its {len(stored)} are no longer in the dataset (e.g. {gone[0]!r})")
    if new:
        parts.append(f"{len(new)} of the dataset's {len(found)} are not in the store (e.g. {new[0]!r})")
    return " and ".join(parts) + "; name another --store" if parts else "their order differs; name another --store"
