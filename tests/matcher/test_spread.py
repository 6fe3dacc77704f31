"""The variance of a mean over pairs that share images, against what algebra says it is."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import MatchingPair
from matcher.statistics import CategoryGraph, _estimates, graphs_of, spread
from tests.matcher.graphs import all_pairs, ends, pair


def test_images_that_do_everything() -> None:
    """d = u(source) + u(target): the mean is twice the mean of u over n images."""
    effect = np.random.default_rng(0).normal(size=8)
    pairs = all_pairs(8)
    source, target = ends(pairs)
    own, _ = spread(graphs_of(pairs), effect[source] + effect[target])
    assert own.mean == pytest.approx(2 * effect.mean())
    assert own.variance == pytest.approx(4 * effect.var(ddof=1) / 8)
    assert [float(own.image_degrees), float(own.degrees)] == pytest.approx([7, 7])  # the factor is 1, and known


def test_pairs_without_a_common_image() -> None:
    """As for any independent values."""
    values = np.random.default_rng(1).normal(size=12)
    own, _ = spread(graphs_of([pair(f"c/a{row}", f"c/b{row}") for row in range(12)]), values)
    assert own.variance == pytest.approx(values.var(ddof=1) / 12)
    assert [float(own.image_degrees), float(own.degrees)] == pytest.approx([11, 11])


def covariance(pairs: list[MatchingPair], both: float, reverse: float, ends_alike: float, chain: float) -> NDArray:
    """Of pairs: 1 with themselves, `reverse` with the other direction, `ends_alike` where sources or targets are one
    image, `chain` where one's source is the other's target; `both` is what the image as source and target adds."""
    size = len(pairs)
    matrix = np.eye(size)
    for (p, one), (q, other) in itertools.permutations(enumerate(pairs), 2):
        if (one.source, one.target) == (other.target, other.source):
            matrix[p, q] = reverse
        elif one.source == other.source or one.target == other.target:
            matrix[p, q] = ends_alike
        elif one.source == other.target or one.target == other.source:
            matrix[p, q] = chain
    return matrix + both * (matrix != 0)


def expectation(graph: CategoryGraph, of_pairs: NDArray, kind: str) -> float:
    """Of an estimate that is a quadratic form q: sum C[p, q] B[p, q], its matrix B from q(x + y) - q(x) - q(y)."""
    size = len(of_pairs)

    def form(values: NDArray) -> NDArray:
        return getattr(_estimates(graph, values), kind)

    units = np.eye(size)
    squares = form(units)
    sums = form(units[:, None] + units[None, :])
    return float((of_pairs * (sums - squares[:, None] - squares[None, :]) / 2).sum())


@pytest.mark.parametrize("images", [4, 5, 7])
@pytest.mark.parametrize("parts", [(0, 0, 0, 0), (0, 0.5, 0, 0), (0, 0.4, 0.3, 0.1), (0.2, 0.3, 0.2, 0.2)])
def test_raw_is_unbiased_on_the_complete_graph(images: int, parts: tuple[float, float, float, float]) -> None:
    pairs = all_pairs(images)
    matrix = covariance(pairs, *parts)
    (graph,) = graphs_of(pairs)
    assert expectation(graph, matrix, "raw") == pytest.approx(matrix.mean())


def test_the_three_estimates_are_on_the_sides_that_they_say() -> None:
    """Noise alone: `apart` is right, `images` too large. Images alone: `images` is right, `apart` too small."""
    pairs = all_pairs(6)
    (graph,) = graphs_of(pairs)
    noise = np.eye(30)
    assert expectation(graph, noise, "apart") == pytest.approx(1 / 30)
    assert expectation(graph, noise, "images") > 1.5 / 30
    source, target = ends(pairs)
    ways = np.eye(6)[source] + np.eye(6)[target]  # (pairs, images)
    alone = ways @ ways.T
    assert expectation(graph, alone, "images") == pytest.approx(alone.mean())
    assert expectation(graph, alone, "apart") < 0.7 * alone.mean()


def test_categories_are_strata() -> None:
    """What lies between categories is no spread; the variance of the mean over all is the sum of theirs, by shares."""
    pairs = all_pairs(5, "a") + all_pairs(7, "b")
    values = np.random.default_rng(2).normal(size=len(pairs))
    own, (first, second) = spread(graphs_of(pairs), values)
    moved, _ = spread(graphs_of(pairs), values + np.r_[np.zeros(20), np.full(42, 9.0)])
    assert moved.variance == pytest.approx(own.variance)
    assert own.variance == pytest.approx((20 / 62) ** 2 * first.variance + (42 / 62) ** 2 * second.variance)
    assert (first.image_degrees, second.image_degrees) == (4, 6)
    assert 4 < own.image_degrees < 11
    assert 1 <= own.degrees < own.image_degrees


def test_the_order_of_pairs_and_the_scale_of_sizes_do_not_matter() -> None:
    random = np.random.default_rng(3)
    pairs = all_pairs(6, "a") + all_pairs(4, "b")
    values, sizes = random.random((2, len(pairs)))
    own, _ = spread(graphs_of(pairs, sizes), values)
    order = random.permutation(len(pairs))
    other, _ = spread(graphs_of([pairs[place] for place in order], 7 * sizes[order]), values[order])
    assert [float(other.mean), float(other.variance)] == pytest.approx([float(own.mean), float(own.variance)])


def test_a_single_dyad_stands_at_its_distance_from_the_mean() -> None:
    pairs = [*all_pairs(5, "a"), pair("b/0", "b/1", "b")]
    values = np.r_[np.random.default_rng(4).normal(size=20), 3.0]
    own, (first, lonely) = spread(graphs_of(pairs), values)
    assert np.isnan(lonely.variance)
    factor = first.variance / _estimates(graphs_of(pairs)[0], values).images
    expected = (20 / 21) ** 2 * first.variance + factor * ((3 - values.mean()) / 21) ** 2
    assert own.variance == pytest.approx(expected)
    alone, _ = spread(graphs_of(pairs[-1:]), values[-1:])
    assert np.isnan(alone.variance)


def test_an_image_matched_with_itself_is_one_image() -> None:
    values = np.array([0.2, 0.9, 0.4])
    own, _ = spread(graphs_of([pair(f"c/{row}", f"c/{row}") for row in range(3)]), values)
    assert own.variance == pytest.approx(values.var(ddof=1) / 3)


@pytest.mark.parametrize("pairs", [all_pairs(3), [pair("c/hub", f"c/{row}") for row in range(5)]])
def test_graphs_in_which_all_pairs_meet(pairs: list[MatchingPair]) -> None:
    """Three images, or one source for all: images are thought to do everything, which is the largest variance."""
    values = np.random.default_rng(5).random(len(pairs))
    own, _ = spread(graphs_of(pairs), values)
    assert own.variance == pytest.approx(_estimates(graphs_of(pairs)[0], values).images)
    assert own.variance > values.var(ddof=1) / len(pairs)


def test_nothing_to_compare() -> None:
    with pytest.raises(MatchError, match="no pair"):
        graphs_of([])
    with pytest.raises(MatchError, match="6 pair"):
        graphs_of(all_pairs(3), np.ones(5))
