"""How sure a PCK or a difference of two is: bootstrap intervals that resample images, not pairs.

Pairs share images, so they are not independent: intervals from resampled pairs are too narrow by far (in a
simulation they covered 55 % where resampled images covered 94.5 %). A resample draws images with replacement within
each category, and a pair counts as often as both its images were drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import MatchingPair

RESAMPLES = 2000
_BLOCK = 4_000_000
"""Weights (resamples x pairs) held at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over pairs and its interval at the confidence asked for, in the values' unit."""

    mean: float
    low: float
    high: float


def bootstrap_mean(
    pairs: Sequence[MatchingPair],
    values: NDArray[np.float64],
    seed: int,
    sizes: NDArray[np.float64] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a value a pair (a PCK, or the difference of two over the same pairs) with a percentile interval.

    values: (n,), in the order of `pairs`. sizes: (n,), how much each pair counts: all the same where none are given
    (the average over images), its points for the average over points. Raises `MatchError` where there is no pair or
    the counts differ.
    """
    if not pairs or len(pairs) != len(values):
        raise MatchError(f"{len(pairs)} pair(s) with {len(values)} value(s) cannot be resampled.")
    images = sorted({(pair.category, image) for pair in pairs for image in (pair.source, pair.target)})
    index = {image: row for row, (_, image) in enumerate(images)}
    source = np.array([index[pair.source] for pair in pairs])
    target = np.array([index[pair.target] for pair in pairs])
    categories = np.array([category for category, _ in images])
    shares = np.ones(len(pairs)) if sizes is None else sizes
    random = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    for start in range(0, resamples, max(_BLOCK // len(pairs), 1)):
        count = min(max(_BLOCK // len(pairs), 1), resamples - start)
        drawn = _draw_images(categories, count, random)  # (count, images)
        weights = drawn[:, source] * drawn[:, target] * shares  # (count, pairs)
        total = weights.sum(axis=1)
        # a resample in which no pair has both images says nothing; it happens only with a handful of images
        means.append((weights @ values)[total > 0] / total[total > 0])
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(np.average(values, weights=shares)), float(low), float(high))


def _draw_images(categories: NDArray[np.str_], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """How often each image was drawn, (count, images): as many of a category as it has, with replacement."""
    drawn = np.zeros((count, len(categories)))
    for category in np.unique(categories):
        (members,) = np.nonzero(categories == category)
        share = np.full(len(members), 1 / len(members))
        drawn[:, members] = random.multinomial(len(members), share, size=count)
    return drawn
