"""Student's t distribution, as far as intervals need it."""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def widening(degrees: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """By how much a central interval of t is wider than one of the normal distribution, after Wallace (1959): to 1e-3
    from 8 degrees of freedom up, 4 % too wide at 2. degrees: (...) >= 1."""
    normal = NormalDist().inv_cdf((1 + confidence) / 2)
    moved = normal * (8 * degrees + 3) / (8 * degrees + 1)
    return np.asarray(np.sqrt(degrees * np.expm1(moved**2 / degrees)) / normal)
