"""Pairs without points, for statistics over pairs that share images; and how far chance takes a count."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matcher.pairs import MatchingPair

POINT = np.zeros((1, 2), dtype=np.float32)


def pair(source: str, target: str, category: str = "c") -> MatchingPair:
    return MatchingPair(source, target, category, POINT, POINT, 1.0)


def all_pairs(images: int, category: str = "c") -> list[MatchingPair]:
    """All ordered pairs of c/00, c/01 ..."""
    names = [f"{category}/{index:02d}" for index in range(images)]
    return [pair(a, b, category) for a, b in itertools.permutations(names, 2)]


def ends(pairs: Sequence[MatchingPair]) -> NDArray[np.intp]:
    """Numbers of the sources and of the targets, (2, pairs), in the order of the images' names."""
    names = sorted({image for entry in pairs for image in (entry.source, entry.target)})
    number = {name: row for row, name in enumerate(names)}
    return np.array([[number[entry.source] for entry in pairs], [number[entry.target] for entry in pairs]])


def binomial_bounds(trials: int, share: float, risk: float = 1e-4) -> tuple[int, int]:
    """Between which counts lie all but `risk` of those of `trials` events of a probability, both ends among them."""
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + count * math.log(share)
        + (trials - count) * math.log(1 - share)
        for count in range(trials + 1)
    ]
    below = np.cumsum(np.exp(logs))
    return int(np.searchsorted(below, risk / 2)), int(np.searchsorted(below, 1 - risk / 2))
