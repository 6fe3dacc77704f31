"""PCK@alpha: the share of points with ||prediction - truth|| <= alpha theta, and its three averages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from matcher.configuration import Frame, frame_of
from matcher.errors import MatchError
from matcher.pairs import ALL, FramePoints, MatchingPair, Pairs, PixelFrame, Rows, placed

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
    """IMAGE: mean over pairs of the pair's PCK (SD4Match's default). POINT: all points pooled. CATEGORY: mean over
    categories of each one's pooled points (probe3d). Papers mix them."""

    IMAGE = "image"
    POINT = "point"
    CATEGORY = "category"


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPair:
    """A pair and what each readout predicted for its source points: (n, 2) in pixels of the readout's frame."""

    pair: MatchingPair
    predictions: Mapping[str, FramePoints]


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """P pairs and what each readout predicted for their N source points: (N, 2), of all pairs in turn, in pixels of the
    readout's frame. `matches[index]` is a view of one pair."""

    pairs: Pairs
    predictions: Mapping[str, FramePoints]

    @classmethod
    def of(cls, matched: "Matched") -> "Matches":
        """The pairs in their order; `Matches` as they are. Raises `MatchError` where there is none."""
        if not len(matched):
            raise MatchError("There is no pair to score.")
        if isinstance(matched, Matches):
            return matched
        names = matched[0].predictions
        found = {name: np.concatenate([match.predictions[name] for match in matched]) for name in names}
        return cls(Pairs.of(match.pair for match in matched), found)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> MatchedPair:
        points = self.pairs.points([range(len(self))[index]])
        return MatchedPair(self.pairs[index], {name: own[points] for name, own in self.predictions.items()})

    def take(self, rows: Rows) -> "Matches":
        """Some of the pairs, see `Pairs.take`."""
        points = self.pairs.points(rows)
        return Matches(self.pairs.take(rows), {name: own[points] for name, own in self.predictions.items()})

    def only(self, chosen: NDArray[np.bool_]) -> "Matches":
        """Some of the points, (N,), see `Pairs.only`. Raises `MatchError` where that is none."""
        if not chosen.any():
            raise MatchError("There is no point to score.")
        return Matches(self.pairs.only(chosen), {name: own[chosen] for name, own in self.predictions.items()})


Matched = Matches | Sequence[MatchedPair]


@dataclass(frozen=True, slots=True)
class Pck:
    """PCK of a readout as fractions, by alpha, in all averages."""

    image: Mapping[float, Columns[float]]
    point: Mapping[float, Columns[float]]
    category: Mapping[float, Columns[float]]

    def __getitem__(self, average: Average) -> Mapping[float, Columns[float]]:
        found: Mapping[float, Columns[float]] = getattr(self, average.value)
        return found


@dataclass(frozen=True, slots=True)
class PckTable:
    """PCK as fractions: `values[readout][average][alpha]`."""

    values: Mapping[str, Pck]
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """From predictions to the truth, in pixels of one frame. distances: (..., points), of all pairs in turn. thetas:
    (pairs,), base thresholds. counts: (pairs,), points of each. strict: see `matcher.pairs.Pairs`."""

    distances: NDArray[np.float64]
    thetas: NDArray[np.float64]
    counts: NDArray[np.int64]
    strict: bool = False

    def right(self, alpha: float) -> NDArray[np.bool_]:
        """Which points are matched well enough, (..., points)."""
        reach = alpha * np.repeat(self.thetas, self.counts)
        return self.distances < reach if self.strict else self.distances <= reach

    def hits(self, alpha: float) -> NDArray[np.int64]:
        """How many points of each pair are matched well enough, (..., pairs)."""
        right = self.right(alpha)
        return np.asarray(np.add.reduceat(right, np.cumsum(self.counts) - self.counts, axis=-1, dtype=np.int64))


def distances(matched: Matched, readout: str, frame: PixelFrame | None = None) -> Distances:
    """Measured in the readout's own frame, or in another: then predictions and truths are mapped from the readout's
    (those that were clamped there stay where they are), and theta is that of the frame measured in.

    Raises `MatchError` where there is no pair, or one is not known in the original frame.
    """
    matches = Matches.of(matched)
    pairs, own = matches.pairs, frame_of(readout)
    chosen = own if frame is None else frame.frame
    truths = pairs.in_frame(own).target_points
    away = matches.predictions[readout].astype(np.float64) - truths.astype(np.float64)  # (N, 2)
    if chosen is not own:
        away *= np.repeat(to_measured(pairs, own, frame), pairs.counts, axis=0)
    return Distances(np.linalg.norm(away, axis=1), pairs.in_frame(chosen).theta, pairs.counts, pairs.strict)


def to_measured(pairs: Pairs, own: Frame, frame: PixelFrame | None) -> NDArray[np.float64]:
    """What makes distances in x and y of pixels of a readout's `own` frame those of the frame measured in, (P, 2)."""
    if frame is None or frame.frame is own:
        return np.ones((len(pairs), 2))
    extents = placed(pairs.in_original_frame()[1][:, 2:], frame.image_size, frame.pad)[0]
    to_original: NDArray[np.float64] = extents / frame.image_size
    return to_original if frame.frame is Frame.ORIGINAL else 1 / to_original


