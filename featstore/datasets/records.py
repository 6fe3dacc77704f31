"""What every dataset gives: images, and pairs of images with keypoints as columns. Coordinates are in pixels of the
original image, (x, y), origin at the top left; `to_resized_frame` moves them to the resized frame."""

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from itertools import compress
from math import isfinite, nan
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DatasetError
from matcher.configuration import Pad
from matcher.pairs import (
    ALL,
    FramePoints,
    Integers,
    PairList,
    Pairs,
    PairsInFrame,
    Rows,
    Unmatched,
    placed,
    places,
)

Numbers = NDArray[np.float64]

Points = Numbers
"""Keypoints, shape (n, 2), (x, y) in pixels."""

SizeOf = Callable[[str], tuple[int, int]]
"""An image's (width, height) in pixels as stored, by its id."""

Box = tuple[float, float, float, float]
"""A bounding box (x1, y1, x2, y2) in pixels."""

LARGEST_COORDINATE = 1e6
"""Pixels. No picture that is read is so large, so that a coordinate beyond it is a damaged number; it would make theta,
and with it every score, meaningless."""

MIRRORED = "~mirrored"
"""Suffix of the id of an image that is read mirrored left to right."""


def canonical_split(name: str) -> str:
    """The name of a split as lists, files and JSON have it: `trn` for `train`."""
    return "trn" if name == "train" else name


class ThetaRule(Enum):
    """What PCK's base threshold theta is measured on, in the resized frame (docs/method.md, PCK)."""

    BOX = "longer side of the target's bounding box"
    IMAGE = "longer side of the resized image"
    KEYPOINTS = "larger extent of the target's keypoints"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a dataset.

    id: `<category>/<file stem>`, with `~mirrored` appended for a mirrored one; unique in the dataset.
    category: the object's category, as the dataset spells it.
    file: where the dataset finds it: a path relative to its root.
    mirrored: read mirrored left to right.
    """

    id: str
    category: str
    file: str
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.category.strip() == ALL:
            what = f"is of a category called {ALL}, which is reserved for the score over all pairs"
            advice = "rename the category (its folder, and in the lists that name it)"
            raise DatasetError(f"Image {self.id} {what}; {advice}.")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """SPair-71k's difficulty flags of a pair: viewpoint and scale variation 0..2, truncation and occlusion 0..3
    (0 none, 1 source, 2 target, 3 both)."""

    viewpoint: int
    scale: int
    truncation: int
    occlusion: int


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A source and a target image of one category, and the keypoints that both show.

    source, target: image ids. source_points, target_points: (n, 2), n >= 1, row i of both is the same keypoint.
    names: n keypoint names. source_box, target_box: the objects' bounding boxes where the dataset has them.
    source_size, target_size: (width, height) of the images where the annotation states them. source_place,
    target_place: where the annotations stand, for sentences: a file, or a file and its line; "" for drawn ones.
    target_only: (x, y) by name of the keypoints that the target shows and the source does not. They are matched by
    nothing, but belong to the extent of the target's keypoints.
    """

    source: str
    target: str
    category: str
    source_points: Points
    target_points: Points
    names: tuple[str, ...]
    source_box: Box | None = None
    target_box: Box | None = None
    difficulty: Difficulty | None = None
    source_size: tuple[float, float] | None = None
    target_size: tuple[float, float] | None = None
    source_place: str = ""
    target_place: str = ""
    target_only: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def shown(self) -> Points:
        """(n + m, 2), all keypoints that the target shows: the pair's, then the m of `target_only`."""
        return np.vstack([self.target_points, *self.target_only.values()])


@dataclass(frozen=True, slots=True)
class Marks:
    """What is annotated of one image.

    points: (x, y) in pixels by keypoint's name, of those that the image shows. place, box, size: where that stands, the
    object's bounding box and the image's (width, height), as `Pair` has them.
    """

    points: Mapping[str, Sequence[float]]
    place: str = ""
    box: Box | None = None
    size: tuple[float, float] | None = None

    @classmethod
    def of_list(cls, names: Iterable[str], points: Points, place: str) -> Self:
        """An image's marks from a list of all n keypoints: `points`, (n, 2), are NaN where it does not show one."""
        listed = zip(names, points.tolist(), strict=True)
        return cls({name: point for name, point in listed if isfinite(sum(point))}, place)


