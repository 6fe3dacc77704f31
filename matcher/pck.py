"""PCK@alpha: the share of points with ||prediction - truth|| <= alpha theta, and its two averages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import FramePoints, MatchingPair
from matcher.readout import Readout

ALL = "all"
"""The column over all pairs or points (not over categories)."""


class Average(Enum):
    """IMAGE: mean over pairs of the pair's PCK (SD4Match's default). POINT: all points pooled. Papers mix them."""

    IMAGE = "image"
    POINT = "point"


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPair:
    """A pair and what each readout predicted for its source points: (n, 2) in pixels of the readout's frame."""

    pair: MatchingPair
    predictions: Mapping[Readout, FramePoints]


@dataclass(frozen=True, slots=True)
class PckTable:
    """PCK as fractions: `values[readout][average][alpha][category or ALL]`."""

    values: Mapping[Readout, Mapping[Average, Mapping[float, Mapping[str, float]]]]
    categories: tuple[str, ...]
    n_pairs: int
    n_points: int


def hits(predictions: FramePoints, truths: FramePoints, theta: float, alpha: float) -> NDArray[np.bool_]:
    """Which points are matched well enough: predictions, truths (n, 2) in pixels of one frame to (n,)."""
    distances = np.linalg.norm(predictions.astype(np.float64) - truths.astype(np.float64), axis=1)
    return np.asarray(distances <= alpha * theta)


def averaged(hit: NDArray[Any], points: NDArray[Any], average: Average) -> NDArray[np.float64]:
    """PCK as fractions, (...), from hits (..., pairs) and points (pairs,) of each pair."""
    if average is Average.IMAGE:
        return np.asarray((hit / points).mean(axis=-1))
    return np.asarray(hit.sum(axis=-1) / points.sum())


def tabulate(matched: Sequence[MatchedPair], alphas: Sequence[float]) -> PckTable:
    """PCK by readout, average, alpha and category. Raises `MatchError` where there is no pair."""
    if not matched:
        raise MatchError("There is no pair to score.")
    categories = np.array([match.pair.category for match in matched])
    counts = np.array([len(match.pair.target_points) for match in matched])
    columns = {ALL: np.ones(len(matched), dtype=bool)} | {
        str(category): categories == category for category in sorted(set(categories))
    }
    values: dict[Readout, dict[Average, dict[float, dict[str, float]]]] = {}
    for readout in matched[0].predictions:
        values[readout] = {average: {} for average in Average}
        for alpha in alphas:
            right = np.array(
                [hits(match.predictions[readout], *match.pair.truth(readout.frame), alpha).sum() for match in matched]
            )
            for average in Average:
                values[readout][average][alpha] = {
                    name: float(averaged(right[chosen], counts[chosen], average)) for name, chosen in columns.items()
                }
    return PckTable(values, tuple(name for name in columns if name != ALL), len(matched), int(counts.sum()))
