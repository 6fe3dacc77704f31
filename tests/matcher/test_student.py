"""Student's t against the tables."""

from statistics import NormalDist

import numpy as np
import pytest

from matcher.statistics import widening


@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile", "tolerance"),
    [
        (2, 0.95, 4.303, 0.05),
        (4, 0.95, 2.776, 0.006),
        (9, 0.95, 2.262, 0.001),
        (26, 0.95, 2.056, 0.001),
        (9, 0.99, 3.250, 0.002),
        (90, 0.9, 1.662, 0.001),
    ],
)
def test_quantiles(degrees: float, confidence: float, quantile: float, tolerance: float) -> None:
    normal = NormalDist().inv_cdf((1 + confidence) / 2)
    assert widening(np.array([degrees]), confidence)[0] * normal == pytest.approx(quantile, rel=tolerance)


def test_with_many_degrees_it_is_the_normal_distribution() -> None:
    assert widening(np.array([1e6]), 0.95)[0] == pytest.approx(1, abs=1e-5)
