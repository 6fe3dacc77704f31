"""How certain a PCK is: bootstrap over images, permutation tests of two runs, and intervals of means; all from how far
a mean over pairs lies from what other images of the kind would give, where pairs share images.

A category's images and pairs are a graph. Two images with a pair between them, in either direction, are a dyad. A value
d of a pair is thought of as mean + what its source does + what its target does + noise of its own; what an image does
comes back in all of its pairs, so the variance V of the mean m = sum w d is not that of so many independent values.

With e = w (d - m), summed over each dyad (D) and over all pairs of each image (S), and h = the share of the weight
products w w' that belong to pairs with a common image, three estimates of V are

    raw     (sum S^2 - sum D^2) / (1 - h)         the products of all pairs that share an image: unbiased
    images  k sum S^2                             right where images do everything, too large where noise does much
    apart   sum D^2 / (1 - the same share h of equal dyads)    right where dyads are independent, else too small

`raw` is what is known of dyadic data (Fafchamps and Gubert 2007; Aronow, Samii and Assenova 2015) with the factor that
makes it exact on the complete graph: there (1 - h) = (n - 2)(n - 3) / (n (n - 1)), a third too little without it at 10
images. Of one category of 10 images it is too noisy to be used, even negative, while `images` is a chi-square of n - 1
degrees of freedom. So each category has its `images`, times one factor for all: the sum of `raw`, at least that of
`apart`, by the sum of `images`. `benchmarks/statistics.py` simulates it, docs/statistics.md has the outcome.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import ALL, MatchingPair, Pairs, PixelFrame
from matcher.pck import Average, Columns, Distances, Matched, Matches, averaged, distances, pair_weights

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_NOTHING = 1e-9
"""A share of the weights below which it is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class CategoryGraph:
    """A category's pairs, its weights summing to 1.

    pairs: (p,) their places in the list of all pairs, dyad by dyad. weights: (p,) in the same order. starts: (K,) where
    each dyad begins in them. ends: (K, 2) its images, numbered 0..n-1 within the category. names: (n,) the images.
    share: of the category in the mean over all pairs.
    """

    category: str
    pairs: Places
    weights: Floats
    starts: Places
    ends: Places
    names: tuple[str, ...]
    share: float

    @property
    def dyad_weights(self) -> Floats:
        """(K,), summing to 1."""
        return np.asarray(np.add.reduceat(self.weights, self.starts))

    @property
    def image_weights(self) -> Floats:
        """(n,): the weight of all pairs that an image is in."""
        return self.of_images(self.dyad_weights)

    @property
    def adjacency(self) -> Floats:
        """(n, n): the weight of two images' dyad; that of an image matched with itself is left out."""
        matrix = np.zeros((len(self.names), len(self.names)))
        first, second = self.ends.T
        matrix[first, second] = matrix[second, first] = self.dyad_weights
        np.fill_diagonal(matrix, 0)
        return matrix

    def of_dyads(self, values: Floats) -> Floats:
        """Weighted sums of each dyad's pairs: values of all pairs (..., pairs) to (..., K)."""
        return np.asarray(np.add.reduceat(values[..., self.pairs] * self.weights, self.starts, axis=-1))

    def of_images(self, dyads: Floats) -> Floats:
        """Sums of each image's dyads: (..., K) to (..., n)."""
        first, second = self.ends.T
        apart = np.flatnonzero(first != second)
        images = np.concatenate([first, second[apart]])
        order = np.argsort(images, kind="stable")
        own = np.concatenate([np.arange(len(first)), apart])[order]
        starts = np.searchsorted(images[order], np.arange(len(self.names)))
        return np.asarray(np.add.reduceat(dyads[..., own], starts, axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """mean: of the values. variance: of the mean, NaN where a single dyad cannot tell. image_degrees: degrees of
    freedom of what images do. degrees: of the variance, fewer, as the factor on that is an estimate too. All (...), as
    the values' leading axes."""

    mean: Floats
    variance: Floats
    image_degrees: Floats
    degrees: Floats


def graphs_of(pairs: Sequence[MatchingPair], sizes: NDArray[Any] | None = None) -> tuple[CategoryGraph, ...]:
    """The graph of each category, sorted by name. sizes: (pairs,) > 0, how much each pair counts, all the same where
    none are given. Raises `MatchError` where there is no pair, or the counts differ."""
    if not pairs:
        raise MatchError("There is no pair to compare.")
    pairs = Pairs.of(pairs)
    sizes = np.ones(len(pairs)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if len(sizes) != len(pairs):
        raise MatchError(f"{len(pairs)} pair(s) with {len(sizes)} size(s) cannot be compared.")
    return tuple(_graph(pairs, np.flatnonzero(own), sizes, name) for name, own in pairs.occurring.items())


def spread(graphs: Sequence[CategoryGraph], values: Floats) -> tuple[Spread, tuple[Spread, ...]]:
    """Over all pairs, and of each category, for values (..., pairs)."""
    parts = [_estimates(graph, values) for graph in graphs]
    mean = np.sum([part.share * part.mean for part in parts], axis=0)
    factor = _factor(parts)
    variances = [part.share**2 * part.images for part in parts]
    if len(graphs) > 1:
        # a single dyad cannot tell its own variance: its distance from the mean over all stands in, which is too large
        # where categories differ
        offsets = [part.share**2 * (part.mean - mean) ** 2 for part in parts]
        variances = [np.where(np.isnan(own), off, own) for own, off in zip(variances, offsets, strict=True)]
    total = np.sum(variances, axis=0)
    # Satterthwaite: of a sum of variances that have so many degrees of freedom each
    squares = np.sum([own**2 / part.degrees for own, part in zip(variances, parts, strict=True)], axis=0)
    fewest = float(min(part.degrees for part in parts))
    degrees = np.divide(total**2, squares, out=np.full_like(total, fewest), where=squares > 0)
    # what the factor costs: by Satterthwaite it would be 1 / factor^2 - 1, but at least `apart` holds it from below
    cost = (1 / np.minimum(factor, 1) - 1) / degrees

    def as_spread(own: Floats, variance: Floats, free: Floats) -> Spread:
        return Spread(own, factor * variance, free, np.maximum(1 / (1 / free + cost), 1))

    of_each = tuple(as_spread(part.mean, part.images, np.full_like(mean, part.degrees)) for part in parts)
    return as_spread(mean, total, degrees), of_each


@dataclass(frozen=True, slots=True, eq=False)
class _Estimates:
    """The module's three of one category. telling: whether there are pairs without a common image; raw and apart mean
    nothing where there are none."""

    share: float
    mean: Floats
    raw: Floats
    images: Floats
    apart: Floats
    telling: bool
    degrees: int


def _estimates(graph: CategoryGraph, values: Floats) -> _Estimates:
    sums, weights = graph.of_dyads(values), graph.dyad_weights
    mean = np.asarray(sums.sum(axis=-1))
    away = sums - weights * mean[..., None]  # (..., K)
    of_dyads = (away**2).sum(axis=-1)
    of_images = (graph.of_images(away) ** 2).sum(axis=-1)
    touching = graph.image_weights
    same = float((weights**2).sum())
    shared = float((touching**2).sum()) - same
    # from what images do to the sums S: V = sum W^2 var(u), and S = matrix u
    matrix = np.diag(touching) + graph.adjacency - np.outer(touching, touching)
    size = float((matrix**2).sum())
    telling = min(1 - shared, 1 - same) > _NOTHING
    raw, apart = ((of_images - of_dyads) / (1 - shared), of_dyads / (1 - same)) if telling else (mean, mean)
    images = of_images * float((touching**2).sum()) / size if size > _NOTHING else np.full_like(mean, np.nan)
    degrees = max(min(len(graph.names), len(weights)) - 1, 1)
    return _Estimates(graph.share, mean, raw, images, apart, telling, degrees)


def _factor(parts: Sequence[_Estimates]) -> Floats:
    """From `images` to the variance, over the categories that can tell; 1, the largest, where none can."""
    raw = apart = images = np.zeros_like(parts[0].mean)
    for part in parts:
        if part.telling:
            raw = raw + part.share**2 * part.raw
            apart = apart + part.share**2 * part.apart
            images = images + part.share**2 * part.images
    return np.divide(np.maximum(raw, apart), images, out=np.ones_like(images), where=images > 0)


def _graph(pairs: Pairs, members: Places, sizes: Floats, category: str) -> CategoryGraph:
    images, places = np.unique(np.stack([pairs.source[members], pairs.target[members]]), return_inverse=True)
    ends = np.sort(places.reshape(2, -1).T, axis=1)  # (p, 2)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    ends = ends[order]
    starts = np.flatnonzero(np.r_[True, (np.diff(ends, axis=0) != 0).any(axis=1)])
    own = sizes[members[order]]
    names = tuple(pairs.images[place] for place in images)
    share = float(own.sum() / sizes.sum())
    return CategoryGraph(category, members[order], own / own.sum(), starts, ends[starts], names, share)


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
    wide = np.sqrt(own.variance) * widening(own.degrees, CONFIDENCE)
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
    graphs = graphs_of(matches.pairs, pair_weights(matches.pairs, average))
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
    """first, run: PCK of the first run and of the other. lead: run - first with its 95 % interval, images resampled.
    p: of a two-sided permutation test. All but p in fractions."""

    first: float
    run: float
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
    pairs = Pairs.of(pairs)
    graphs = graphs_of(pairs, pair_weights(pairs, average))
    hits = [np.array([run.hits(alpha) for alpha in alphas]) for run in (first, second)]  # (alphas, pairs) each
    values = (hits[1] - hits[0]) / counts
    leads, lead_of_each = bootstrap(graphs, values, SEED)
    p, p_of_each = permutation_test(graphs, values, SEED)
    # in the order of the pairs, as a table is made: sums are the same to the last bit
    members = [np.arange(len(pairs)), *(np.sort(graph.pairs) for graph in graphs)]
    names = [ALL, *(graph.category for graph in graphs)]

    def difference(row: int, own: NDArray[np.int64], intervals: Intervals, chances: Floats) -> Difference:
        one, other = (float(averaged(run[row, own], counts[own], pairs.category[own], average)) for run in hits)
        return Difference(one, other, intervals[row].within(-1, 1), float(chances[row]))

    found = {}
    for row, alpha in enumerate(alphas):
        own = zip(members, (leads, *lead_of_each), (p, *p_of_each), strict=True)
        columns = dict(zip(names, (difference(row, *one) for one in own), strict=True))
        found[alpha] = Columns(columns.pop(ALL), columns)
    return found