def pair_of(source: ImageRecord, target: ImageRecord, ours: Marks, theirs: Marks) -> Pair | None:
    """The pair of two images with the keypoints that both show, in the source's order, and what else the target shows;
    None where there is none."""
    names = tuple(name for name in ours.points if name in theirs.points)
    if not names:
        return None
    source_points, target_points = (
        np.array([own.points[name] for name in names], dtype=np.float64) for own in (ours, theirs)
    )
    return Pair(
        source=source.id,
        target=target.id,
        category=source.category,
        source_points=source_points,
        target_points=target_points,
        names=names,
        source_box=ours.box,
        target_box=theirs.box,
        source_size=ours.size,
        target_size=theirs.size,
        source_place=ours.place,
        target_place=theirs.place,
        target_only={name: (x, y) for name, (x, y) in theirs.points.items() if name not in ours.points},
    )


_FLAGS = tuple(own.name for own in fields(Difficulty))
_UNKNOWN = -1
"""A flag of a pair that has none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AnnotatedPairs(PairList[Pair]):
    """Pairs as a dataset has them. The N points are those that the targets show.

    coordinates: (N, 2, 2), (x, y) in the source and in the target; NaN for a source that does not show it. boxes:
    (P, 2, 4), stated: (P, 2, 2) size, of source and target; NaN where the annotation has none. texts: the places of all
    annotations, and spans: (P, 2), where those of each pair begin and end in them. flags: all of them, -1 for none.
    """

    keypoints: tuple[tuple[str, ...], Integers]
    flags: Mapping[str, Integers]
    coordinates: Numbers
    boxes: Numbers
    stated: Numbers
    texts: bytes
    spans: NDArray[np.int64]

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Self:
        """The pairs in their order, of which no object stays; columns as they are."""
        if isinstance(pairs, cls):
            return pairs
        ends, categories, keypoints = _Names(), _Names(), _Names()
        coordinates, boxes, stated = array("d"), array("d"), array("d")
        counts, spans, flags, texts = array("q"), array("q"), array("b"), bytearray()
        for pair in pairs:
            ends.add(pair.source, pair.target)
            categories.add(pair.category)
            keypoints.add(*pair.names, *pair.target_only)
            target = pair.shown
            source = np.full(target.shape, nan)
            source[: len(pair.names)] = pair.source_points
            counts.append(len(target))
            coordinates.frombytes(np.stack([source, target], axis=1, dtype=np.float64).tobytes())
            for box, size in ((pair.source_box, pair.source_size), (pair.target_box, pair.target_size)):
                boxes.extend(box or (nan,) * 4)
                stated.extend(size or (nan,) * 2)
            flags.extend((_UNKNOWN,) * len(_FLAGS) if pair.difficulty is None else astuple(pair.difficulty))
            spans.append(len(texts))
            texts += b"\0".join(map(os.fsencode, (pair.source_place, pair.target_place)))
            spans.append(len(texts))
        (images, place), (kinds, kind) = ends.placed(), categories.placed()
        return cls(
            images=images,
            categories=kinds,
            source=place[::2],
            target=place[1::2],
            category=kind,
            counts=np.asarray(counts),
            keypoints=keypoints.placed(),
            flags=dict(zip(_FLAGS, np.asarray(flags).reshape(-1, len(_FLAGS)).T, strict=True)),
            coordinates=np.asarray(coordinates).reshape(-1, 2, 2),
            boxes=np.asarray(boxes).reshape(-1, 2, 4),
            stated=np.asarray(stated).reshape(-1, 2, 2),
            texts=bytes(texts),
            spans=np.asarray(spans).reshape(-1, 2),
        )

    def view(self, row: int, points: slice) -> Pair:
        names = [self.keypoints[0][place] for place in self.keypoints[1][points]]
        source_points, target_points = (self.coordinates[points, side] for side in (0, 1))
        common = ~np.isnan(source_points[:, 0])
        flags = {name: int(values[row]) for name, values in self.flags.items()}
        source, target, category = self.named(row)
        return Pair(
            source=source,
            target=target,
            category=category,
            source_points=source_points[common],
            target_points=target_points[common],
            names=tuple(compress(names, common)),
            source_box=_stated(self.boxes[row, 0]),
            target_box=_stated(self.boxes[row, 1]),
            difficulty=None if _UNKNOWN in flags.values() else Difficulty(**flags),
            source_size=_stated(self.stated[row, 0]),
            target_size=_stated(self.stated[row, 1]),
            source_place=self.place(row, 0),
            target_place=self.place(row, 1),
            target_only={names[at]: tuple(target_points[at].tolist()) for at in np.flatnonzero(~common)},
        )

    def take(self, rows: Rows) -> Self:
        rows = places(rows)
        points = self.points(rows)
        own = {name: getattr(self, name)[rows] for name in ("boxes", "stated", "spans")}
        return replace(self, **self.shared(rows, points), **own, coordinates=self.coordinates[points])

    def moved(self, coordinates: Numbers) -> Self:
        """The pairs with other `coordinates`, without the points that are NaN in the target."""
        shown = ~np.isnan(coordinates[:, 1, 0])
        names, places = self.keypoints
        counts = np.add.reduceat(shown, self.starts, dtype=np.int64)
        return replace(self, counts=counts, keypoints=(names, places[shown]), coordinates=coordinates[shown])

    def place(self, row: int, side: int) -> str:
        """Where the annotation of a pair's source (`side` 0) or target (1) stands."""
        start, end = self.spans[row]
        return os.fsdecode(self.texts[start:end].split(b"\0")[side])

    @cached_property
    def ends(self) -> Integers:
        """(P, 2), source and target."""
        return np.stack([self.source, self.target], axis=1)

    @property
    def occurring_images(self) -> list[str]:
        """The ids of the images that occur, sorted."""
        return [self.images[place] for place in np.unique(self.ends)]

    def image_sizes(self, size_of: SizeOf) -> NDArray[np.int32]:
        """(I, 2), (width, height) of the images that occur in pairs; 0 for others."""
        sizes = np.zeros((len(self.images), 2), dtype=np.int32)
        for place in np.unique(self.ends):
            sizes[place] = size_of(self.images[place])
        return sizes


