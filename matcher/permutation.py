"""Is a difference of two runs more than chance: a permutation test that knows that pairs share images.

Were two runs equally good, an image would favour either alike, so what it does to the difference of its pairs might as
well have had the other sign. A pair belongs to two images: the signs of single pairs are not exchangeable (tests that
flip them find differences in noise, docs/statistics.md), those of images are. So each category's differences d of
(source, target) are taken apart into u(source) + u(target), the images' effects u by least squares; each image's
effect, times the weight of its pairs, is flipped at random, all its pairs at once.

What is compared is the mean by its standard error: of the data that of `matcher.spread`, of flipped effects that of so
many independent ones. Without noise of the pairs' own the effects are exact, and so is the test; with it they are too
large together, which the standard error takes out.
"""

from collections.abc import Sequence

import numpy as np

from matcher.spread import CategoryGraph, Floats, Spread, spread
from matcher.student import widening

FLIPS = 9999
_EQUAL = 1 - 1e-9
"""A flip that gives the data back counts, whatever rounding does."""

_BLOCK = 20_000_000
"""Flipped means (values x flips) held at once: 160 MB."""


def permutation_test(
    graphs: Sequence[CategoryGraph], values: Floats, seed: int, flips: int = FLIPS
) -> tuple[Floats, tuple[Floats, ...]]:
    """Two-sided p values of the mean being 0, over all pairs and of each category: (values,) each.

    values: (values, pairs), differences of two runs over the same pairs. A p value is at least 1 / (flips + 1), and 1
    where a single dyad cannot tell.
    """
    block = max(_BLOCK // flips, 1)
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
    larger = widening(own.degrees, 0.95) / widening(own.image_degrees, 0.95)
    variance = own.variance * larger**2
    as_far = flipped**2 * variance[:, None] >= _EQUAL * own.mean[:, None] ** 2 * variances
    shares = (1 + as_far.sum(axis=1)) / (1 + flipped.shape[1])
    return np.where(np.isnan(own.variance), 1.0, shares)
