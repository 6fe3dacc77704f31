"""PF-Pascal's annotations: MATLAB files with a variable `kps`."""

import io
from pathlib import Path

import numpy as np

from featstore.datasets.mat_structure import check_numeric_variable
from featstore.datasets.reading import read_bytes
from featstore.datasets.records import Points
from featstore.errors import DatasetError


def read_keypoints(path: Path) -> Points:
    """The variable `kps` of a MATLAB file: (n, 2), pixels, NaN where a keypoint is absent.

    Raises `DatasetError` for a file that is no MATLAB file, has no such variable, or one of another type or shape.
    """
    # Imported here, because no other dataset needs scipy.
    from scipy.io import loadmat

    data = read_bytes(path)
    try:
        check_numeric_variable(data, "kps")
        value = loadmat(io.BytesIO(data), variable_names=["kps"]).get("kps")
    except Exception as error:  # scipy's parser raises nearly anything on a damaged file, zlib's errors among it.
        raise DatasetError(
            f"{path} is no MATLAB file with a readable variable kps ({error}); restore it from the dataset."
        ) from error
    if value is None:
        raise DatasetError(f"{path} has no variable kps; restore it from the dataset.")
    if value.ndim != 2 or value.shape[1] != 2:
        raise DatasetError(f"{path}: kps has shape {value.shape} where (n, 2) is needed; restore it from the dataset.")
    points: Points = value.astype(np.float64)
    if np.isinf(points).any():
        raise DatasetError(f"{path}: kps holds an infinite coordinate; restore it from the dataset.")
    return points
