"""Hits of a grid's finished target images, kept in the store while the grid runs, so that it can be stopped."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.errors import StoreError
from featstore.store.rows import RowArray, require_rows
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.errors import MatchError
from matcher.grid import Hits
from matcher.pairs import MatchingPair

GRIDS = "grids"

LARGEST_COUNT = 2048
"""Whole numbers up to it are exact in float16."""


@dataclass(frozen=True, slots=True)
class StoredLedger:
    """A `matcher.grid.Ledger`: an array of one row a target image, (images, configurations, readouts, alphas, pairs).

    pairs: how many go into each target image. done: the target images that were finished when it was opened.
    """

    store: Store
    path: str
    array: RowArray
    pairs: Mapping[str, int]
    done: frozenset[str]

    def load(self, target: str) -> Hits | None:
        """See `matcher.grid.Ledger.load`."""
        if target not in self.done:
            return None
        hits: Hits = self.array.read((self.store.images.row(target),))[..., : self.pairs[target]].astype(np.uint16)
        return hits

    def save(self, target: str, hits: Hits) -> None:
        """See `matcher.grid.Ledger.save`."""
        full = np.zeros(self.array.row_shape, dtype=np.float32)
        full[..., : self.pairs[target]] = hits
        self.array.write((self.store.images.row(target),), full)

    def forget(self) -> None:
        """Remove it, once the grid is done."""
        del self.store.group[self.path]


def open_ledger(
    store: Store, pairs: Sequence[MatchingPair], shape: tuple[int, int, int], description: Mapping[str, Any]
) -> StoredLedger:
    """The ledger of a grid, made where it is not there. shape: configurations, readouts, alphas. description: all that
    its hits depend on besides the pairs and what their images hold, which are added here. Raises `MatchError` where
    there is no pair, `StoreError` for one of more points than can be counted."""
    if not pairs:
        raise MatchError("There is no pair to score.")
    digest = hashlib.blake2b(json.dumps(description, sort_keys=True, default=str).encode(), digest_size=8)
    for pair in pairs:
        for image in (pair.source, pair.target):
            digest.update(f"{image} {store.images.keys[store.images.row(image)]} ".encode())
        frames = (pair,) if pair.original is None else (pair, pair.original)
        for frame in frames:
            for numbers in (frame.source_points, frame.target_points, np.float64(frame.theta)):
                digest.update(numbers.tobytes())
    if max(len(pair.source_points) for pair in pairs) > LARGEST_COUNT:
        raise StoreError(f"A pair with more than {LARGEST_COUNT} points cannot be counted in a store: leave it out.")
    counts = Counter(pair.target for pair in pairs)
    path = f"{GRIDS}/{digest.hexdigest()}"
    array = require_rows(store.group, path, (len(store.images),), (*shape, max(counts.values())), STORED_DTYPE)
    present = array.present()
    done = frozenset(target for target in counts if present[store.images.row(target)])
    return StoredLedger(store, path, array, counts, done)
