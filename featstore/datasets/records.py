"""The records that every dataset gives: images, and pairs of images with keypoints. Coordinates are in pixels of the
original image, (x, y), origin at the top left; `featstore.datasets.frame` moves them to the resized frame."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DatasetError
from matcher.pairs import ALL

Points = NDArray[np.float64]
"""Keypoints, shape (n, 2), (x, y) in pixels."""

Box = tuple[float, float, float, float]
"""A bounding box (x1, y1, x2, y2) in pixels."""

LARGEST_COORDINATE = 1e6
"""Pixels. No picture that is read is so large, so that a coordinate beyond it is a damaged number; it would make theta,
and with it every score, meaningless."""

MIRRORED = "~mirrored"
"""Suffix of the id of an image that is read mirrored left to right."""


_SPLITS = {"train": "trn"}
"""Other names of splits."""


def canonical_split(name: str) -> str:
    """The name of a split as lists, files and JSON have it: `trn` for `train`."""
    return _SPLITS.get(name, name)


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
            raise DatasetError(
                f"Image {self.id} is of a category called {ALL}, which is reserved for the score over all pairs; "
                "rename the category (its folder, and in the lists that name it)."
            )


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


def in_both(source_points: Points, target_points: Points) -> NDArray[np.bool_]:
    """Which keypoints, (n,), both images show; the coordinates of an absent keypoint are NaN."""
    present: NDArray[np.bool_] = np.isfinite(source_points + target_points)
    return present[:, 0] & present[:, 1]


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
        """The bytes of the image file (not mirrored: `featstore.datasets.pixels` does that)."""
