"""What the matcher has to know of two images: points and theta, in the resized frame and, where asked, the original;
and the pairs of a list, a column per property."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from matcher.configuration import Frame, Pad
from matcher.errors import MatchError

FramePoints = NDArray[np.float32]
"""Points, shape (n, 2), (x, y) in pixels of a frame."""


ALL = "all"
"""The score over all pairs or points (not over categories) in tables, JSON and CSV. No category has this name."""


@dataclass(frozen=True, slots=True)
class PixelFrame:
    """A frame to measure in. image_size, pad: S of the resized one and how images were brought to it, whichever is
    measured in, as they lead from one to the other: see `placed`."""

    frame: Frame
    image_size: int
    pad: Pad = Pad.STRETCH


@dataclass(frozen=True, slots=True, eq=False)
class OriginalFrame:
    """A pair in pixels of its original images.

    source_size, target_size: (width, height). source_points, target_points: (n, 2). theta: pixels of the original
    target image, > 0.
    """

    source_size: tuple[int, int]
    target_size: tuple[int, int]
    source_points: FramePoints
    target_points: FramePoints
    theta: float


@dataclass(frozen=True, slots=True, eq=False)
class MatchingPair:
    """Source and target image ids, their common keypoints, and PCK's base threshold.

    source_points, target_points: (n, 2), n >= 1, pixels of the resized frame, inside it; row i of both is the same
    keypoint. theta: pixels of the resized frame, > 0. original: the same in the original frame, which only the readout
    `pixel` and scores in that frame ask for. names: (n,) of the keypoints, flags: how hard the pair is by the dataset's
    own marks, both for the record.
    """

    source: str
    target: str
    category: str
    source_points: FramePoints
    target_points: FramePoints
    theta: float
    original: OriginalFrame | None = None
    names: tuple[str, ...] | None = None
    flags: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        _check_categories([self.category], f"The pair {self.source} -> {self.target}")
        # NaN is no miss: points that an image lacks are dropped, on both sides
        frames = (self,) if self.original is None else (self, self.original)
        values = (value for one in frames for value in (one.source_points, one.target_points, one.theta))
        if not all(np.isfinite(value).all() for value in values):
            raise MatchError(
                f"The pair {self.source} -> {self.target} has a point or a theta that is not finite: drop the points "
                "that an image lacks, on both sides."
            )

    def in_original_frame(self) -> OriginalFrame:
        """The pair in the original frame. Raises `MatchError` where that is not known."""
        if self.original is None:
            raise _not_known(self)
        return self.original


def _not_known(pair: MatchingPair) -> MatchError:
    return MatchError(
        f"The pair {pair.source} -> {pair.target} is not known in pixels of its original images, which the readout "
        "pixel and scores in that frame need: give the MatchingPair its `original`."
    )


def _check_categories(names: Iterable[str], whose: str) -> None:
    if any(name.strip() == ALL for name in names):
        raise MatchError(f"{whose} is of a category called {ALL}, the name of the score over all pairs; rename it.")


Integers = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


def content_sizes(sizes: Integers, image_size: int) -> Integers:
    """What padding to a square of `image_size` pixels makes of images' (width, height), (..., 2): whole pixels."""
    scaled = image_size * sizes / sizes.max(axis=-1, keepdims=True)
    return np.maximum(np.around(scaled), 1).astype(np.int64)


def placed(sizes: Integers, image_size: int, pad: Pad) -> tuple[Floats, Floats]:
    """Where images lie in the resized frame of `image_size` = S pixels: x_resized = x S / extent + offset.

    Args:
        sizes: (..., 2), (width, height) of the original images.
        image_size: S.
        pad: How they were made squares.

    Returns:
        Extent and offset in x and y, (..., 2) each.
    """
    if pad is Pad.STRETCH:
        return sizes.astype(np.float64), np.zeros(sizes.shape)
    longest = np.broadcast_to(sizes.max(axis=-1, keepdims=True), sizes.shape).astype(np.float64)
    # GeoAware-SC's: the offset in whole pixels, and the same scale along both sides, whatever the content is rounded to
    return longest, np.floor((image_size - content_sizes(sizes, image_size)) / 2)


Rows = Sequence[int] | Integers | NDArray[np.bool_]
"""Places of pairs, or a mask of all."""

View = TypeVar("View", covariant=True)


def places(rows: Rows) -> NDArray[np.intp]:
    """The places of the pairs that are meant."""
    chosen = rows if isinstance(rows, np.ndarray) else np.array(list(rows), dtype=np.intp)
    return np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.intp)


