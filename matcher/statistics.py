"""How certain a PCK is: bootstrap over images, permutation tests of two runs, and intervals of means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import ALL, MatchingPair, PixelFrame
from matcher.pck import Average, Columns, Distances, Matched, Matches, averaged, distances
from matcher.spread import CategoryGraph, Floats, Spread, graphs_of, spread


def widening(degrees: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """By how much a central interval of t is wider than one of the normal distribution, after Wallace (1959): to 1e-3
    from 8 degrees of freedom up, 4 % too wide at 2. degrees: (...) >= 1."""
    normal = NormalDist().inv_cdf((1 + confidence) / 2)
    moved = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return np.asarray(np.sqrt(degrees * np.expm1(moved**2 / degrees)) / normal)


CONFIDENCE = 0.95

RESAMPLES = 2000
_BLOCK = 1_000_000
"""Weights (resamples x dyads) held at once: 8 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over pairs and its interval of 95 %, in the values' unit; infinite where there is
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
    sizes: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of a value a pair (a PCK, or the difference of two over the same pairs) with its interval.

    values: (n,), in the order of `pairs`. sizes: (n,), how much each pair counts: all the same where none are given
    (the average over images), its points for the average over points. Raises `MatchError` where there is no pair or
    the counts differ.
    """
    if len(pairs) != len(values):
        raise MatchError(f"{len(pairs)} pair(s) with {len(values)} value(s) cannot be resampled.")
    over_all, _ = bootstrap(graphs_of(pairs, sizes), values[None], seed, resamples)
    return over_all[0]


def bootstrap(
    graphs: Sequence[CategoryGraph], values: Floats, seed: int, resamples: int = RESAMPLES
) -> tuple[Intervals, tuple[Intervals, ...]]:
    """`bootstrap_mean` over all pairs, and of each category, for many values (values, pairs) at once."""
    over_all, of_each = spread(graphs, values)
    random = np.random.default_rng(seed)
    sums, totals = np.zeros((resamples, len(values))), np.zeros(resamples)
    found = []
    for graph, own in zip(graphs, of_each, strict=True):
        weighted, counts = _resampled(graph, values, resamples, random)
        sums += graph.share * weighted
        totals += graph.share * counts
        found.append(_interval(weighted, counts, own))
    return _interval(sums, totals, over_all), tuple(found)


def _resampled(
    graph: CategoryGraph, values: Floats, resamples: int, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Weighted sums (resamples, values) and the weights' sums (resamples,), made a block at a time."""
    dyads = graph.of_dyads(values)  # (values, K)
    first, second = graph.ends.T
    weighted, counts = np.empty((resamples, len(values))), np.empty(resamples)
    block = max(_BLOCK // len(first), 1)
    for start in range(0, resamples, block):
        into = slice(start, start + block)
        drawn = draw_images(len(graph.names), len(counts[into]), random)
        times = drawn[:, first]  # (count, K)
        times *= drawn[:, second]
        weighted[into], counts[into] = times @ dyads.T, times @ graph.dyad_weights
    return weighted, counts


def draw_images(images: int, count: int, random: np.random.Generator) -> Floats:
    """How often each image was drawn, (count, images): as many as there are, with replacement."""
    return random.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)


