import math

import numpy as np
import pytest

from matcher.errors import MatchError
from matcher.statistics import Interval, bootstrap, bootstrap_mean, draw_images, graphs_of
from tests.matcher.graphs import all_pairs, binomial_bounds, ends, pair


def test_a_constant_is_certain() -> None:
    interval = bootstrap_mean(all_pairs(5), np.full(20, 0.25), seed=0)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_seed_decides() -> None:
    values = np.random.default_rng(1).random(90)
    assert bootstrap_mean(all_pairs(10), values, seed=3) == bootstrap_mean(all_pairs(10), values, seed=3)
    assert bootstrap_mean(all_pairs(10), values, seed=3) != bootstrap_mean(all_pairs(10), values, seed=4)


def test_pairs_that_share_images_widen_it() -> None:
    """Values that are the images' own: the mean over all ordered pairs is twice that of 20 images' values, so its
    interval is twice the textbook's of Student's t with 19 degrees of freedom."""
    effect = np.random.default_rng(7).normal(size=20)
    pairs = all_pairs(20)
    source, target = ends(pairs)
    interval = bootstrap_mean(pairs, effect[source] + effect[target], seed=0)
    expected = 2 * 2.0930 * 2 * effect.std(ddof=1) / np.sqrt(20)
    assert interval.mean == pytest.approx(2 * effect.mean())
    assert interval.high - interval.low == pytest.approx(expected, rel=0.04)


def test_pairs_that_share_nothing_have_the_textbooks_interval() -> None:
    values = np.random.default_rng(8).normal(size=30)
    pairs = [pair(f"c/a{row}", f"c/b{row}") for row in range(30)]
    interval = bootstrap_mean(pairs, values, seed=0, resamples=20000)
    half = 2.0452 * values.std(ddof=1) / np.sqrt(30)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_it_covers_the_truth_where_resampled_pairs_do_not() -> None:
    """95 % intervals over 1,000 simulated benchmarks of 3 categories of 10 images, as in benchmarks/statistics.py; a
    method that covers 95 % fails once in 10,000 choices of the seed."""
    random = np.random.default_rng(2)
    pairs = [entry for category in "abc" for entry in all_pairs(10, category)]
    source, target = ends(pairs)
    effect = random.normal(size=(1000, 30))
    values = 0.3 + 0.5 * (effect[:, source] + effect[:, target]) + random.normal(size=(1000, len(pairs)))
    over_all, of_each = bootstrap(graphs_of(pairs), values, seed=0)
    least, most = binomial_bounds(1000, 0.95)
    assert least <= ((over_all.low <= 0.3) & (over_all.high >= 0.3)).sum() <= most
    for own in of_each:
        assert least <= ((own.low <= 0.3) & (own.high >= 0.3)).sum() <= most
    weights = random.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=500) / len(pairs)
    low, high = np.quantile(weights @ values.T, [0.025, 0.975], axis=0)
    assert ((low <= 0.3) & (high >= 0.3)).sum() < least - 100


def test_many_values_at_once_are_what_each_is_alone() -> None:
    pairs = all_pairs(6, "a") + all_pairs(5, "b")
    values = np.random.default_rng(3).normal(size=(4, len(pairs)))
    over_all, of_each = bootstrap(graphs_of(pairs), values, seed=5)
    for row in range(4):
        alone = bootstrap_mean(pairs, values[row], seed=5)
        assert (over_all[row].mean, over_all[row].low, over_all[row].high) == pytest.approx(
            (alone.mean, alone.low, alone.high)
        )
    assert of_each[1].mean == pytest.approx(values[:, 30:].mean(axis=1))


def test_sizes_are_weights() -> None:
    pairs = all_pairs(6)
    values, sizes = np.random.default_rng(4).random((2, 30))
    interval = bootstrap_mean(pairs, values, seed=0, sizes=sizes)
    assert interval.mean == pytest.approx((values * sizes).sum() / sizes.sum())
    assert interval.low < interval.mean < interval.high


def test_a_single_dyad_tells_nothing() -> None:
    interval = bootstrap_mean(all_pairs(2), np.array([0.25, 0.75]), seed=0)
    assert (interval.mean, interval.low, interval.high) == (0.5, -math.inf, math.inf)
    assert interval.within(0, 1) == Interval(0.5, 0, 1)


def test_draws_keep_the_number_of_images() -> None:
    drawn = draw_images(6, 50, np.random.default_rng(0))
    assert (drawn.sum(axis=1) == 6).all()
    assert drawn.std() > 0.5


def test_nothing_to_resample() -> None:
    with pytest.raises(MatchError):
        bootstrap_mean([], np.zeros(0), seed=0)
    with pytest.raises(MatchError):
        bootstrap_mean(all_pairs(3), np.zeros(5), seed=0)
