"""Why an evaluation's matches are wrong, and what another one repairs, from what was kept; nothing is matched."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.groups import alike, mirrored
from featstore.errors import EvaluationError
from featstore.pipeline.compare import Comparison, aligned
from featstore.pipeline.results import Evaluation, EvaluationRun
from matcher.misses import KINDS, Kind, geometry_aware, kinds, shares
from matcher.pck import Columns, Matches, PckTable, tabulate, to_json


@dataclass(frozen=True, slots=True)
class Misses:
    """shares: of points of each kind, fractions, by readout and alpha. has_sides: whether it is known which keypoints
    are mirrored. aware: PCK of the geometry-aware points, None where there is none. aware_pairs, aware_points: how many
    these are."""

    shares: Mapping[str, Mapping[float, Columns[dict[Kind, float]]]]
    has_sides: bool
    aware: PckTable | None
    aware_pairs: int
    aware_points: int

    def to_json(self) -> dict[str, Any]:
        """As `dualsd score --errors --json` writes it beside the scores; fractions."""
        return {
            "errors": {
                readout: {
                    f"{alpha:g}": {name: in_words(own, self.has_sides) for name, own in found.named().items()}
                    for alpha, found in by_alpha.items()
                }
                for readout, by_alpha in self.shares.items()
            },
            "geometry_aware": {
                "n_pairs": self.aware_pairs,
                "n_points": self.aware_points,
                "results": {} if self.aware is None else to_json(self.aware),
            },
        }


def in_words(found: Mapping[Kind, float], has_sides: bool) -> dict[str, float | None]:
    """Shares as tables have them: `another` keypoint, and of these `mirrored`, None where nobody says which are."""
    return {
        "right": found[Kind.RIGHT],
        "near": found[Kind.NEAR],
        "another": found[Kind.MIRRORED] + found[Kind.OTHER],
        "mirrored": found[Kind.MIRRORED] if has_sides else None,
        "elsewhere": found[Kind.ELSEWHERE],
    }


def misses_of(evaluation: Evaluation) -> Misses:
    """Of all its readouts and alphas. Raises `EvaluationError` where a dualsd before this one kept it."""
    scoring, matched = evaluation.scoring, evaluation.matched
    found = {
        readout: {alpha: shares(matched, kinds_of(evaluation, readout, alpha)) for alpha in scoring.alphas}
        for readout in scoring.readouts
    }
    names = matched.pairs.keypoints[0] if matched.pairs.keypoints is not None else ()
    has_sides = any(mirrored(evaluation.dataset, category, names) for category in matched.pairs.occurring)
    aware = geometry_aware(matched, partial(alike, evaluation.dataset))
    if not aware.any():
        return Misses(found, has_sides, None, 0, 0)
    own = matched.only(aware)
    return Misses(found, has_sides, tabulate(own, scoring.alphas, scoring.pixels), len(own), int(aware.sum()))


def kinds_of(evaluation: Evaluation, readout: str, alpha: float, matched: Matches | None = None) -> NDArray[np.uint8]:
    """What became of each point, see `matcher.misses.kinds`.

    Args:
        evaluation: Whose points.
        readout: One of its readouts.
        alpha: A fraction of theta.
        matched: Its matches in another order, None for its own.

    Raises:
        EvaluationError: A dualsd before this one kept it.
    """
    own = evaluation.matched if matched is None else matched
    if own.pairs.unmatched is None:
        raise EvaluationError(
            "The run does not keep all keypoints that its targets show, as a dualsd before this one made it: evaluate "
            "again to tell its errors apart."
        )
    return kinds(own, readout, alpha, partial(mirrored, evaluation.dataset), evaluation.scoring.pixels)


def repairs(comparison: Comparison, other: EvaluationRun, alpha: float) -> NDArray[np.int64]:
    """How many points are of each kind in the first run, down, and in another, across: (5, 5), in the order of `KINDS`.
    Raises `EvaluationError` where a dualsd before this one kept one of them."""
    first, readout = comparison.first, comparison.readout
    found = np.zeros((len(KINDS), len(KINDS)), dtype=np.int64)
    np.add.at(found, (kinds_of(first, readout, alpha), kinds_of(other, readout, alpha, aligned(first, other))), 1)
    return found
