"""Pairs as columns: views give back what went in, whatever is taken of them."""

from dataclasses import replace

import numpy as np
import pytest

from matcher.configuration import Frame
from matcher.errors import MatchError
from matcher.pairs import MatchingPair, OriginalFrame, Pairs
from matcher.pck import MatchedPair, Matches


def some_pairs() -> list[MatchingPair]:
    """Of 1 to 4 points, images and categories in no order."""
    random = np.random.default_rng(0)
    found = []
    for row, (source, target, category) in enumerate(["zax", "bzx", "abm", "zbx", "mam"]):
        points = random.uniform(0, 50, (4, 1 + row % 4, 2)).astype(np.float32)
        original = OriginalFrame((100 + row, 90), (80, 70 + row), points[2], points[3], 7.5 + row)
        names = tuple(f"k{number}" for number in range(1 + row % 4, 0, -1))
        flags = {"scale": row % 3, "viewpoint": 1}
        found.append(
            MatchingPair(source, target, category, points[0], points[1], 3.25 * row + 1, original, names, flags)
        )
    return found


def assert_same(ours: MatchingPair, theirs: MatchingPair) -> None:
    for name in ("source", "target", "category", "theta", "names", "flags"):
        assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.source_points, theirs.source_points)
    np.testing.assert_array_equal(ours.target_points, theirs.target_points)
    assert (ours.original is None) == (theirs.original is None)
    if ours.original is not None and theirs.original is not None:
        for name in ("source_size", "target_size", "theta"):
            assert getattr(ours.original, name) == getattr(theirs.original, name)
        np.testing.assert_array_equal(ours.original.source_points, theirs.original.source_points)
        np.testing.assert_array_equal(ours.original.target_points, theirs.original.target_points)


def test_views_are_what_went_in() -> None:
    pairs = some_pairs()
    columns = Pairs.of(iter(pairs))
    assert len(columns) == len(pairs)
    assert Pairs.of(columns) is columns
    for ours, theirs in zip(columns, pairs, strict=True):
        assert_same(ours, theirs)
    assert_same(columns[-1], pairs[-1])
    with pytest.raises(IndexError):
        columns[len(pairs)]


@pytest.mark.parametrize("rows", [[3, 0, 3], [], [4], range(1, 3)])
def test_some_of_them(rows: list[int]) -> None:
    pairs = some_pairs()
    for ours, row in zip(Pairs.of(pairs).take(rows), rows, strict=True):
        assert_same(ours, pairs[row])


def test_a_mask_and_a_slice() -> None:
    pairs = some_pairs()
    columns = Pairs.of(pairs)
    for taken in (columns[1:4], columns.take(np.array([False, True, True, True, False]))):
        for ours, theirs in zip(taken, pairs[1:4], strict=True):
            assert_same(ours, theirs)


def test_groups_come_in_order() -> None:
    columns = Pairs.of(some_pairs())
    assert columns.grouped("category") == {"x": [0, 1, 3], "m": [2, 4]}
    assert columns.grouped("source", [4, 3, 0]) == {"m": [4], "z": [3, 0]}
    assert {name: own.tolist() for name, own in columns.occurring.items()} == {
        "m": [False, False, True, False, True],
        "x": [True, True, False, True, False],
    }


def test_what_not_all_have_none_has() -> None:
    pairs = some_pairs()
    pairs[2] = replace(pairs[2], original=None, names=None, flags=None)
    columns = Pairs.of(pairs)
    assert (columns.original, columns.keypoints, columns.flags) == (None, None, None)
    with pytest.raises(MatchError, match="is not known in pixels of its original images"):
        columns.in_frame(Frame.ORIGINAL)


def test_matches_are_columns_too() -> None:
    pairs = some_pairs()
    listed = [MatchedPair(pair, {"nn": pair.target_points + 1, "window": pair.source_points}) for pair in pairs]
    for taken, rows in ((Matches.of(listed), range(5)), (Matches.of(listed).take([4, 1]), (4, 1))):
        for ours, row in zip(taken, rows, strict=True):
            assert_same(ours.pair, pairs[row])
            np.testing.assert_array_equal(ours.predictions["nn"], pairs[row].target_points + 1)
            np.testing.assert_array_equal(ours.predictions["window"], pairs[row].source_points)
    with pytest.raises(MatchError, match="no pair"):
        Matches.of([])
