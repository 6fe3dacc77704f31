"""Which images there are, and what their bytes are now: the table of a new store, and what is stale in an old one."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.pixels import image_key, original_size
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.progress import Progress
from featstore.store.images import ImageTable
from featstore.store.store import Store, replace_stale

READERS = 8
"""Threads that read image files; reading waits for the disk, not for a core."""


@dataclass(frozen=True, eq=False)
class Survey:
    """A dataset's images with what their bytes are now: keys, (N, 2) original sizes, and what was wrong with any."""

    records: tuple[ImageRecord, ...]
    keys: tuple[str, ...]
    sizes: NDArray[np.int32]
    bad: tuple[ImageError, ...]

    def table(self) -> ImageTable:
        """The table of a store made of these images."""
        return ImageTable(
            tuple(record.id for record in self.records),
            tuple(record.category for record in self.records),
            self.keys,
            self.sizes,
        )


def survey_images(dataset: Dataset, progress: Progress) -> Survey:
    """Read and hash every image's bytes, and its header. Broken images are listed, not raised."""
    records = dataset.images()
    progress.start("reading images", len(records), "images")

    def inspect(record: ImageRecord) -> tuple[str, tuple[int, int], ImageError | None]:
        data = dataset.read(record)
        key = image_key(record, data)
        try:
            return key, original_size(record, data), None
        except ImageError as error:
            return key, (0, 0), error

    keys, sizes, bad = [], [], []
    with ThreadPoolExecutor(READERS) as pool:
        for key, size, error in pool.map(inspect, records):
            keys.append(key)
            sizes.append(size)
            if error is not None:
                bad.append(error)
            progress.advance()
    return Survey(records, tuple(keys), np.array(sizes, dtype=np.int32).reshape(-1, 2), tuple(bad))


def refresh(store: Store, survey: Survey) -> tuple[Store, int]:
    """Forget the rows of images whose bytes changed: (the store, how many images). See `replace_stale`.

    Raises `StoreError` where the dataset has other images than the store.
    """
    ids = [record.id for record in survey.records]
    if tuple(ids) != store.images.ids:
        raise StoreError(f"{store.path} was made from other images: {_difference(store.images.ids, ids)}.")
    return replace_stale(store, survey.keys, survey.sizes)


def _difference(stored: Sequence[str], found: Sequence[str]) -> str:
    gone, new = sorted(set(stored) - set(found)), sorted(set(found) - set(stored))
    parts = []
    if gone:
        parts.append(f"{len(gone)} of its {len(stored)} are no longer in the dataset (e.g. {gone[0]!r})")
    if new:
        parts.append(f"{len(new)} of the dataset's {len(found)} are not in the store (e.g. {new[0]!r})")
    return " and ".join(parts) + "; name another --store" if parts else "their order differs; name another --store"