@dataclass(frozen=True, eq=False, kw_only=True)
class PairList(Sequence[View]):
    """P pairs with N points, as columns: what a pair costs is its numbers. `pairs[index]` is a view of one.

    images, categories: sorted; there may be more than occur. source, target, category: (P,), places among them. counts:
    (P,), points per pair. keypoints: names, sorted, of which there may be more than occur, and (N,) places among them;
    None where a pair has none. flags: (P,) each, None where a pair has none.
    """

    images: tuple[str, ...]
    categories: tuple[str, ...]
    source: Integers
    target: Integers
    category: Integers
    counts: NDArray[np.int64]
    keypoints: tuple[tuple[str, ...], Integers] | None = None
    flags: Mapping[str, Integers] | None = None

    @abstractmethod
    def view(self, row: int, points: slice) -> View:
        """One pair, whose points are `points` of the columns."""

    @abstractmethod
    def take(self, rows: Rows) -> Self:
        """Some of the pairs, in the order of `rows`: places or a mask."""

    def shared(self, rows: NDArray[np.intp], points: NDArray[np.int64]) -> dict[str, Any]:
        """What `take` takes of the columns that all lists have."""
        return {
            **{name: getattr(self, name)[rows] for name in ("source", "target", "category", "counts")},
            "keypoints": None if self.keypoints is None else (self.keypoints[0], self.keypoints[1][points]),
            "flags": None if self.flags is None else {flag: values[rows] for flag, values in self.flags.items()},
        }

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> View | Self:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        return self.view(row, slice(int(self.starts[row]), int(self.starts[row] + self.counts[row])))

    def among(self, images: Iterable[str]) -> Self:
        """The pairs of which both images are among some."""
        chosen = set(images)
        known = np.array([image in chosen for image in self.images], dtype=bool)
        own = known[self.source] & known[self.target]
        return self if own.all() else self.take(own)

    def named(self, row: int) -> tuple[str, str, str]:
        """A pair's source, target and category."""
        return self.images[self.source[row]], self.images[self.target[row]], self.categories[self.category[row]]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(P,), where each pair's points begin."""
        return np.cumsum(self.counts) - self.counts

    def points(self, rows: Rows) -> NDArray[np.int64]:
        """The places of some pairs' points among all N, pair by pair."""
        return _points_of(self.starts, self.counts, places(rows))

    def span(self, row: int) -> tuple[int, int]:
        """Where a pair's points begin among all N, and how many there are."""
        return int(self.starts[row]), int(self.counts[row])

    def grouped(
        self, by: Literal["source", "target", "category"], rows: Iterable[int] | None = None
    ) -> dict[str, list[int]]:
        """The places of the pairs `rows`, by default of all, by image or category; both in the order of `rows`."""
        names = self.categories if by == "category" else self.images
        column: list[int] = getattr(self, by).tolist()
        groups: dict[int, list[int]] = {}
        for row in range(len(self)) if rows is None else rows:
            groups.setdefault(column[row], []).append(row)
        return {names[place]: members for place, members in groups.items()}

    @property
    def occurring(self) -> dict[str, NDArray[np.bool_]]:
        """The categories that occur, sorted, and which pairs are of each, (P,)."""
        return {self.categories[place]: self.category == place for place in np.unique(self.category)}


def _points_of(starts: NDArray[np.int64], counts: NDArray[np.int64], rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """The places of some rows' points among those of all, row by row. starts, counts: where the points of each row
    begin, and how many they are."""
    own = counts[rows]
    ends = np.cumsum(own)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts[rows] - ends + own, own)


@dataclass(frozen=True, eq=False)
class Unmatched:
    """The M keypoints that P pairs' targets show and their sources do not, which nothing is matched with. counts: (P,).
    keypoints: (M,) places among the names of the pairs' keypoints. resized, original: (M, 2), in either frame."""

    counts: NDArray[np.int64]
    keypoints: Integers
    resized: FramePoints
    original: FramePoints

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(P,), where each pair's begin."""
        return np.cumsum(self.counts) - self.counts

    def span(self, row: int) -> tuple[int, int]:
        """Where a pair's begin among all M, and how many there are."""
        return int(self.starts[row]), int(self.counts[row])

    def in_frame(self, frame: Frame) -> FramePoints:
        """(M, 2)."""
        return self.resized if frame is Frame.RESIZED else self.original

    def take(self, rows: NDArray[np.intp]) -> "Unmatched":
        """Those of some of the pairs."""
        own = _points_of(self.starts, self.counts, rows)
        return Unmatched(self.counts[rows], self.keypoints[own], self.resized[own], self.original[own])


