"""The records that every dataset gives: images, and pairs of images with keypoints. Coordinates are in pixels of the
original image, (x, y), origin at the top left; `to_resized_frame` moves them to the resized frame."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import isfinite
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DatasetError
from featstore.plain_text import nfc
from matcher.pairs import ALL, FramePoints, MatchingPair, OriginalFrame

Points = NDArray[np.float64]
"""Keypoints, shape (n, 2), (x, y) in pixels."""

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
    """The pair of two images with the keypoints that both show, in the source's order; None where there is none."""
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
    )


class Dataset(Protocol):
    """What the rest of dualsd knows of a dataset. Implementations are frozen; listing reads annotations, never pixels.

    Every method raises `DatasetError` with one sentence where files are missing or malformed.
    """

    @property
    def name(self) -> str:
        """The name that `--dataset` takes."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has, of `trn`, `val`, `test`."""

    @property
    def theta_rule(self) -> ThetaRule: ...

    def images(self) -> tuple[ImageRecord, ...]:
        """All images of all splits, without repetition, sorted by id. Checks that every image is there."""

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs of a split, in the order of the dataset's own list; their ids are among `images()`."""

    def members(self, split: str) -> frozenset[str]:
        """The ids of the images that a split's list names; no annotation is opened."""

    def notes(self, split: str | None) -> tuple[str, ...]:
        """Sentences on what is odd about the images' files and, where a split is named, about its list, but is no
        reason to refuse either."""

    def read(self, image: ImageRecord) -> bytes:
        """The bytes of the image file (not mirrored: `featstore.datasets.pictures` does that)."""


def select_categories(pairs: Sequence[Pair], dataset_name: str, categories: Collection[str]) -> tuple[Pair, ...]:
    """The pairs whose category is among `categories`, in their order.

    Args:
        pairs: of a data set.
        dataset_name: the data set's name, for sentences.
        categories: in either Unicode normal form.

    Raises:
        DatasetError: for a category that no pair has (listing those that there are), and where no pair remains.
    """
    wanted, known = {nfc(category) for category in categories}, {pair.category for pair in pairs}
    names = ", ".join(sorted(known)) or "none"
    if unknown := sorted(wanted - known):
        what = f"has no category {', '.join(map(repr, unknown))} among its {len(pairs)} pairs"
        raise DatasetError(f"{dataset_name} {what}; choose from {names}.")
    if not wanted:
        raise DatasetError(f"No pair of {dataset_name} remains; name at least one category of {names}.")
    return tuple(pair for pair in pairs if pair.category in wanted)


_MARGIN = 1e-4
"""How far inside the frame a clamped point lies, in pixels; as SD4Match."""


def to_resized_frame(
    pair: Pair, rule: ThetaRule, source_size: tuple[int, int], target_size: tuple[int, int], size: int
) -> MatchingPair:
    """The pair with points in pixels of the images resized to `size` x `size`, and its base threshold theta; and the
    same in pixels of the original images.

    x_resized = x size / W, whatever the geometry. theta is measured on the points as annotated; only then are they
    clamped into the frame.

    Args:
        pair: with points in pixels of the original images.
        rule: what theta is measured on.
        source_size: (width, height) of the original source image, in pixels.
        target_size: likewise of the target image.
        size: pixels a side of the resized images.

    Raises:
        DatasetError: where theta cannot be measured or is 0.
    """
    points, sizes, square = (pair.source_points, pair.target_points), (source_size, target_size), (size, size)

    def framed(
        points: Iterable[Points], frames: tuple[tuple[int, int], tuple[int, int]]
    ) -> tuple[FramePoints, FramePoints, float]:
        theta = _theta(pair, rule, target_size, frames[1])
        source, target = (
            np.clip(own, _MARGIN, np.asarray(frame) - 1 - _MARGIN).astype(np.float32)
            for own, frame in zip(points, frames, strict=True)
        )
        return source, target, theta

    resized = framed((_resized(own, each, square) for own, each in zip(points, sizes, strict=True)), (square, square))
    original = OriginalFrame(source_size, target_size, *framed(points, sizes))
    flags = None if pair.difficulty is None else asdict(pair.difficulty)
    return MatchingPair(pair.source, pair.target, pair.category, *resized, original, pair.names, flags)


def _resized(points: Points, original: tuple[int, int], frame: tuple[int, int]) -> Points:
    return points * np.asarray(frame, dtype=np.float64) / np.asarray(original, dtype=np.float64)  # (n, 2)


def _theta(pair: Pair, rule: ThetaRule, target_size: tuple[int, int], frame: tuple[int, int]) -> float:
    """In pixels of the target image resized to `frame` = (width, height), of points that are not clamped."""
    if rule is ThetaRule.IMAGE:
        return float(max(frame))
    if rule is ThetaRule.KEYPOINTS:
        # all that the target shows: theta is a matter of its own annotation, whatever the source lacks
        corners = np.stack([pair.shown.min(axis=0), pair.shown.max(axis=0)])
    else:
        corners = np.reshape(pair.target_box or [np.nan] * 4, (2, 2))
    low, high = _resized(corners, target_size, frame)
    theta = float((high - low).max())
    if not theta > 0:
        reason = "the target has no bounding box" if np.isnan(theta) else f"it is {theta:g} pixels"
        what = f"PCK's threshold is measured on the {rule.value}, but {reason}"
        advice = "correct the annotation or leave the pair out"
        raise DatasetError(f"Pair {pair.source} -> {pair.target}: {what}; {advice}.")
    return theta
