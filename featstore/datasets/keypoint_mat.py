"""PF-Pascal's annotations: MATLAB files with a variable `kps`."""

from pathlib import Path

import numpy as np

from featstore.datasets.mat_file import read_numeric_variable
from featstore.datasets.reading import read_bytes
from featstore.datasets.records import LARGEST_COORDINATE, Points
from featstore.errors import DatasetError


def read_keypoints(path: Path) -> Points:
    """The variable `kps` of a MATLAB file: (n, 2), pixels, NaN where a keypoint is absent.

    Raises `DatasetError` for a file that is no MATLAB file, has no such variable, or one of another type or shape, and
    for a coordinate that is none.
    """
    try:
        points = read_numeric_variable(read_bytes(path), "kps")
    except ValueError as error:
        raise DatasetError(
            f"{path} is no MATLAB file with a readable variable kps ({error}); restore it from the dataset."
        ) from error
    if points is None:
        raise DatasetError(f"{path} has no variable kps; restore it from the dataset.")
    if points.ndim != 2 or points.shape[1] != 2:
        raise DatasetError(
            f"{path}: kps has shape {points.shape[:8]} where (n, 2) is needed; restore it from the dataset."
        )
    if (np.abs(points) > LARGEST_COORDINATE).any():
        raise DatasetError(
            f"{path}: kps holds {np.nanmax(np.abs(points)):g}, which is no coordinate in pixels; restore it from the "
            "dataset."
        )
    return points