@dataclass(frozen=True, slots=True, eq=False)
class PairsInFrame:
    """P pairs of N points in one frame. source_points, target_points: (N, 2), of all pairs in turn. theta: (P,)."""

    source_points: FramePoints
    target_points: FramePoints
    theta: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: "Sequence[MatchingPair | OriginalFrame]") -> Self:
        """The pairs in their order."""
        sides = ([pair.source_points for pair in pairs], [pair.target_points for pair in pairs])
        none = np.empty((0, 2), dtype=np.float32)
        source, target = (np.concatenate([none, *own]).astype(np.float32, copy=False) for own in sides)
        return cls(source, target, np.array([pair.theta for pair in pairs], dtype=np.float64))

    def view(self, row: int, points: slice) -> tuple[FramePoints, FramePoints, float]:
        """The same of one pair."""
        return self.source_points[points], self.target_points[points], float(self.theta[row])

    def take(self, rows: NDArray[np.intp], points: NDArray[np.int64]) -> "PairsInFrame":
        """Some of the pairs, and their points."""
        return PairsInFrame(self.source_points[points], self.target_points[points], self.theta[rows])

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return all(np.isfinite(values).all() for values in (self.source_points, self.target_points, self.theta))


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs(PairList[MatchingPair]):
    """Pairs to be matched. resized, original: in either frame, None for one that not all pairs have. sizes: (P, 4),
    (width, height) of source and target in the original frame. strict: whether a point counts as missed at a distance
    of exactly alpha theta. thetas: base thresholds by other rules, as far as they can be measured, by the rule's name:
    (P, 2), in the resized and the original frame. unmatched: what else the targets show, None where that is not
    known."""

    resized: PairsInFrame
    original: PairsInFrame | None = None
    sizes: Integers | None = None
    strict: bool = False
    thetas: Mapping[str, Floats] = field(default_factory=dict)
    unmatched: Unmatched | None = None

    @classmethod
    def of(cls, pairs: Iterable[MatchingPair]) -> "Pairs":
        """The pairs in their order; `Pairs` as they are."""
        if isinstance(pairs, Pairs):
            return pairs
        pairs = list(pairs)
        images, ends = _numbered([name for pair in pairs for name in (pair.source, pair.target)])
        categories, category = _numbered([pair.category for pair in pairs])
        originals = [pair.original for pair in pairs if pair.original is not None]
        known = len(originals) == len(pairs)
        names = [pair.names for pair in pairs if pair.names is not None]
        flags = [pair.flags for pair in pairs if pair.flags]
        return cls(
            images=images,
            categories=categories,
            source=ends[::2],
            target=ends[1::2],
            category=category,
            counts=np.array([len(pair.source_points) for pair in pairs], dtype=np.int64),
            keypoints=_numbered([name for own in names for name in own]) if len(names) == len(pairs) else None,
            flags={name: np.array([own[name] for own in flags]) for name in flags[0]}
            if flags and len(flags) == len(pairs)
            else None,
            resized=PairsInFrame.of(pairs),
            original=PairsInFrame.of(originals) if known else None,
            sizes=np.array([(*own.source_size, *own.target_size) for own in originals], np.int32).reshape(-1, 4)
            if known
            else None,
        )

    def __post_init__(self) -> None:
        _check_categories(self.categories, "A pair")
        if not (self.resized.is_finite and (self.original is None or self.original.is_finite)):
            list(self)  # the view of the pair that is not says so

    def view(self, row: int, points: slice) -> MatchingPair:
        original = None
        if self.original is not None and self.sizes is not None:
            width, height, *target_size = self.sizes[row].tolist()
            original = OriginalFrame((width, height), tuple(target_size), *self.original.view(row, points))
        names = None if self.keypoints is None else tuple(self.keypoints[0][n] for n in self.keypoints[1][points])
        flags = None if self.flags is None else {flag: int(values[row]) for flag, values in self.flags.items()}
        return MatchingPair(*self.named(row), *self.resized.view(row, points), original, names, flags)

    def take(self, rows: Rows) -> "Pairs":
        rows = places(rows)
        points = self.points(rows)
        return replace(
            self,
            **self.shared(rows, points),
            resized=self.resized.take(rows, points),
            original=None if self.original is None else self.original.take(rows, points),
            sizes=None if self.sizes is None else self.sizes[rows],
            thetas={rule: own[rows] for rule, own in self.thetas.items()},
            unmatched=None if self.unmatched is None else self.unmatched.take(rows),
        )

    def only(self, chosen: NDArray[np.bool_]) -> "Pairs":
        """The pairs with some of their points, (N,), without those that none is left of. What else their targets show
        is as it was."""
        frames = {name: own for name in ("resized", "original") if (own := getattr(self, name)) is not None}
        kept = {
            name: replace(own, source_points=own.source_points[chosen], target_points=own.target_points[chosen])
            for name, own in frames.items()
        }
        counts = np.add.reduceat(chosen, self.starts, dtype=np.int64)
        names = None if self.keypoints is None else (self.keypoints[0], self.keypoints[1][chosen])
        return replace(self, counts=counts, keypoints=names, **kept).take(counts > 0)

    def with_theta(self, thetas: Floats) -> "Pairs":
        """The pairs with other base thresholds: (P, 2), in the resized and the original frame. Raises `MatchError`
        where the pairs are not known in the latter."""
        original = replace(self.in_original_frame()[0], theta=thetas[:, 1])
        return replace(self, resized=replace(self.resized, theta=thetas[:, 0]), original=original)

    def in_frame(self, frame: Frame) -> PairsInFrame:
        """The pairs in a frame. Raises `MatchError` where a pair is not known in the original one."""
        return self.resized if frame is Frame.RESIZED else self.in_original_frame()[0]

    def in_original_frame(self) -> tuple[PairsInFrame, Integers]:
        """The pairs in the original frame, and their `sizes`. Raises `MatchError` where that is not known."""
        if self.original is None or self.sizes is None:
            raise _not_known(self[0])
        return self.original, self.sizes


def _numbered(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """The distinct names, sorted, and the place of each name among them."""
    distinct = sorted(set(names))
    known = {name: place for place, name in enumerate(distinct)}
    return tuple(distinct), np.array([known[name] for name in names], dtype=np.intp)
