"""Runs side by side: whether they can be compared, and their pairs in one order."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from featstore.errors import EvaluationError
from featstore.pipeline.evaluation_run import EvaluationRun
from matcher.pairs import Frame, MatchingPair, PixelFrame
from matcher.pck import Average, Columns, Distances, MatchedPair, distances
from matcher.readout import Readout
from matcher.statistics import Difference, compare

_CLOSE = 0.01
"""Pixels of the original image by which annotations may differ: they are kept in float32."""


def compare_runs(
    first: EvaluationRun,
    other: EvaluationRun,
    readout: Readout,
    alphas: Sequence[float],
    average: Average,
    frame: Frame | None,
) -> dict[float, Columns[Difference]]:
    """How far `other` leads, by alpha, see `matcher.statistics.compare`. frame: None for the one in
    which both were scored.

    Raises `EvaluationError` for a readout that one lacks, for different pairs or keypoints, and for different frames
    where none is given.
    """
    for run in (first, other):
        run.check_readout(readout)
    if frame is None:
        _check_frames(first, other, readout)
    matched = aligned(first, other)
    return compare(
        [match.pair for match in first.matched],
        _distances(first, first.matched, readout, frame),
        _distances(other, matched, readout, frame),
        alphas,
        average,
    )


def aligned(first: EvaluationRun, other: EvaluationRun) -> tuple[MatchedPair, ...]:
    """The other run's matches in the order of the first one's. Raises `EvaluationError` where pairs, keypoints or
    thresholds differ."""
    ours, theirs = (Counter(_name(match) for match in run.matched) for run in (first, other))
    if ours != theirs:
        run, name = (first, min(ours - theirs)) if ours - theirs else (other, min(theirs - ours))
        raise EvaluationError(
            f"{first.path} and {other.path} were evaluated on different pairs ({' -> '.join(name[1:])} is only in "
            f"{run.path}): evaluate the same --split and --categories."
        )
    waiting: dict[tuple[str, ...], list[MatchedPair]] = {}
    for match in other.matched:
        waiting.setdefault(_name(match), []).append(match)
    found = tuple(waiting[_name(match)].pop(0) for match in first.matched)
    for match, its in zip(first.matched, found, strict=True):
        difference = _difference(match.pair, its.pair)
        if difference is not None:
            raise EvaluationError(
                f"{first.path} and {other.path} were evaluated on different {difference} of "
                f"{match.pair.source} -> {match.pair.target}: evaluate again on the same annotations."
            )
    return found


def _name(match: MatchedPair) -> tuple[str, str, str]:
    return match.pair.category, match.pair.source, match.pair.target


def _difference(ours: MatchingPair, theirs: MatchingPair) -> str | None:
    """What two records of a pair disagree on; points in the original frame, which no image size changes."""
    first, other = ours.in_original_frame(), theirs.in_original_frame()
    if None not in (ours.names, theirs.names) and ours.names != theirs.names:
        return "keypoints"
    for mine, its in (
        (first.source_points, other.source_points),
        (first.target_points, other.target_points),
    ):
        if mine.shape != its.shape or not np.allclose(mine, its, rtol=0, atol=_CLOSE):
            return "keypoints"
    if (first.source_size, first.target_size) != (other.source_size, other.target_size):
        return "image sizes"
    return None if np.isclose(first.theta, other.theta, rtol=1e-6) else "thresholds theta"


def _check_frames(first: EvaluationRun, other: EvaluationRun, readout: Readout) -> None:
    ours, theirs = (_frame_of(run, readout) for run in (first, other))
    if ours != theirs:
        raise EvaluationError(
            f"{readout.value} is measured in {ours} in {first.path}, but in {theirs} in {other.path}: choose one for "
            "both with --frame original or --frame resized."
        )


def _frame_of(run: EvaluationRun, readout: Readout) -> str:
    if run.scoring.frame_of(readout) is Frame.ORIGINAL:
        return "original images"
    return f"images of {run.scoring.settings.image_size} pixels"


def _distances(run: EvaluationRun, matched: Sequence[MatchedPair], readout: Readout, frame: Frame | None) -> Distances:
    chosen = run.scoring.frame if frame is None else frame
    return distances(matched, readout, None if chosen is None else PixelFrame(chosen, run.scoring.settings.image_size))
