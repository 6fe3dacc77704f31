"""The best and the worst pairs, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from matcher.pairs import MatchingPair
from matcher.pck import MatchedPair, best_and_worst


def matched(source: str, target: str, apart: list[float]) -> MatchedPair:
    """A pair whose points are off by so many pixels; theta is 10."""
    points = np.full((len(apart), 2), 50, dtype=np.float32)
    pair = MatchingPair(source, target, "cat", points, points, 10.0)
    return MatchedPair(pair, {"nn": points + np.array([[0, value] for value in apart], dtype=np.float32)})


PAIRS = [
    matched("a", "b", [0.5, 0.5, 9]),
    matched("c", "d", [0.5, 0.9, 0.9]),
    matched("e", "f", [0.1, 0.1, 0.1]),
    matched("e", "g", [0, 0, 0.3]),  # as near as e -> f, but for its place
    matched("h", "i", [8, 8, 8]),
    matched("h", "j", [20, 20, 20]),
    matched("k", "l", [5, 5, 5]),
    matched("m", "n", [0]),  # too few points to tell
]


def test_by_pck_then_by_distance_and_no_image_twice() -> None:
    best, worst = best_and_worst(PAIRS, "nn", 0.1, None, 2)
    assert [one.index for one in best] == [2, 1]  # e -> g would show e again
    assert [one.index for one in worst] == [5, 6]  # h -> i would show h again
    assert [(one.pck, one.error) for one in best] == [
        (1.0, pytest.approx(0.01, abs=1e-5)),
        (1.0, pytest.approx(0.23 / 3, abs=1e-5)),
    ]
    assert [(one.pck, one.error) for one in worst] == [(0.0, pytest.approx(2.0)), (0.0, pytest.approx(0.5))]


def test_which_points_are_right() -> None:
    best, _ = best_and_worst(PAIRS[:1], "nn", 0.1, None, 2)
    assert best[0].right.tolist() == [True, True, False]
    assert best[0].pck == pytest.approx(2 / 3)


def test_few_pairs_are_all_candidates_and_none_is_in_both_lists() -> None:
    few = [matched("a", "b", [0]), matched("c", "d", [9])]
    best, worst = best_and_worst(few, "nn", 0.1, None, 4)
    assert [one.index for one in best] == [0, 1]
    assert worst == []
    alone = replace(few[0].pair, source="b", target="a")
    best, worst = best_and_worst([few[0], MatchedPair(alone, few[0].predictions)], "nn", 0.1, None, 4)
    assert ([one.index for one in best], [one.index for one in worst]) == ([0], [1])