class _Names:
    """Names as they come: numbers, so that no text per pair stays."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._come = array("i")

    def add(self, *names: str) -> None:
        """More of them."""
        self._come.extend([self._number.setdefault(name, len(self._number)) for name in names])

    def placed(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """The distinct ones, sorted, and of each that was added its place among them."""
        names = sorted(self._number)
        places = np.argsort([self._number[name] for name in names]).astype(np.int32)
        return tuple(names), places[np.asarray(self._come)]


def _stated(numbers: Numbers) -> Any:
    """What an annotation states, a tuple of floats; None where it does not."""
    return None if np.isnan(numbers).any() else tuple(numbers.tolist())


class Dataset(Protocol):
    """What the rest of dualsd knows of a dataset. Implementations are frozen; listing reads annotations, never pixels.

    Every method raises `DatasetError` with one sentence where files are missing or malformed.
    """

    @property
    def name(self) -> str:
        """The name that `--dataset` takes."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has: of `trn`, `val`, `test`, and others of its own."""

    @property
    def theta_rule(self) -> ThetaRule: ...

    def images(self) -> tuple[ImageRecord, ...]:
        """All images of all splits, without repetition, sorted by id. Checks that every image is there."""

    def pairs(self, split: str) -> AnnotatedPairs:
        """The pairs of a split, in the order of the dataset's own list; their ids are among `images()`."""

    def members(self, split: str) -> frozenset[str]:
        """The ids of the images that a split's list names; no annotation is opened."""

    def notes(self, split: str | None) -> tuple[str, ...]:
        """Sentences on what is odd about the images' files and, where a split is named, about its list, but is no
        reason to refuse either."""

    def read(self, image: ImageRecord) -> bytes:
        """The bytes of the image file (not mirrored: `featstore.datasets.pictures` does that)."""


_MARGIN = 1e-4
"""How far inside the frame a clamped point lies, in pixels; as SD4Match."""


