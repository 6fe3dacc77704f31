"""A permutation test that flips images, not pairs."""

import itertools

import numpy as np
import pytest

from matcher.statistics import graphs_of, image_effects, permutation_test
from tests.matcher.graphs import all_pairs, binomial_bounds, ends, pair


def test_the_effects_of_images_are_found() -> None:
    """Exactly where there is no noise, whatever the graph, as long as it holds a cycle of odd length."""
    random = np.random.default_rng(0)
    pairs = [entry for entry in all_pairs(7) if random.random() < 0.6]
    source, target = ends(pairs)
    effect = random.normal(size=7)
    (graph,) = graphs_of(pairs, random.random(len(pairs)))
    assert image_effects(graph, effect[source] + effect[target]) == pytest.approx(effect)


def test_all_flips_of_three_images_by_hand() -> None:
    """d = u(source) + u(target), 3 images: the mean is that of 2u, and its t statistic that of 3 values. Of the 8 flips
    of u = (1, 2, 4), only those of one sign, (1, 2, 4) and (-1, -2, -4), are as far from 0: p = 1/4."""
    effect = np.array([1.0, 2.0, 4.0])
    pairs = all_pairs(3)
    source, target = ends(pairs)
    statistics = [
        abs(flipped.mean()) / flipped.std(ddof=1)
        for flipped in (effect * signs for signs in itertools.product((-1, 1), repeat=3))
    ]
    assert np.mean(np.array(statistics) >= abs(effect.mean()) / effect.std(ddof=1) - 1e-12) == 0.25
    p, _ = permutation_test(graphs_of(pairs), (effect[source] + effect[target])[None], seed=0)
    assert p[0] == pytest.approx(0.25, abs=0.02)


def test_independent_pairs_by_all_flips() -> None:
    """Pairs without a common image: as the sign-flip test of 8 independent values, each a sum of two images'."""
    values = np.random.default_rng(1).normal(0.6, 1, size=8)
    halves = np.repeat(values / 2, 2)
    observed = abs(values.mean()) / (values.std(ddof=1) / np.sqrt(8))
    signs = np.array(list(itertools.product((-1, 1), repeat=16)))
    flipped = signs * halves
    exact = np.mean(np.abs(flipped.mean(1)) / flipped.std(1, ddof=1) * 4 >= observed * (1 - 1e-9))
    p, _ = permutation_test(graphs_of([pair(f"c/a{row}", f"c/b{row}") for row in range(8)]), values[None], seed=0)
    assert p[0] == pytest.approx(exact, abs=0.015)


def test_false_positives() -> None:
    """4,000 simulated comparisons without a difference, 3 categories of 10 images: 5 % are found, within what chance
    does once in 10,000 choices of the seed. A test that flips pairs finds far more, and so does one that flips the
    product of both images' signs."""
    random = np.random.default_rng(2)
    pairs = [entry for category in "abc" for entry in all_pairs(10, category)]
    source, target = ends(pairs)
    effect = random.normal(size=(4000, 30))
    values = 0.7 * (effect[:, source] + effect[:, target]) + random.normal(size=(4000, len(pairs)))
    p, of_each = permutation_test(graphs_of(pairs), values, seed=0, flips=999)
    least, most = binomial_bounds(4000, 0.05)
    assert least <= (p <= 0.05).sum() <= most
    for own in of_each:
        assert least <= (own <= 0.05).sum() <= most
    of_pairs = random.choice([-1.0, 1.0], size=(len(pairs), 199))
    of_images = random.choice([-1.0, 1.0], size=(30, 199))
    for signs in (of_pairs, of_images[source] * of_images[target]):
        flipped = np.abs(values @ signs) >= np.abs(values.sum(axis=1, keepdims=True))
        assert ((1 + flipped.sum(axis=1)) / 200 <= 0.05).sum() > 3 * most


def test_a_difference_is_found() -> None:
    random = np.random.default_rng(3)
    pairs = all_pairs(10, "a") + all_pairs(10, "b")
    source, target = ends(pairs)
    effect = random.normal(0, 0.05, size=20)
    values = 0.3 + effect[source] + effect[target] + random.normal(0, 0.2, size=len(pairs))
    values[:90] -= 0.3  # the first category has none
    p, (first, second) = permutation_test(graphs_of(pairs), values[None], seed=0)
    assert p[0] < 0.01
    assert second[0] < 0.01
    assert first[0] > 0.05


def test_no_difference_at_all() -> None:
    p, of_each = permutation_test(graphs_of(all_pairs(4)), np.zeros((2, 12)), seed=0)
    assert p.tolist() == [1, 1]
    assert of_each[0].tolist() == [1, 1]


def test_a_single_dyad_cannot_tell() -> None:
    p, (own,) = permutation_test(graphs_of(all_pairs(2)), np.ones((1, 2)), seed=0)
    assert (p[0], own[0]) == (1, 1)


def test_the_smallest_p_value_and_the_seed() -> None:
    """A difference that is the same everywhere: only the data themselves, and flips of one sign, are as far."""
    pairs = all_pairs(20)
    source, target = ends(pairs)
    effect = 1 + 1e-3 * np.random.default_rng(4).random(20)
    values = (effect[source] + effect[target])[None]
    assert permutation_test(graphs_of(pairs), values, seed=0, flips=199)[0][0] == 1 / 200
    noise = np.random.default_rng(5).normal(size=(1, 380))
    first, again, other = (permutation_test(graphs_of(pairs), noise, seed)[0][0] for seed in (1, 1, 2))
    assert first == again != other
