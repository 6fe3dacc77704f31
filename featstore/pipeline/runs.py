"""Evaluations that were kept: read again, scored again, compared."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from featstore.backbones.layers import check_timesteps
from featstore.errors import EvaluationError, ModelError
from featstore.pipeline.predictions import load_predictions
from featstore.pipeline.results import PREDICTIONS, RUN, Evaluation, Scoring, read_description, tabulated
from featstore.sealed import check_seal, parse_known
from matcher.configuration import Configuration
from matcher.errors import MatchError
from matcher.pairs import Frame, MatchingPair, Pairs, PixelFrame
from matcher.pck import Average, Columns, Distances, Matches, distances
from matcher.statistics import Difference, compare

_CLOSE = 0.01
"""Pixels of the original image by which annotations may differ: they are kept in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationRun:
    """An evaluation as it was kept. features: where its maps came from. average: that of the printed table. matched:
    its pairs and what was predicted. description: all that `run.json` holds."""

    path: Path
    dataset: str
    split: str
    scoring: Scoring
    features: Mapping[str, Any]
    average: Average
    matched: Matches
    description: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `EvaluationError` where there is none, or a newer dualsd wrote it, or it is damaged."""
        description = read_description(path)
        try:
            said: _Described = parse_known(_Described, description)
            said.check()
            matched = load_predictions(path / PREDICTIONS)
            said.check_against(matched)
            check_seal(description)
        except (ValueError, MatchError, ModelError) as error:
            raise EvaluationError(f"{path / RUN} is damaged or was changed ({error}): evaluate again.") from error
        return cls(
            path=path,
            dataset=said.dataset,
            split=said.split,
            scoring=said.scoring,
            features=said.features,
            average=said.average,
            matched=matched,
            description=description,
        )

    def scored(
        self,
        readouts: Sequence[str] | None = None,
        alphas: Sequence[float] | None = None,
        frame: Frame | None = None,
    ) -> Evaluation:
        """Scored again, by default as it was. Raises `EvaluationError` for a readout that it lacks."""
        chosen = self.scoring.readouts if readouts is None else tuple(readouts)
        for readout in chosen:
            self.check_readout(readout)
        scoring = replace(
            self.scoring,
            readouts=chosen,
            alphas=self.scoring.alphas if alphas is None else tuple(alphas),
            frame=self.scoring.frame if frame is None else frame,
        )
        matched = Matches(self.matched.pairs, {readout: self.matched.predictions[readout] for readout in chosen})
        return replace(tabulated(self.dataset, self.split, scoring, self.features, matched), notes=self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd about the list when it was evaluated; nothing where an older dualsd did."""
        kept = self.description.get("notes")
        return tuple(map(str, kept)) if isinstance(kept, list) else ()

    def check_readout(self, readout: str) -> None:
        """Raise `EvaluationError` for one that the run lacks."""
        if readout not in self.scoring.readouts:
            known = ", ".join(self.scoring.readouts)
            raise EvaluationError(f"{self.path} has no readout {readout}: it was evaluated with {known}.")


@dataclass(frozen=True, slots=True)
class _Described:
    """What `run.json` says and is read again."""

    dataset: str
    split: str
    categories: tuple[str, ...]
    n_pairs: int
    n_points: int
    scoring: Scoring
    features: Mapping[str, Any]
    average: Average = Average.IMAGE
    theta: str | None = None
    store: str | None = None
    root: str | None = None
    created: str | None = None
    creator: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Raise ValueError, `MatchError` or `ModelError` for values that no evaluation has."""
        scoring = self.scoring
        Configuration(scoring.layers, scoring.settings)  # raises for weights that cannot be
        check_timesteps([layer.timestep for layer in scoring.layers if layer.timestep is not None])
        for name, values in (("readouts", scoring.readouts), ("alphas", scoring.alphas)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"scoring.{name} is empty, or names one twice")
        if not all(0 < alpha <= 1 for alpha in scoring.alphas):
            raise ValueError(f"scoring.alphas is {list(scoring.alphas)}, which are not all above 0 and at most 1")

    def check_against(self, matched: Matches) -> None:
        """Raise ValueError where the predictions are others than is said."""
        if set(self.scoring.readouts) != set(matched.predictions):
            raise ValueError("its predictions are of other readouts than scoring.readouts says")
        found = {
            "n_pairs": len(matched),
            "n_points": int(matched.pairs.counts.sum()),
            "categories": tuple(matched.pairs.occurring),
        }
        for name, value in found.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)}, and the predictions have {value}")


def compare_runs(
    first: EvaluationRun,
    other: EvaluationRun,
    readout: str,
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
        first.matched.pairs,
        _distances(first, first.matched, readout, frame),
        _distances(other, matched, readout, frame),
        alphas,
        average,
    )


def aligned(first: EvaluationRun, other: EvaluationRun) -> Matches:
    """The other run's matches in the order of the first one's. Raises `EvaluationError` where pairs, keypoints or
    thresholds differ."""
    ours, theirs = (_names(run.matched.pairs) for run in (first, other))
    only_ours, only_theirs = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    if only_ours or only_theirs:
        run, name = (first, min(only_ours)) if only_ours else (other, min(only_theirs))
        raise EvaluationError(
            f"{first.path} and {other.path} were evaluated on different pairs ({' -> '.join(name[1:])} is only in "
            f"{run.path}): evaluate the same --split and --categories."
        )
    waiting: dict[tuple[str, str, str], list[int]] = {}
    for row, name in reversed(list(enumerate(theirs))):
        waiting.setdefault(name, []).append(row)
    found = other.matched.take([waiting[name].pop() for name in ours])
    for mine, its in zip(first.matched.pairs, found.pairs, strict=True):
        difference = _difference(mine, its)
        if difference is not None:
            raise EvaluationError(
                f"{first.path} and {other.path} were evaluated on different {difference} of "
                f"{mine.source} -> {mine.target}: evaluate again on the same annotations."
            )
    return found


def _names(pairs: Pairs) -> list[tuple[str, str, str]]:
    return [
        (pairs.categories[category], pairs.images[source], pairs.images[target])
        for category, source, target in zip(pairs.category, pairs.source, pairs.target, strict=True)
    ]


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


def _check_frames(first: EvaluationRun, other: EvaluationRun, readout: str) -> None:
    ours, theirs = (_frame_of(run, readout) for run in (first, other))
    if ours != theirs:
        raise EvaluationError(
            f"{readout} is measured in {ours} in {first.path}, but in {theirs} in {other.path}: choose one for "
            "both with --frame original or --frame resized."
        )


def _frame_of(run: EvaluationRun, readout: str) -> str:
    if run.scoring.frame_of(readout) is Frame.ORIGINAL:
        return "original images"
    return f"images of {run.scoring.settings.image_size} pixels"


def _distances(run: EvaluationRun, matched: Matches, readout: str, frame: Frame | None) -> Distances:
    chosen = run.scoring.frame if frame is None else frame
    return distances(matched, readout, None if chosen is None else PixelFrame(chosen, run.scoring.settings.image_size))
