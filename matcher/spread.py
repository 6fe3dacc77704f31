"""How far a mean over pairs lies from what other images of the kind would give, where pairs share images.

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import MatchingPair, Pairs

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

    @property
    def error(self) -> Floats:
        """The standard error."""
        return np.sqrt(self.variance)


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
