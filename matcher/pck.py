"""PCK@alpha: the share of points with ||prediction - truth|| <= alpha theta, and its two averages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError
from matcher.pairs import ALL, Frame, FramePoints, MatchingPair, PixelFrame
from matcher.readout import Readout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Columns(Generic[T]):
    """A score (a fraction, an interval, a difference) over all pairs or points, and that of each category, sorted."""

    overall: T
    by_category: Mapping[str, T]

    def named(self) -> dict[str, T]:
        """As tables show them: the categories, then `ALL`."""
        return {**self.by_category, ALL: self.overall}


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
    """PCK as fractions: `values[readout][average][alpha]`."""

    values: Mapping[Readout, Mapping[Average, Mapping[float, Columns[float]]]]
    categories: tuple[str, ...]
    n_pairs: int
    n_points: int


def hits(predictions: FramePoints, truths: FramePoints, theta: float, alpha: float) -> NDArray[np.bool_]:
    """Which points are matched well enough: predictions, truths (n, 2) in pixels of one frame to (n,)."""
    distances = np.linalg.norm(predictions.astype(np.float64) - truths.astype(np.float64), axis=1)
    return np.asarray(distances <= alpha * theta)


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """From predictions to the truth, in pixels of one frame. distances: (points,), of all pairs in turn. thetas:
    (pairs,), base thresholds. counts: (pairs,), points of each."""

    distances: NDArray[np.float64]
    thetas: NDArray[np.float64]
    counts: NDArray[np.int64]

    def hits(self, alpha: float) -> NDArray[np.int64]:
        """How many points of each pair are matched well enough, (pairs,)."""
        right = self.distances <= alpha * np.repeat(self.thetas, self.counts)
        return np.asarray(np.add.reduceat(right, np.cumsum(self.counts) - self.counts, dtype=np.int64))


def distances(matched: Sequence[MatchedPair], readout: Readout, frame: PixelFrame | None = None) -> Distances:
    """Measured in the readout's own frame, or in another: then predictions and truths are mapped from the readout's
    (those that were clamped there stay where they are), and theta is that of the frame measured in.

    Raises `MatchError` where there is no pair, or one is not known in the original frame.
    """
    if not matched:
        raise MatchError("There is no pair to score.")
    chosen = readout.frame if frame is None else frame.frame
    apart, thetas = [], []
    for match in matched:
        truths, _ = match.pair.truth(readout.frame)
        away = match.predictions[readout].astype(np.float64) - truths.astype(np.float64)  # (n, 2)
        if frame is not None and chosen is not readout.frame:
            away = away * _scale(match.pair, frame)
        apart.append(away)
        thetas.append(match.pair.truth(chosen)[1])
    counts = np.array([len(away) for away in apart])
    return Distances(np.linalg.norm(np.concatenate(apart), axis=1), np.array(thetas), counts)


def _scale(pair: MatchingPair, frame: PixelFrame) -> NDArray[np.float64]:
    """From the other frame to this one, of the target image: (x, y)."""
    to_original = np.asarray(pair.in_original_frame().target_size, dtype=np.float64) / frame.image_size
    return to_original if frame.frame is Frame.ORIGINAL else 1 / to_original


def averaged(hit: NDArray[Any], points: NDArray[Any], average: Average) -> NDArray[np.float64]:
    """PCK as fractions, (...), from hits (..., pairs) and points (pairs,) of each pair."""
    if average is Average.IMAGE:
        # numpy adds in the order of memory: another one, as of a grid that was read back, would move the last digit
        return np.asarray((np.ascontiguousarray(hit) / points).mean(axis=-1))
    return np.asarray(hit.sum(axis=-1) / points.sum())


def tabulate(matched: Sequence[MatchedPair], alphas: Sequence[float], frame: PixelFrame | None = None) -> PckTable:
    """PCK by readout, average, alpha and category, each readout in its own frame, or all in `frame`: see `distances`.
    Raises `MatchError` where there is no pair."""
    if not matched:
        raise MatchError("There is no pair to score.")
    categories = np.array([match.pair.category for match in matched])
    counts = np.array([len(match.pair.target_points) for match in matched])
    members = {str(category): categories == category for category in sorted(set(categories))}
    values: dict[Readout, dict[Average, dict[float, Columns[float]]]] = {}
    for readout in matched[0].predictions:
        measured = distances(matched, readout, frame)
        values[readout] = {average: {} for average in Average}
        for alpha in alphas:
            right = measured.hits(alpha)
            for average in Average:
                values[readout][average][alpha] = Columns(
                    float(averaged(right, counts, average)),
                    {name: float(averaged(right[own], counts[own], average)) for name, own in members.items()},
                )
    return PckTable(values, tuple(members), len(matched), int(counts.sum()))


LEAST_POINTS = 3
RULE = (
    f"Pairs are ranked by their own PCK, equal ones by the mean distance from the truth in units of theta; pairs of "
    f"fewer than {LEAST_POINTS} keypoints are passed over where there are enough others, and in either list no image "
    "is shown twice."
)


@dataclass(frozen=True, slots=True, eq=False)
class RankedPair:
    """index: its place among the pairs. right: which of its points count as right, (n,). error: mean distance from the
    truth, as a share of theta."""

    index: int
    right: NDArray[np.bool_]
    error: float

    @property
    def pck(self) -> float:
        """A fraction."""
        return float(self.right.mean())


def best_and_worst(
    matched: Sequence[MatchedPair], readout: Readout, alpha: float, frame: PixelFrame | None, count: int
) -> tuple[list[RankedPair], list[RankedPair]]:
    """At most `count` of each, the best first and the worst first, no pair in both: see `RULE`. Raises `MatchError`
    where there is no pair."""
    measured = distances(matched, readout, frame)
    apart = np.split(measured.distances, np.cumsum(measured.counts)[:-1])
    ranked = [
        RankedPair(index, own <= alpha * theta, float(own.mean() / theta))
        for index, (own, theta) in enumerate(zip(apart, measured.thetas, strict=True))
    ]
    telling = [one for one in ranked if len(one.right) >= LEAST_POINTS]
    chosen = telling if len(telling) >= 2 * count else ranked
    ordered = sorted(chosen, key=lambda one: (-one.pck, one.error, one.index))
    best = _of_other_images(matched, ordered, count)
    shown = {one.index for one in best}
    worst = _of_other_images(matched, [one for one in reversed(ordered) if one.index not in shown], count)
    return best, worst


def _of_other_images(matched: Sequence[MatchedPair], ordered: Sequence[RankedPair], count: int) -> list[RankedPair]:
    """The first ones, without those that show an image again."""
    seen: set[str] = set()
    found: list[RankedPair] = []
    for one in ordered:
        images = {matched[one.index].pair.source, matched[one.index].pair.target}
        if len(found) < count and not images & seen:
            seen |= images
            found.append(one)
    return found


def to_json(table: PckTable) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`{readout: {"image"|"point": {"0.05": {"all": 0.4121, category: ...}}}}`, values as fractions."""
    return {
        readout.value: {
            average.value: {f"{alpha:g}": _over_all_first(columns) for alpha, columns in by_alpha.items()}
            for average, by_alpha in by_average.items()
        }
        for readout, by_average in table.values.items()
    }


CSV_HEADER = ("readout", "average", "alpha", "category", "pck_percent")


def to_rows(table: PckTable) -> Iterator[tuple[str, str, str, str, str]]:
    """One row a number, in the order of `CSV_HEADER`."""
    for readout, by_average in table.values.items():
        for average, by_alpha in by_average.items():
            for alpha, columns in by_alpha.items():
                for category, value in _over_all_first(columns).items():
                    yield readout.value, average.value, f"{alpha:g}", category, f"{100 * value:.4f}"


def paper_rows(table: PckTable, average: Average) -> tuple[list[str], list[list[str]]]:
    """Header and rows in the shape of the paper's Tables 3 and 4: a row a readout and alpha, a column a category,
    "all" last; percent with two decimals."""
    rows = [
        [readout.value, f"{alpha:g}", *(f"{100 * value:.2f}" for value in columns.named().values())]
        for readout, by_average in table.values.items()
        for alpha, columns in by_average[average].items()
    ]
    return ["readout", "alpha", *table.categories, ALL], rows


def _over_all_first(columns: Columns[float]) -> dict[str, float]:
    return {ALL: columns.overall, **columns.by_category}