def averaged(hit: NDArray[Any], points: NDArray[Any], category: NDArray[Any], average: Average) -> NDArray[np.float64]:
    """PCK as fractions, (...), from hits (..., pairs), and points and category of each pair, (pairs,)."""
    if average is Average.IMAGE:
        # numpy adds in the order of memory: another one, as of a grid that was read back, would move the last digit
        return np.asarray((np.ascontiguousarray(hit) / points).mean(axis=-1))
    if average is Average.POINT:
        return np.asarray(hit.sum(axis=-1) / points.sum())
    members = [category == one for one in np.unique(category)]
    return np.asarray(np.mean([hit[..., own].sum(axis=-1) / points[own].sum() for own in members], axis=0))


def pair_weights(pairs: Pairs, average: Average) -> NDArray[np.float64] | None:
    """How much each pair counts in an average over all, (pairs,); None where all count the same."""
    if average is Average.IMAGE:
        return None
    in_category = np.bincount(pairs.category, pairs.counts)[pairs.category]
    return pairs.counts / (in_category if average is Average.CATEGORY else 1)


def tabulate(matched: Matched, alphas: Sequence[float], frame: PixelFrame | None = None) -> PckTable:
    """PCK by readout, average, alpha and category, each readout in its own frame, or all in `frame`: see `distances`.
    Raises `MatchError` where there is no pair."""
    matches = Matches.of(matched)
    measured = {readout: distances(matches, readout, frame) for readout in matches.predictions}
    hits = {readout: {alpha: found.hits(alpha) for alpha in alphas} for readout, found in measured.items()}
    return table_of(matches.pairs, hits)


def table_of(pairs: Pairs, hits: Mapping[str, Mapping[float, NDArray[Any]]]) -> PckTable:
    """From how many points of each pair are matched well enough, (P,), by readout and alpha."""
    members = pairs.occurring

    def columns(right: NDArray[Any], average: Average) -> Columns[float]:
        def pck(rows: Rows) -> float:
            return float(averaged(right[rows], pairs.counts[rows], pairs.category[rows], average))

        return Columns(pck(np.arange(len(pairs))), {name: pck(rows) for name, rows in members.items()})

    values = {
        readout: Pck(*({alpha: columns(right, average) for alpha, right in own.items()} for average in Average))
        for readout, own in hits.items()
    }
    return PckTable(values, tuple(members))


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
    matched: Matched, readout: str, alpha: float, frame: PixelFrame | None, count: int
) -> tuple[list[RankedPair], list[RankedPair]]:
    """At most `count` of each, the best first and the worst first, no pair in both: see `RULE`. Raises `MatchError`
    where there is no pair."""
    matches = Matches.of(matched)
    measured = distances(matches, readout, frame)
    own = np.split(measured.distances, matches.pairs.starts[1:])
    right = np.split(measured.right(alpha), matches.pairs.starts[1:])
    errors = np.array([away.mean() for away in own]) / measured.thetas
    telling = np.flatnonzero(measured.counts >= LEAST_POINTS)
    chosen = telling if len(telling) >= 2 * count else np.arange(len(matches))
    ordered = chosen[np.lexsort((errors[chosen], -(measured.hits(alpha) / measured.counts)[chosen]))]
    best = _of_other_images(matches.pairs, ordered, count)
    worst = _of_other_images(matches.pairs, [row for row in ordered[::-1] if row not in best], count)

    def ranked(row: int) -> RankedPair:
        return RankedPair(row, right[row], float(errors[row]))

    return list(map(ranked, best)), list(map(ranked, worst))


def _of_other_images(pairs: Pairs, ordered: Iterable[int], count: int) -> list[int]:
    """The first ones, without those that show an image again."""
    seen: set[int] = set()
    found: list[int] = []
    for row in map(int, ordered):
        images = {int(pairs.source[row]), int(pairs.target[row])}
        if len(found) < count and not images & seen:
            seen |= images
            found.append(row)
    return found


def to_json(table: PckTable) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`{readout: {"image"|"point"|"category": {"0.05": {"all": 0.4121, category: ...}}}}`, values as fractions."""
    return {
        readout: {
            average.value: {f"{alpha:g}": {ALL: own.overall, **own.by_category} for alpha, own in pck[average].items()}
            for average in Average
        }
        for readout, pck in table.values.items()
    }


CSV_HEADER = ("readout", "average", "alpha", "category", "pck_percent")


def to_rows(table: PckTable) -> Iterator[tuple[str, str, str, str, str]]:
    """One row a number, in the order of `CSV_HEADER`."""
    for readout, averages in to_json(table).items():
        for average, alphas in averages.items():
            for alpha, columns in alphas.items():
                for category, value in columns.items():
                    yield readout, average, alpha, category, f"{100 * value:.4f}"


def paper_rows(table: PckTable, average: Average) -> tuple[list[str], list[list[str]]]:
    """Header and rows in the shape of the paper's Tables 3 and 4: a row a readout and alpha, a column a category,
    "all" last; percent with two decimals."""
    rows = [
        [readout, f"{alpha:g}", *(f"{100 * value:.2f}" for value in columns.named().values())]
        for readout, pck in table.values.items()
        for alpha, columns in pck[average].items()
    ]
    return ["readout", "alpha", *table.categories, ALL], rows
