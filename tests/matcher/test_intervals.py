"""Intervals of every number of a table, against the one-by-one way and against the table itself."""

import numpy as np
import pytest

from matcher.pck import Average, MatchedPair, tabulate
from matcher.statistics import bootstrap_mean, pck_intervals
from tests.featstore.evaluations import guessed, many_pairs
from tests.reference import hits

READOUTS = ("nn", "softmax")
ALPHAS = (0.05, 0.1)


@pytest.mark.parametrize("average", Average)
def test_each_is_what_it_is_alone(average: Average) -> None:
    pairs = many_pairs(6)
    guesses = {readout: guessed(pairs, 0.1, seed) for seed, readout in enumerate(READOUTS)}
    matched = [MatchedPair(pair, {one: guesses[one][row] for one in READOUTS}) for row, pair in enumerate(pairs)]
    found = pck_intervals(matched, READOUTS, ALPHAS, average)
    table = tabulate(matched, ALPHAS)
    for readout in READOUTS:
        for alpha in ALPHAS:
            own = found[readout][alpha].named()
            assert list(own) == ["cat", "dog", "all"]
            for category, interval in own.items():
                expected = table.values[readout][average][alpha].named()[category]
                assert interval.mean == pytest.approx(expected, abs=1e-12)
                assert 0 <= interval.low <= interval.mean <= interval.high <= 1
            values = np.array([hits(match, readout, alpha).mean() for match in matched])
            sizes = np.array([float(len(pair.target_points)) for pair in pairs])
            if average is Average.CATEGORY:
                named = np.array([pair.category for pair in pairs])
                sizes /= [sizes[named == category].sum() for category in named]
            alone = bootstrap_mean(pairs, values, 0, None if average is Average.IMAGE else sizes)
            assert (own["all"].low, own["all"].high) == pytest.approx((alone.low, alone.high), abs=1e-12)
