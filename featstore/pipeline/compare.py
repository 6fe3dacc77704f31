"""Runs side by side: whether they can be compared, their pairs in one order, and how far each leads the first."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from featstore.config import ThetaName
from featstore.errors import EvaluationError
from featstore.pipeline.results import EvaluationRun, Scoring
from matcher.configuration import Frame, Pad
from matcher.pairs import MatchingPair, Pairs
from matcher.pck import Average, Columns, Distances, Matches, distances
from matcher.statistics import Difference, compare

_CLOSE = 0.01
"""Pixels of the original image by which annotations may differ: they are kept in float32."""

CSV_HEADER = (
    *("first", "run", "readout", "average", "frame", "alpha", "category"),
    *("first_percent", "run_percent", "lead_percent", "lead_low_percent", "lead_high_percent", "p"),
)

Differences = Mapping[float, Columns[Difference]]
"""By alpha."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Evaluations over the same pairs and the first one. others: each with how far it leads. readout, average, frame,
    scoring: what was compared, in whose pixels distances were measured, and which are small enough."""

    first: EvaluationRun
    others: tuple[tuple[EvaluationRun, Differences], ...]
    readout: str
    average: Average
    frame: Frame
    scoring: Scoring

    @property
    def title(self) -> str:
        """What was compared, on which list."""
        return (
            f"PCK in percent, {self.readout}, {self.average.value} average, {self.frame.value} frame, "
            f"{self.scoring.threshold}: {self.first.title}"
        )

    def to_json(self) -> dict[str, Any]:
        """As `dualsd compare --json` writes it; fractions."""
        return {
            **self.first.measured_on,
            "readout": self.readout,
            "average": self.average.value,
            "frame": self.frame.value,
            "theta": self.scoring.theta,
            "strict": self.scoring.strict,
            "first": str(self.first.path),
            "comparisons": [{"run": str(run.path), "results": _to_json(found)} for run, found in self.others],
        }

    def to_rows(self) -> Iterator[tuple[str, ...]]:
        """One row per run, alpha and category, in the order of `CSV_HEADER`; percent."""
        settings = self.readout, self.average.value, self.frame.value
        for run, differences in self.others:
            for alpha, columns in differences.items():
                for name, found in columns.named().items():
                    fractions = (found.first, found.run, found.lead.mean, found.lead.low, found.lead.high)
                    percent = (f"{100 * value:.4f}" for value in fractions)
                    about = str(self.first.path), str(run.path), *settings, f"{alpha:g}", name
                    yield (*about, *percent, f"{found.p:.4f}")


def _to_json(differences: Differences) -> dict[str, Any]:
    return {
        f"{alpha:g}": {name: asdict(found) for name, found in columns.named().items()}
        for alpha, columns in differences.items()
    }


def compare_runs(
    runs: Sequence[EvaluationRun],
    readout: str = "nn",
    alphas: Sequence[float] | None = None,
    average: Average = Average.IMAGE,
    frame: Frame | None = None,
    theta: ThetaName | None = None,
    strict: bool | None = None,
) -> Comparison:
    """Compare evaluations with the first, see `matcher.statistics.compare`.

    Args:
        runs: At least two, over the same pairs.
        readout: One that all have.
        alphas: Thresholds as fractions of theta, by default those of the first run.
        average: Over pairs or points.
        frame: In whose pixels distances are measured, by default the one in which all were scored.
        theta: What theta is measured on, by default as in the runs.
        strict: Whether a point at alpha theta is missed, by default as in the runs.

    Returns:
        How far each leads the first, with 95 % intervals and p values.

    Raises:
        EvaluationError: One lacks the readout or the theta; pairs, keypoints or thresholds differ, or frames, or
            whether a point at alpha theta is missed, where none is given.
    """
    if strict is None and len({run.scoring.strict for run in runs}) > 1:
        raise EvaluationError("Some of the runs count a point at alpha theta as missed: say --strict or --no-strict.")
    first, *others = (run.under(theta, strict) for run in runs)
    chosen = first.scoring.alphas if alphas is None else alphas
    found = []
    for other in others:
        for run in (first, other):
            run.check_readout(readout)
        if frame is None:
            _check_frames(first, other, readout)
        theirs = _distances(other, aligned(first, other), readout, frame)
        ours = _distances(first, first.matched, readout, frame)
        found.append((other, compare(first.matched.pairs, ours, theirs, chosen, average)))
    return Comparison(first, tuple(found), readout, average, frame or first.scoring.frame_of(readout), first.scoring)


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
    rows = np.empty(len(ours), dtype=np.intp)
    rows[sorted(range(len(ours)), key=ours.__getitem__)] = sorted(range(len(ours)), key=theirs.__getitem__)
    found = other.matched.take(rows)
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
    sides = (first.source_points, other.source_points), (first.target_points, other.target_points)
    for mine, its in sides:
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
    settings = run.scoring.settings
    return f"{'padded ' if settings.pad is Pad.SQUARE else ''}images of {settings.image_size} pixels"


def _distances(run: EvaluationRun, matched: Matches, readout: str, frame: Frame | None) -> Distances:
    scoring = replace(run.scoring, frame=frame or run.scoring.frame)
    return distances(matched, readout, scoring.pixels)