def to_resized_frame(
    pairs: AnnotatedPairs, rule: ThetaRule, size_of: SizeOf, size: int, pad: Pad = Pad.STRETCH
) -> Pairs:
    """The pairs with points in pixels of the images resized to `size` x `size`, and their base thresholds theta; and
    the same in pixels of the original images.

    Stretched, x_resized = x size / W, whatever the geometry; padded, see `matcher.pairs.placed`. theta is measured on
    the points as annotated; only then are they clamped into the frame.

    Args:
        pairs: with points in pixels of the original images.
        rule: what theta is measured on.
        size_of: the original images' sizes.
        size: pixels a side of the resized images.
        pad: how images are made squares.

    Raises:
        DatasetError: where theta cannot be measured or is 0.
    """
    sizes = pairs.image_sizes(size_of)[pairs.ends]  # (P, 2, 2)
    extents, offsets = placed(sizes, size, pad)
    square = np.full_like(sizes, size)
    common = ~np.isnan(pairs.coordinates[:, 0, 0])  # (N,)

    def counted(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.add.reduceat(chosen, pairs.starts, dtype=np.int64)

    def inside(chosen: NDArray[np.bool_], side: int, resized: bool) -> FramePoints:
        counts, points = counted(chosen), pairs.coordinates[chosen, side]
        frame = np.repeat((square if resized else sizes)[:, side], counts, axis=0)  # (n, 2)
        if resized:
            extent, offset = (np.repeat(own[:, side], counts, axis=0) for own in (extents, offsets))
            points = _resized(points, extent, size) + offset
        return np.clip(points, _MARGIN, frame - 1 - _MARGIN).astype(np.float32)

    def framed(theta: Numbers, resized: bool) -> PairsInFrame:
        return PairsInFrame(inside(common, 0, resized), inside(common, 1, resized), theta)

    thetas = {one: _thetas(pairs, one, extents[:, 1], sizes[:, 1], size) for one in ThetaRule}
    _check_theta(pairs, rule, thetas[rule])
    names, places = pairs.keypoints
    return Pairs(
        images=pairs.images,
        categories=pairs.categories,
        source=pairs.source,
        target=pairs.target,
        category=pairs.category,
        counts=counted(common),
        keypoints=(names, places[common]),
        flags=None if any((own == _UNKNOWN).any() for own in pairs.flags.values()) else pairs.flags,
        resized=framed(thetas[rule][:, 0], resized=True),
        original=framed(thetas[rule][:, 1], resized=False),
        sizes=sizes.reshape(-1, 4),
        thetas={one.name.lower(): own for one, own in thetas.items() if one is not rule and (own > 0).all()},
        unmatched=Unmatched(
            *(counted(~common), places[~common], inside(~common, 1, resized=True), inside(~common, 1, resized=False))
        ),
    )


def _resized(points: Points, extent: Numbers, frame: Any) -> Points:
    return points * np.asarray(frame, dtype=np.float64) / extent


def _thetas(pairs: AnnotatedPairs, rule: ThetaRule, extents: Numbers, sizes: Integers, size: int) -> Numbers:
    """(P, 2) in pixels of the target images, resized to `size` and in the original, by points that are not clamped; NaN
    where it cannot be measured. extents: of the targets, see `placed`. sizes: theirs, (width, height)."""
    original = sizes.astype(np.float64)
    if rule is ThetaRule.IMAGE:
        return np.stack([np.full(len(pairs), float(size)), original.max(axis=1)], axis=1)
    if rule is ThetaRule.KEYPOINTS:
        # all that the target shows: theta is a matter of its own annotation, whatever the source lacks
        low, high = (ends.reduceat(pairs.coordinates[:, 1], pairs.starts) for ends in (np.minimum, np.maximum))
    else:
        low, high = pairs.boxes[:, 1, :2], pairs.boxes[:, 1, 2:]
    frames = (extents, size), (original, original)
    return np.stack([(_resized(high, *frame) - _resized(low, *frame)).max(axis=1) for frame in frames], axis=1)


def _check_theta(pairs: AnnotatedPairs, rule: ThetaRule, thetas: Numbers) -> None:
    """Raise `DatasetError` for the first pair whose theta cannot be measured or is 0."""
    theta = thetas[:, 0]
    for row in map(int, np.flatnonzero(~(theta > 0))):
        source, target, _ = pairs.named(row)
        reason = "the target has no bounding box" if np.isnan(theta[row]) else f"it is {theta[row]:g} pixels"
        what = f"PCK's threshold is measured on the {rule.value}, but {reason}"
        raise DatasetError(f"Pair {source} -> {target}: {what}; correct the annotation or leave the pair out.")
