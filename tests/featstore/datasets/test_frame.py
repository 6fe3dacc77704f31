"""From original pixels to the resized frame, by hand."""

from typing import Any

import numpy as np
import pytest

from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from featstore.errors import DatasetError
from matcher.pairs import MatchingPair

SOURCE_SIZE, TARGET_SIZE = (200, 100), (50, 400)


def make_pair(**changes: Any) -> Pair:
    fields: dict[str, Any] = {
        "source": "cat/a",
        "target": "cat/b",
        "category": "cat",
        "source_points": np.array([[20.0, 10.0], [200.0, 50.0]]),
        "target_points": np.array([[5.0, 40.0], [30.0, 240.0]]),
        "names": ("eye", "nose"),
        "target_box": (5.0, 20.0, 45.0, 220.0),
    }
    return Pair(**{**fields, **changes})


def framed(pair: Pair, rule: ThetaRule, size: int) -> MatchingPair:
    sizes = {pair.source: SOURCE_SIZE, pair.target: TARGET_SIZE}
    return to_resized_frame(AnnotatedPairs.of([pair]), rule, sizes.__getitem__, size)[0]


def test_points() -> None:
    matching = framed(make_pair(), ThetaRule.IMAGE, 100)
    assert (matching.source, matching.target, matching.category) == ("cat/a", "cat/b", "cat")
    assert matching.source_points.dtype == matching.target_points.dtype == np.float32
    # x by 100/200, y by 100/100; x = W lands on 100, outside, and is clamped.
    np.testing.assert_allclose(matching.source_points, [[10.0, 10.0], [99 - 1e-4, 50.0]], rtol=1e-6)
    np.testing.assert_allclose(matching.target_points, [[10, 10], [60, 60]], rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "theta"),
    [
        (ThetaRule.IMAGE, 100),
        (ThetaRule.BOX, 80),  # 40 of 50 pixels wide, 200 of 400 high
        (ThetaRule.KEYPOINTS, 50),  # 25 of 50 wide, 200 of 400 high
    ],
)
def test_theta(rule: ThetaRule, theta: float) -> None:
    assert framed(make_pair(), rule, 100).theta == pytest.approx(theta)


def test_theta_is_of_all_that_the_target_shows() -> None:
    pair = make_pair(target_only={"ear": (45.0, 240.0)})
    matching = framed(pair, ThetaRule.KEYPOINTS, 100)
    assert matching.theta == pytest.approx(80)  # 40 of 50 wide
    assert len(matching.target_points) == 2


def test_theta_is_measured_before_clamping() -> None:
    pair = make_pair(target_points=np.array([[-10.0, 40.0], [60.0, 40.0]]))
    matching = framed(pair, ThetaRule.KEYPOINTS, 100)
    assert matching.theta == pytest.approx(140)
    np.testing.assert_allclose(matching.target_points[:, 0], [1e-4, 99 - 1e-4], rtol=1e-6)


def test_the_pair_is_left_alone() -> None:
    pair = make_pair()
    framed(pair, ThetaRule.IMAGE, 100)
    np.testing.assert_array_equal(pair.source_points, [[20, 10], [200, 50]])


@pytest.mark.parametrize(
    ("changes", "rule", "sentence"),
    [
        (
            {"source_points": np.ones((1, 2)), "target_points": np.ones((1, 2)), "names": ("eye",)},
            ThetaRule.KEYPOINTS,
            "larger extent of the target's keypoints, but it is 0 pixels",
        ),
        ({"target_box": (5.0, 5.0, 5.0, 5.0)}, ThetaRule.BOX, "target's bounding box, but it is 0 pixels"),
        ({"target_box": (9.0, 9.0, 5.0, 5.0)}, ThetaRule.BOX, "target's bounding box, but it is -1 pixels"),
        ({"target_box": None}, ThetaRule.BOX, "but the target has no bounding box"),
    ],
)
def test_no_theta(changes: dict[str, Any], rule: ThetaRule, sentence: str) -> None:
    with pytest.raises(DatasetError, match=rf"Pair cat/a -> cat/b: .*{sentence}; correct the annotation"):
        framed(make_pair(**changes), rule, 100)


@pytest.mark.parametrize(
    ("rule", "theta"),
    [
        (ThetaRule.IMAGE, 400),  # of 50 and 400
        (ThetaRule.BOX, 200),  # of 40 wide, 200 high
        (ThetaRule.KEYPOINTS, 200),  # of 25 wide, 200 high
    ],
)
def test_theta_of_the_original_image(rule: ThetaRule, theta: float) -> None:
    matching = framed(make_pair(), rule, 100)
    assert matching.in_original_frame().theta == pytest.approx(theta)


@pytest.mark.parametrize(
    ("rule", "resized", "original"),
    [
        (ThetaRule.BOX, 80, 150),  # 40 of 50 pixels wide, 150 of 400 high
        (ThetaRule.KEYPOINTS, 60, 80),  # 30 of 50 pixels wide, 80 of 400 high
    ],
)
def test_the_longer_side_may_be_another_in_the_original_image(rule: ThetaRule, resized: int, original: int) -> None:
    pair = make_pair(target_box=(5.0, 20.0, 45.0, 170.0), target_points=np.array([[5.0, 40.0], [35.0, 120.0]]))
    matching = framed(pair, rule, 100)
    assert matching.theta == pytest.approx(resized)
    assert matching.in_original_frame().theta == pytest.approx(original)


def test_points_of_the_original_image() -> None:
    original = framed(make_pair(), ThetaRule.IMAGE, 100).in_original_frame()
    assert (original.source_size, original.target_size) == (SOURCE_SIZE, TARGET_SIZE)
    assert original.source_points.dtype == original.target_points.dtype == np.float32
    # as annotated, but for x = W = 200, which is clamped to the last pixel
    np.testing.assert_allclose(original.source_points, [[20, 10], [199 - 1e-4, 50]], rtol=0, atol=3e-5)
    np.testing.assert_allclose(original.target_points, [[5, 40], [30, 240]], rtol=0, atol=3e-5)


def test_points_outside_the_original_image_are_clamped_after_theta() -> None:
    pair = make_pair(target_points=np.array([[-10.0, 410.0], [60.0, -0.5]]))
    matching = framed(pair, ThetaRule.KEYPOINTS, 100)
    original = matching.in_original_frame()
    assert original.theta == pytest.approx(410.5)
    assert matching.theta == pytest.approx(140)  # 70 of 50 pixels wide
    np.testing.assert_allclose(original.target_points, [[1e-4, 399 - 1e-4], [49 - 1e-4, 1e-4]], rtol=0, atol=3e-5)


@pytest.mark.parametrize("rule", ThetaRule)
def test_the_original_frame_does_not_depend_on_the_size(rule: ThetaRule) -> None:
    small, large = (framed(make_pair(), rule, size).in_original_frame() for size in (64, 768))
    assert small.theta == large.theta
    np.testing.assert_array_equal(small.target_points, large.target_points)
    np.testing.assert_array_equal(small.source_points, large.source_points)
