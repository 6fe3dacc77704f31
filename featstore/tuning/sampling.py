"""Which pairs a step trains on: a function of the seed and the step alone, so that a resumed run needs no position and
any number of processes sees the same batches."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.backbone.noise import generator
from featstore.errors import TuningError
from featstore.tuning.settings import Sampling, TuningSettings
from matcher.pairs import MatchingPair


class Sampler(Protocol):
    """Hands out batches."""

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the pairs of a step, counted from 0."""


def open_sampler(pairs: Sequence[MatchingPair], settings: TuningSettings) -> Sampler:
    """The sampler that the settings ask for."""
    if settings.sampling is Sampling.PAIRS:
        return RandomPairs(len(pairs), settings.batch, settings.seed)
    return Cliques(pairs, settings.clique, settings.batch, settings.seed)


@dataclass(frozen=True, slots=True)
class RandomPairs:
    """`size` pairs a step; every pair comes once before any comes again."""

    count: int
    size: int
    seed: int

    def batch(self, step: int) -> tuple[int, ...]:
        """See `Sampler.batch`."""
        places = range(step * self.size, (step + 1) * self.size)
        return tuple(int(_order(self.count, self.seed, place // self.count)[place % self.count]) for place in places)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(f"epoch|{seed}|{epoch}").permutation(count)


class Cliques:
    """`count` cliques a step: `images` images of a category, and all pairs among them that are listed.

    A category is drawn as often as it has pairs; of one with fewer images all are taken.
    """

    def __init__(self, pairs: Sequence[MatchingPair], images: int, count: int, seed: int) -> None:
        listed: dict[str, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, pair in enumerate(pairs):
            listed[pair.category][pair.source, pair.target].append(index)
        self._listed = listed
        self._categories = sorted(listed)
        self._images = {
            category: sorted({image for ends in members for image in ends}) for category, members in listed.items()
        }
        counts = [sum(map(len, listed[category].values())) for category in self._categories]
        self._shares = np.array(counts) / len(pairs)
        self._size, self._count, self._seed = images, count, seed

    def batch(self, step: int) -> tuple[int, ...]:
        """See `Sampler.batch`. Raises `TuningError` where no clique of 1,000 holds a pair."""
        random = generator(f"cliques|{self._seed}|{step}")
        found: list[int] = []
        for _ in range(self._count):
            found += self._clique(random)
        return tuple(found)

    def _clique(self, random: np.random.Generator) -> list[int]:
        for _ in range(1000):
            category = self._categories[random.choice(len(self._categories), p=self._shares)]
            images = self._images[category]
            drawn = random.choice(len(images), size=min(self._size, len(images)), replace=False)
            chosen = [images[index] for index in sorted(drawn)]
            listed = self._listed[category]
            members = [index for a in chosen for b in chosen if (a, b) in listed for index in listed[a, b]]
            if members:
                return members
        raise TuningError(
            f"The listed pairs are too few for cliques of {self._size} images: take --sampler pairs or a larger "
            "--clique."
        )
