"""Annotated pairs as columns: views give back what went in, and no object per pair stays."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pytest

from featstore.datasets.records import AnnotatedPairs, Difficulty, Pair


def some_pairs() -> list[Pair]:
    """With and without boxes, sizes, flags and keypoints that only the target shows."""
    random = np.random.default_rng(0)
    found = []
    for row, (source, target, category) in enumerate(["zax", "bzx", "abm", "zbx", "mam"]):
        count = 1 + row % 4
        points = random.uniform(-5, 50, (2, count, 2))
        found.append(
            Pair(
                source,
                target,
                category,
                points[0],
                points[1],
                tuple(f"k{number}" for number in range(count, 0, -1)),
                source_box=(1.5, 2, 30, 20) if row % 2 else None,
                target_box=(5, 3, 45, 18.25) if row % 3 else None,
                difficulty=Difficulty(row % 3, 1, 3, 0) if row else None,
                source_size=(40, 30) if row % 2 else None,
                target_size=(50, 20) if row > 2 else None,
                source_place=f"/data/\udce9t\u00e9/{row}.json" if row != 1 else "",
                target_place=f"list.csv, line {row}",
                target_only={"tail": (7.0, 8.5), "ear": (0.0, 1.0)} if row == 2 else {},
            )
        )
    return found


def assert_same(ours: Pair, theirs: Pair) -> None:
    for name in (field.name for field in fields(Pair)):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if isinstance(its, np.ndarray):
            np.testing.assert_array_equal(mine, its)
        else:
            assert mine == its, name


def test_views_are_what_went_in() -> None:
    pairs = some_pairs()
    columns = AnnotatedPairs.of(iter(pairs))
    assert AnnotatedPairs.of(columns) is columns
    for ours, theirs in zip(columns, pairs, strict=True):
        assert_same(ours, theirs)
    assert columns.occurring_images == sorted("zabm")


@pytest.mark.parametrize("rows", [[3, 0, 3], [], [4], range(1, 3)])
def test_some_of_them(rows: list[int]) -> None:
    pairs = some_pairs()
    taken = AnnotatedPairs.of(pairs).take(rows)
    for ours, row in zip(taken, rows, strict=True):
        assert_same(ours, pairs[row])
    assert taken.occurring_images == sorted({name for row in rows for name in (pairs[row].source, pairs[row].target)})


def test_those_among_some_images() -> None:
    pairs = some_pairs()
    columns = AnnotatedPairs.of(pairs)
    assert columns.among("zabm") is columns
    (ours,) = columns.among("zb").take([0])
    assert_same(ours, pairs[1])
    assert len(columns.among("zb")) == 2


def test_none() -> None:
    columns = AnnotatedPairs.of(())
    assert (list(columns), columns.occurring_images) == ([], [])


def test_what_a_pair_costs_is_its_numbers() -> None:
    """Two points of 2 x 4 numbers and their names, two boxes, sizes, places: 400 bytes; an object alone takes more."""
    count = 5000

    def drawn() -> Iterator[Pair]:
        for number in range(count):
            points = np.full((2, 2, 2), float(number))
            place = f"PairAnnotation/test/{number:06}.json"
            yield Pair(
                f"cat/{number % 50}", "cat/b", "cat", *points, ("eye", "nose"), source_place=place, target_place=place
            )

    AnnotatedPairs.of(drawn())
    tracemalloc.start()
    columns = AnnotatedPairs.of(drawn())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(columns) == count
    assert held < 450 * count
