import itertools

import numpy as np
import pytest

from matcher.bootstrap import _draw_images, bootstrap_mean
from matcher.errors import MatchError
from matcher.pairs import MatchingPair

POINT = np.zeros((1, 2), dtype=np.float32)


def all_pairs(images: int, category: str = "c") -> list[MatchingPair]:
    names = [f"{category}{index}" for index in range(images)]
    return [MatchingPair(a, b, category, POINT, POINT, 1.0) for a, b in itertools.permutations(names, 2)]


def test_a_constant_is_certain() -> None:
    interval = bootstrap_mean(all_pairs(5), np.full(20, 0.25), seed=0)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_seed_decides() -> None:
    values = np.random.default_rng(1).random(90)
    assert bootstrap_mean(all_pairs(10), values, seed=3) == bootstrap_mean(all_pairs(10), values, seed=3)
    assert bootstrap_mean(all_pairs(10), values, seed=3) != bootstrap_mean(all_pairs(10), values, seed=4)


def test_pairs_that_share_images_widen_it() -> None:
    """Values that are the images' own: the mean over all ordered pairs has the standard error of the mean of 20
    images' values times 2 (both ends), not that of 380 independent pairs."""
    random = np.random.default_rng(7)
    effect = random.normal(size=20)
    pairs = all_pairs(20)
    values = np.array([effect[int(pair.source[1:])] + effect[int(pair.target[1:])] for pair in pairs])
    interval = bootstrap_mean(pairs, values, seed=0)
    expected = 2 * 1.96 * 2 * effect.std() / np.sqrt(20)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.15)


def test_it_covers_the_truth_where_resampled_pairs_do_not() -> None:
    """95 % intervals over 200 simulated benchmarks of 16 images; binomial noise allows for 90 to 99 %."""
    covered = 0
    pairs = all_pairs(16)
    source = np.array([int(pair.source[1:]) for pair in pairs])
    target = np.array([int(pair.target[1:]) for pair in pairs])
    for trial in range(200):
        random = np.random.default_rng(trial)
        effect = random.normal(size=16)
        values = 0.3 + 0.5 * (effect[source] + effect[target]) + random.normal(size=len(pairs))
        interval = bootstrap_mean(pairs, values, seed=trial, resamples=400)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_every_category_keeps_its_number_of_images() -> None:
    categories = np.array(["a"] * 6 + ["b"] * 3)
    drawn = _draw_images(categories, 50, np.random.default_rng(0))
    assert (drawn[:, :6].sum(axis=1) == 6).all()
    assert (drawn[:, 6:].sum(axis=1) == 3).all()
    assert drawn.std() > 0.5


def test_nothing_to_resample() -> None:
    with pytest.raises(MatchError):
        bootstrap_mean([], np.zeros(0), seed=0)
    with pytest.raises(MatchError):
        bootstrap_mean(all_pairs(3), np.zeros(5), seed=0)
