from dataclasses import replace

import numpy as np
import pytest

from matcher.configuration import Frame
from matcher.errors import MatchError
from matcher.pairs import ALL, MatchingPair, OriginalFrame, PixelFrame
from matcher.pck import (
    Average,
    MatchedPair,
    Matches,
    best_and_worst,
    distances,
    paper_rows,
    tabulate,
    to_json,
    to_rows,
)


def pair(category: str, distances: list[float], theta: float) -> MatchedPair:
    truth = np.full((len(distances), 2), 50, dtype=np.float32)
    predicted = truth + np.array([[distance, 0] for distance in distances], dtype=np.float32)
    return MatchedPair(MatchingPair("a", "b", category, truth, truth, theta), {"nn": predicted})


def test_a_point_on_the_threshold_counts() -> None:
    truth = np.zeros((3, 2), dtype=np.float32)
    predicted = np.array([[3, 4], [5.01, 0], [0, -5]], dtype=np.float32)
    match = MatchedPair(MatchingPair("a", "b", "cat", truth, truth, 50), {"nn": predicted})
    assert distances([match], "nn").hits(0.1).tolist() == [2]
    matches = Matches.of([match])
    strict = Matches(replace(matches.pairs, strict=True), matches.predictions)
    assert distances(strict, "nn").hits(0.1).tolist() == [0]
    assert best_and_worst(strict, "nn", 0.1, None, 1)[0][0].pck == 0
    assert distances(strict.take([0]), "nn").hits(0.11).tolist() == [3]


def test_all_averages_by_hand() -> None:
    matched = [pair("cat", [1, 1, 1, 9], 50), pair("cat", [9], 50), pair("dog", [9, 1], 50)]
    table = tabulate(matched, [0.1])
    image, point = table.values["nn"][Average.IMAGE][0.1], table.values["nn"][Average.POINT][0.1]
    assert image.named() == pytest.approx({ALL: (0.75 + 0 + 0.5) / 3, "cat": 0.375, "dog": 0.5})
    assert point.named() == pytest.approx({ALL: 4 / 7, "cat": 3 / 5, "dog": 0.5})
    by_category = table.values["nn"].category[0.1]
    assert by_category.named() == pytest.approx({ALL: (3 / 5 + 1 / 2) / 2, "cat": 3 / 5, "dog": 0.5})
    assert table.categories == ("cat", "dog")


def test_theta_belongs_to_the_pair() -> None:
    table = tabulate([pair("cat", [6], 50), pair("cat", [6], 70)], [0.1])
    assert table.values["nn"][Average.POINT][0.1].overall == 0.5


def test_nothing_to_score() -> None:
    with pytest.raises(MatchError):
        tabulate([], [0.1])


def test_shapes_of_the_report() -> None:
    table = tabulate([pair("cat", [1, 9], 50), pair("dog", [1], 50)], [0.05, 0.1])
    assert to_json(table)["nn"]["point"]["0.1"] == pytest.approx({"all": 2 / 3, "cat": 0.5, "dog": 1.0})
    header, rows = paper_rows(table, Average.IMAGE)
    assert header == ["readout", "alpha", "cat", "dog", "all"]
    assert rows[1] == ["nn", "0.1", "50.00", "100.00", "75.00"]
    assert ("nn", "point", "0.1", "all", "66.6667") in list(to_rows(table))


def test_another_frame_needs_the_original_images() -> None:
    with pytest.raises(MatchError, match="a -> b is not known in pixels of its original images"):
        tabulate([pair("cat", [1], 50)], [0.1], PixelFrame(Frame.ORIGINAL, 100))


def test_the_other_frame_by_hand() -> None:
    """Off by (4, 0) of 100 x 100 pixels is (8, 0) of 200 x 50, and theta 120 there where it was 50: 0.067 against
    0.08."""
    match = pair("cat", [4], 50)
    points = np.zeros((1, 2), dtype=np.float32)
    original = OriginalFrame((10, 10), (200, 50), points, points, 120.0)
    matched = [replace(match, pair=replace(match.pair, original=original))]
    for frame, alpha in ((Frame.ORIGINAL, 8 / 120), (Frame.RESIZED, 4 / 50)):
        for nudge, right in ((1e-6, 1.0), (-1e-6, 0.0)):
            table = tabulate(matched, [alpha + nudge], PixelFrame(frame, 100))
            assert table.values["nn"][Average.IMAGE][alpha + nudge].overall == right
