"""Which pairs a step trains on: a function of the seed and the step alone, so that a resumed run needs no position and
any number of processes sees the same batches."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featstore.backbone.noise import generator


@dataclass(frozen=True, slots=True)
class RandomPairs:
    """`size` pairs a step of `count`; every pair comes once before any comes again."""

    count: int
    size: int
    seed: int

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the pairs of a step, counted from 0."""
        places = range(step * self.size, (step + 1) * self.size)
        return tuple(int(_order(self.count, self.seed, place // self.count)[place % self.count]) for place in places)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(f"epoch|{seed}|{epoch}").permutation(count)