def _interval(sums: Floats, totals: Floats, own: Spread) -> Intervals:
    # a resample in which no pair has both images says nothing; it happens only with a handful of images
    means = sums[totals > 0] / totals[totals > 0, None]  # (resamples, values)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0) - means.mean(axis=0)
    deviation = means.std(axis=0)
    wide = own.error * widening(own.degrees, CONFIDENCE)
    scale = np.divide(wide, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    unknown = np.isnan(own.variance)
    ends = own.mean + scale * low, own.mean + scale * high
    return Intervals(own.mean, np.where(unknown, -inf, ends[0]), np.where(unknown, inf, ends[1]))


FLIPS = 9999
_EQUAL = 1 - 1e-9
"""A flip that gives the data back counts, whatever rounding does."""

_FLIPS_AT_ONCE = 20_000_000
"""Flipped means (values x flips) held at once: 160 MB."""


def permutation_test(
    graphs: Sequence[CategoryGraph], values: Floats, seed: int, flips: int = FLIPS
) -> tuple[Floats, tuple[Floats, ...]]:
    """Two-sided p values of the mean being 0, over all pairs and of each category: (values,) each.

    values: (values, pairs), differences of two runs over the same pairs. A p value is at least 1 / (flips + 1), and 1
    where a single dyad cannot tell.
    """
    block = max(_FLIPS_AT_ONCE // flips, 1)
    parts = [
        _test(graphs, values[start : start + block], np.random.default_rng(seed), flips)
        for start in range(0, len(values), block)
    ]
    over_all, *of_each = (np.concatenate(found) for found in zip(*parts, strict=True))
    return over_all, tuple(of_each)


def _test(graphs: Sequence[CategoryGraph], values: Floats, random: np.random.Generator, flips: int) -> list[Floats]:
    over_all, of_each = spread(graphs, values)
    means, variances = np.zeros((len(values), flips)), np.zeros((len(values), flips))
    found = []
    for graph, own in zip(graphs, of_each, strict=True):
        effects = image_effects(graph, values) * graph.image_weights  # (values, n)
        images = effects.shape[1]
        signs = random.integers(0, 2, (images, flips)).astype(np.float64) * 2 - 1
        flipped = effects @ signs  # (values, flips)
        # n / (n - 1) times the sum of squares about the mean; squares do not change with signs
        squares = (effects**2).sum(axis=1, keepdims=True)
        variance = (images * squares - flipped**2) / max(images - 1, 1)
        found.append(_share_as_far(own, flipped, variance))
        means += graph.share * flipped
        variances += graph.share**2 * variance
    return [_share_as_far(over_all, means, variances), *found]


def image_effects(graph: CategoryGraph, values: Floats) -> Floats:
    """What each image does to the values of its pairs, (values, n): the u that explain d of (source, target) best as
    u(source) + u(target), of equal ones the smallest."""
    weights = np.diag(graph.image_weights) + graph.adjacency
    return graph.of_images(graph.of_dyads(values)) @ np.linalg.pinv(weights, hermitian=True)


def _share_as_far(own: Spread, flipped: Floats, variances: Floats) -> Floats:
    """The share of flips whose mean by its error is as far from 0 as that of the data, the data among them."""
    # the data's error is known a little less well than that of flipped effects: larger, by so much that both agree
    # where p is 0.05
    larger = widening(own.degrees, CONFIDENCE) / widening(own.image_degrees, CONFIDENCE)
    variance = own.variance * larger**2
    as_far = flipped**2 * variance[:, None] >= _EQUAL * own.mean[:, None] ** 2 * variances
    shares = (1 + as_far.sum(axis=1)) / (1 + flipped.shape[1])
    return np.where(np.isnan(own.variance), 1.0, shares)


SEED = 0
"""Of resamples and flips: the same runs have the same intervals whenever they are scored."""

PckIntervals = Mapping[float, Columns[Interval]]
"""Fractions by alpha."""


def pck_intervals(
    matched: Matched,
    readouts: Sequence[str],
    alphas: Sequence[float],
    average: Average,
    frame: PixelFrame | None = None,
) -> dict[str, PckIntervals]:
    """Of `readouts` at `alphas`, each in its own frame or all in `frame`: see `matcher.pck.distances`. The means are
    those of `matcher.pck.tabulate`. Raises `MatchError` where there is no pair."""
    matches = Matches.of(matched)
    measured = [distances(matches, readout, frame) for readout in readouts]
    values = np.array([found.hits(alpha) / found.counts for found in measured for alpha in alphas])  # (values, pairs)
    graphs = graphs_of(matches.pairs, matches.pairs.counts if average is Average.POINT else None)
    over_all, of_each = bootstrap(graphs, values, SEED)

    def columns(value: int) -> Columns[Interval]:
        own = {graph.category: found[value].within(0, 1) for graph, found in zip(graphs, of_each, strict=True)}
        return Columns(over_all[value].within(0, 1), own)

    return {
        readout: {alpha: columns(place * len(alphas) + row) for row, alpha in enumerate(alphas)}
        for place, readout in enumerate(readouts)
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """first, second: PCK of either run. lead: second - first with its 95 % interval, images resampled (see
    `matcher.statistics`). p: of a two-sided permutation test (see `matcher.statistics`). All but p in fractions."""

    first: float
    second: float
    lead: Interval
    p: float


def compare(
    pairs: Sequence[MatchingPair], first: Distances, second: Distances, alphas: Sequence[float], average: Average
) -> dict[float, Columns[Difference]]:
    """By alpha.

    first, second: over `pairs`, in their order. Raises `MatchError` where there is no pair, or the points differ.
    """
    counts = first.counts
    if len(pairs) != len(counts) or not np.array_equal(counts, second.counts):
        raise MatchError("Runs can be compared only over the same pairs with the same points.")
    graphs = graphs_of(pairs, counts if average is Average.POINT else None)
    hits = [np.array([run.hits(alpha) for alpha in alphas]) for run in (first, second)]  # (alphas, pairs) each
    values = (hits[1] - hits[0]) / counts
    leads, lead_of_each = bootstrap(graphs, values, SEED)
    p, p_of_each = permutation_test(graphs, values, SEED)
    # in the order of the pairs, as a table is made: sums are the same to the last bit
    members = [np.arange(len(pairs)), *(np.sort(graph.pairs) for graph in graphs)]
    names = [ALL, *(graph.category for graph in graphs)]

    def difference(row: int, own: NDArray[np.int64], intervals: Intervals, chances: Floats) -> Difference:
        one, other = (float(averaged(run[row, own], counts[own], average)) for run in hits)
        return Difference(one, other, intervals[row].within(-1, 1), float(chances[row]))

    found = {}
    for row, alpha in enumerate(alphas):
        own = zip(members, (leads, *lead_of_each), (p, *p_of_each), strict=True)
        columns = dict(zip(names, (difference(row, *one) for one in own), strict=True))
        found[alpha] = Columns(columns.pop(ALL), columns)
    return found
