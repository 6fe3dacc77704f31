"""Images as networks take them, a batch at a time: decoded, resized to a square, several at once."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.pictures import decode, image_key, resize_to_square
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.batches import chunks
from featstore.store.store import Store

DECODERS = 4
"""Threads that decode and resize the images of a batch; Pillow lets go of the interpreter while it does."""


@dataclass(frozen=True, slots=True, eq=False)
class PixelBatch:
    """rows: of the images that could be read. pixels: theirs, (3, size, size) in [-1, 1] each. bad: what was wrong with
    the others."""

    rows: tuple[int, ...]
    pixels: tuple[NDArray[np.float32], ...]
    bad: tuple[ImageError, ...]


def pixel_batches(
    store: Store, dataset: Dataset, rows: Sequence[int], size: int, batch_size: int
) -> Iterator[PixelBatch]:
    """The images of `rows` as squares of `size` pixels a side, `batch_size` at a time.

    Raises `StoreError` for one whose file is not what the store was made from.
    """
    records = {record.id: record for record in dataset.images()}

    def pixels_of(row: int) -> NDArray[np.float32] | ImageError:
        image = records.get(store.images.ids[row])
        if image is None:
            gone = store.images.ids[row]
            return ImageError(gone, f"The image {gone!r} is no longer in the dataset.")
        try:
            return _pixels(store.images.keys[row], dataset, image, size)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        for batch in chunks(rows, batch_size):
            outcomes = list(zip(batch, pool.map(pixels_of, batch), strict=True))
            good = [(row, outcome) for row, outcome in outcomes if not isinstance(outcome, ImageError)]
            yield PixelBatch(
                tuple(row for row, _ in good),
                tuple(pixels for _, pixels in good),
                tuple(outcome for _, outcome in outcomes if isinstance(outcome, ImageError)),
            )


def _pixels(key: str, dataset: Dataset, image: ImageRecord, size: int) -> NDArray[np.float32]:
    data = dataset.read(image)
    if image_key(image, data) != key:
        raise StoreError(
            f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
        )
    return resize_to_square(decode(image, data), size)
