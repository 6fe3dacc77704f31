"""Which images there are, and what their bytes are now: the table of a new store, and what is stale in an old one."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.pixels import exif_orientation, image_key, original_size
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pair_list import copies
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
    that ask to be turned are noted once (`featstore.datasets.pixels`)."""
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
    against keypoints of another picture."""
    wanted = set(images)
    records = [record for record in dataset.images() if record.id in wanted]
    progress.start("checking images", len(records), "images")

    def key_of(record: ImageRecord) -> str:
        try:
            return image_key(record, dataset.read(record))
        except ImageError:
            return UNREADABLE

    with ThreadPoolExecutor(READERS) as pool:
        for record, key in zip(records, pool.map(key_of, records), strict=True):
            if key not in (UNREADABLE, store.images.keys[store.images.row(record.id)]):
                raise StoreError(
                    f"The file of image {record.id!r} has changed since `cache build`: run `dualsd cache build` again."
                )
            progress.advance()


def check_same_images(store: Store, survey: Survey) -> None:
    """Raise `StoreError` where the dataset has other images than the store."""
    ids = [record.id for record in survey.records]
    if tuple(ids) != store.images.ids:
        raise StoreError(f"{store.path} was made from other images: {_difference(store.images.ids, ids)}.")


def refresh(store: Store, survey: Survey, progress: Progress) -> tuple[Store, int]:
    """Forget the rows of images whose bytes changed: (the store, how many images). See `replace_stale`. Packed arrays
    are unpacked for it.

    Raises `StoreError` where the dataset has other images than the store.
    """
    check_same_images(store, survey)
    if _keys_now(store, survey) == store.images.keys:
        return store, 0
    given = np.array([key is not None for key in survey.keys])[:, None]
    with exclusive(store.path):  # nobody packs a row of what an image was while it is forgotten
        store = open_store(store.path)
        keys = _keys_now(store, survey)
        if keys == store.images.keys:  # another process was first, and may have made rows of the new ones since
            return store, 0
        for array in store.arrays().values():
            if array.packed:
                unpack_array(array, progress)
        return replace_stale(store, keys, np.where(given, survey.sizes, store.images.sizes))


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
