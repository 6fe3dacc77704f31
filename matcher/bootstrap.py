"""How sure a PCK or a difference of two is: bootstrap intervals that resample images, not pairs.

Pairs share images, so they are not independent: intervals from resampled pairs are too narrow by far (both are in
docs/statistics.md, on simulated benchmarks). A resample draws images with replacement within each category, and a pair
counts as often as both its images were drawn together.

That gives the shape. Its width is wrong twice: a pair's own noise is drawn with both images and with the pair, three
times in all, and a handful of images vary less than what they stand for. So resampled means are moved in or out until
their standard deviation is that of `matcher.spread`, times what Student's t asks more than the normal distribution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import MatchingPair
from matcher.spread import CategoryGraph, Floats, Spread, graphs_of, spread
from matcher.student import widening

RESAMPLES = 2000
_BLOCK = 4_000_000
"""Weights (resamples x dyads) held at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over pairs and its interval at the confidence asked for, in the values' unit; infinite where there is
    nothing to tell it from."""

    mean: float
    low: float
    high: float

    def within(self, least: float, most: float) -> "Interval":
        """Cut off at what the mean can be at all."""
        return Interval(self.mean, *(min(max(end, least), most) for end in (self.low, self.high)))


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Those of many values: (values,) each."""

    mean: Floats
    low: Floats
    high: Floats

    def __getitem__(self, row: int) -> Interval:
        """That of one value."""
        return Interval(float(self.mean[row]), float(self.low[row]), float(self.high[row]))


def bootstrap_mean(
    pairs: Sequence[MatchingPair],
    values: NDArray[np.float64],
    seed: int,
    sizes: NDArray[np.float64] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a value a pair (a PCK, or the difference of two over the same pairs) with its interval.

    values: (n,), in the order of `pairs`. sizes: (n,), how much each pair counts: all the same where none are given
    (the average over images), its points for the average over points. Raises `MatchError` where there is no pair or
    the counts differ.
    """
    if len(pairs) != len(values):
        raise MatchError(f"{len(pairs)} pair(s) with {len(values)} value(s) cannot be resampled.")
    over_all, _ = bootstrap(graphs_of(pairs, sizes), values[None], seed, resamples, confidence)
    return over_all[0]


def bootstrap(
    graphs: Sequence[CategoryGraph],
    values: Floats,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> tuple[Intervals, tuple[Intervals, ...]]:
    """`bootstrap_mean` over all pairs, and of each category, for many values (values, pairs) at once."""
    over_all, of_each = spread(graphs, values)
    random = np.random.default_rng(seed)
    sums, totals = np.zeros((resamples, len(values))), np.zeros(resamples)
    found = []
    for graph, own in zip(graphs, of_each, strict=True):
        weighted, counts = (
            np.concatenate(parts) for parts in zip(*_draws(graph, values, resamples, random), strict=True)
        )
        sums += graph.share * weighted
        totals += graph.share * counts
        found.append(_interval(weighted, counts, own, confidence))
    return _interval(sums, totals, over_all, confidence), tuple(found)


def _draws(
    graph: CategoryGraph, values: Floats, resamples: int, random: np.random.Generator
) -> Iterator[tuple[Floats, Floats]]:
    """Weighted sums (count, values) and the weights' sums (count,) of all resamples, a block at a time."""
    dyads = graph.of_dyads(values)  # (values, K)
    first, second = graph.ends.T
    block = max(_BLOCK // len(first), 1)
    for start in range(0, resamples, block):
        drawn = draw_images(len(graph.names), min(block, resamples - start), random)
        times = drawn[:, first] * drawn[:, second]  # (count, K)
        yield times @ dyads.T, times @ graph.dyad_weights


def draw_images(images: int, count: int, random: np.random.Generator) -> Floats:
    """How often each image was drawn, (count, images): as many as there are, with replacement."""
    return random.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)


def _interval(sums: Floats, totals: Floats, own: Spread, confidence: float) -> Intervals:
    # a resample in which no pair has both images says nothing; it happens only with a handful of images
    means = sums[totals > 0] / totals[totals > 0, None]  # (resamples, values)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0) - means.mean(axis=0)
    deviation = means.std(axis=0)
    scale = np.divide(
        own.error * widening(own.degrees, confidence), deviation, out=np.zeros_like(deviation), where=deviation > 0
    )
    unknown = np.isnan(own.variance)
    return Intervals(
        own.mean,
        np.where(unknown, -inf, own.mean + scale * low),
        np.where(unknown, inf, own.mean + scale * high),
    )
