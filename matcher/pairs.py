"""What the matcher has to know of two images: points and theta, in the resized frame and, where asked, the original."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from matcher.errors import MatchError

FramePoints = NDArray[np.float32]
"""Points, shape (n, 2), (x, y) in pixels of a frame."""


ALL = "all"
"""The score over all pairs or points (not over categories) in tables, JSON and CSV. No category has this name."""


class Frame(Enum):
    """In whose pixels points, theta and distances are measured: of the image resized to S x S, or as it came."""

    RESIZED = "resized"
    ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class PixelFrame:
    """A frame to measure in. image_size: S of the resized one, whichever is measured in, as it leads from one to the
    other: x_resized = x S / W."""

    frame: Frame
    image_size: int


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
        if self.category.strip() == ALL:
            raise MatchError(
                f"The pair {self.source} -> {self.target} is of a category called {ALL}, which is reserved for the "
                "score over all pairs; rename the category."
            )
        # NaN is no miss: points that an image lacks are dropped, on both sides
        frames = (self,) if self.original is None else (self, self.original)
        if not all(
            np.isfinite(frame.source_points).all()
            and np.isfinite(frame.target_points).all()
            and np.isfinite(frame.theta)
            for frame in frames
        ):
            raise MatchError(
                f"The pair {self.source} -> {self.target} has a point or a theta that is not finite: drop the points "
                "that an image lacks, on both sides."
            )

    def truth(self, frame: Frame) -> tuple[FramePoints, float]:
        """Target points (n, 2) and theta in a frame. Raises `MatchError` where the original frame is not known."""
        if frame is Frame.RESIZED:
            return self.target_points, self.theta
        original = self.in_original_frame()
        return original.target_points, original.theta

    def in_original_frame(self) -> OriginalFrame:
        """The pair in the original frame. Raises `MatchError` where that is not known."""
        if self.original is None:
            raise MatchError(
                f"The pair {self.source} -> {self.target} is not known in pixels of its original images, which the "
                "readout pixel and scores in that frame need: give the MatchingPair its `original`."
            )
        return self.original
