"""What the matcher has to know of two images: points in the resized frame, and theta."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FramePoints = NDArray[np.float32]
"""Points, shape (n, 2), (x, y) in pixels of the resized image (S x S)."""


@dataclass(frozen=True, slots=True, eq=False)
class MatchingPair:
    """Source and target image ids, their common keypoints, and PCK's base threshold.

    source_points, target_points: (n, 2), n >= 1, pixels of the resized frame, inside it; row i of both is the same
    keypoint. theta: pixels of the resized frame, > 0.
    """

    source: str
    target: str
    category: str
    source_points: FramePoints
    target_points: FramePoints
    theta: float
