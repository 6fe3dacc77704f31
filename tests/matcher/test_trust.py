"""Score, margin and the way back of a match, against loops over cells."""

import numpy as np
import pytest
import torch
from torch import Tensor

from matcher.configuration import Geometry, MatchSettings
from matcher.match import RADIUS, TOLERANCE, find_points, match_points

SIZE = 64


def bilinear(values: Tensor, x: float, y: float) -> Tensor:
    """Of a map (C, h, w) at cell (x, y), held inside it: (C,)."""
    height, width = values.shape[-2:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, low = min(left + 1, width - 1), min(top + 1, height - 1)
    along = [(1 - (x - left)) * values[:, row, left] + (x - left) * values[:, row, right] for row in (top, low)]
    return (1 - (y - top)) * along[0] + (y - top) * along[1]


def to_cell(pixel: float, cells: int, geometry: Geometry) -> float:
    if geometry is Geometry.CORNERS:
        return pixel * (cells - 1) / (SIZE - 1)
    if geometry is Geometry.FLOOR:
        return float(int(pixel * (cells / SIZE)))
    return (pixel + 0.5) * cells / SIZE - 0.5


def cosines_of(vector: Tensor, target: Tensor) -> Tensor:
    """(H, W)."""
    unit = vector / vector.norm()
    return torch.stack([torch.stack([unit @ cell / cell.norm() for cell in row]) for row in target.permute(1, 2, 0)])


@pytest.mark.parametrize("geometry", Geometry)
@pytest.mark.parametrize("readout", ["nn", "softmax", "bilinear"])
def test_against_loops(readout: str, geometry: Geometry) -> None:
    generator = torch.Generator().manual_seed(11)
    source = torch.randn(24, 12, 12, generator=generator)
    target = torch.randn(24, 12, 16, generator=generator)
    target[:, 2:8, 3:9] = source[:, 1:7, 2:8] + 0.3 * torch.randn(24, 6, 6, generator=generator)  # some find their way
    points = torch.rand(25, 2, generator=generator) * (SIZE - 1)
    settings = MatchSettings(SIZE, geometry, 1, geometry)
    found = find_points(source, target, points, readout, settings)
    torch.testing.assert_close(found.points, match_points(source, target, points, [readout], settings)[readout])
    height, width = target.shape[-2:]
    backs = []
    for row, (point, place) in enumerate(zip(points.tolist(), found.points.tolist(), strict=True)):
        x, y = to_cell(point[0], 12, geometry), to_cell(point[1], 12, geometry)
        cosines = cosines_of(bilinear(source, x, y), target)
        at = to_cell(place[0], width, geometry), to_cell(place[1], height, geometry)
        score = float(bilinear(cosines[None], *at)[0])
        far = [
            float(cosines[j, i])
            for j in range(height)
            for i in range(width)
            if ((i - at[0]) / width) ** 2 + ((j - at[1]) / height) ** 2 > RADIUS**2
        ]
        assert float(found.scores[row]) == pytest.approx(score, abs=1e-5)
        assert float(found.margins[row]) == pytest.approx(score - max(far), abs=1e-5)
        back = match_points(target, source, torch.tensor([place]), [readout], settings)[readout][0]
        backs.append(float(np.hypot(*(back.numpy() - np.array(point)))))
    expected = [away <= TOLERANCE * SIZE for away in backs]
    assert found.mutual.tolist() == expected
    assert 0 < sum(expected) < len(expected)
    if readout == "nn":
        assert (found.margins >= 0).all()


def test_an_image_with_itself_is_mutual_and_one_with_a_twin_has_no_margin() -> None:
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(8, 10, 10, generator=generator)
    centres = torch.tensor([[4.0 * 63 / 9, 5.0 * 63 / 9], [7.0 * 63 / 9, 63 / 9]])
    settings = MatchSettings(SIZE)
    itself = find_points(source, source, centres, "nn", settings)
    assert itself.mutual.all()
    assert (itself.margins > 0).all()
    twin = source.clone()
    twin[:, 9, 9] = source[:, 5, 4]  # the first point's cell once more, far away
    found = find_points(source, twin, centres, "nn", settings)
    assert float(found.margins[0]) == pytest.approx(0, abs=1e-6)
    assert float(found.margins[1]) > 0.05


def test_a_map_that_is_all_near_has_its_margin_over_the_least_cosine() -> None:
    one = torch.ones(3, 1, 1)
    found = find_points(one, one, torch.tensor([[5.0, 5.0]]), "nn", MatchSettings(SIZE, Geometry.HALF_PIXEL))
    assert float(found.margins[0]) == pytest.approx(2, abs=1e-5)
