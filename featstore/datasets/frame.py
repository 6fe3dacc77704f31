"""From a pair in pixels of the original images to the resized frame (docs/method.md, Points)."""

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.records import Pair, Points, ThetaRule
from featstore.errors import DatasetError
from matcher.pairs import MatchingPair, OriginalFrame

_MARGIN = 1e-4
"""How far inside the frame a clamped point lies, in pixels; as SD4Match."""


def to_resized_frame(
    pair: Pair, rule: ThetaRule, source_size: tuple[int, int], target_size: tuple[int, int], size: int
) -> MatchingPair:
    """The pair with points in pixels of the images resized to `size` x `size`, and its base threshold theta; and the
    same in pixels of the original images.

    source_size, target_size: (width, height) of the original images, in pixels. x_resized = x size / W, whatever the
    geometry. theta is measured on the points as annotated; only then are they clamped into the frame. Raises
    `DatasetError` where theta cannot be measured or is 0.
    """
    square = (size, size)
    theta = _theta(pair, rule, target_size, square)
    original = OriginalFrame(
        source_size=source_size,
        target_size=target_size,
        source_points=_clamped(pair.source_points, source_size),
        target_points=_clamped(pair.target_points, target_size),
        theta=_theta(pair, rule, target_size, target_size),
    )
    return MatchingPair(
        source=pair.source,
        target=pair.target,
        category=pair.category,
        source_points=_clamped(_resized(pair.source_points, source_size, square), square),
        target_points=_clamped(_resized(pair.target_points, target_size, square), square),
        theta=theta,
        original=original,
        names=pair.names,
        flags=None if pair.difficulty is None else asdict(pair.difficulty),
    )


def _resized(points: Points, original: tuple[int, int], frame: tuple[int, int]) -> Points:
    return points * np.asarray(frame, dtype=np.float64) / np.asarray(original, dtype=np.float64)  # (n, 2)


def _clamped(points: Points, frame: tuple[int, int]) -> NDArray[np.float32]:
    return np.clip(points, _MARGIN, np.asarray(frame) - 1 - _MARGIN).astype(np.float32)


def _theta(pair: Pair, rule: ThetaRule, target_size: tuple[int, int], frame: tuple[int, int]) -> float:
    """In pixels of the target image resized to `frame` = (width, height), of points that are not clamped."""
    match rule:
        case ThetaRule.IMAGE:
            return float(max(frame))
        case ThetaRule.KEYPOINTS:
            # all that the target shows: theta is a matter of its own annotation, whatever the source lacks
            points = np.vstack([pair.target_points, *pair.target_only.values()])
            theta = float(np.ptp(_resized(points, target_size, frame), axis=0).max())
        case ThetaRule.BOX:
            if pair.target_box is None:
                raise _no_theta(pair, rule, "the target has no bounding box")
            corners = np.asarray(pair.target_box, dtype=np.float64).reshape(2, 2)
            low, high = _resized(corners, target_size, frame)
            theta = float((high - low).max())
    if not theta > 0:
        raise _no_theta(pair, rule, f"it is {theta:g} pixels")
    return theta


def _no_theta(pair: Pair, rule: ThetaRule, reason: str) -> DatasetError:
    return DatasetError(
        f"Pair {pair.source} -> {pair.target}: PCK's threshold is measured on the {rule.value}, but {reason}; "
        "correct the annotation or leave the pair out."
    )
