import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from matcher.configuration import Geometry
from matcher.geometry import cells_to_pixels, pixels_to_cells


def test_corners_put_corner_pixels_on_corner_cells() -> None:
    points = torch.tensor([[0.0, 0.0], [95.0, 95.0], [47.5, 0.0]])
    cells = pixels_to_cells(points, 96, (12, 24), Geometry.CORNERS)
    assert torch.allclose(cells, torch.tensor([[0.0, 0.0], [23.0, 11.0], [11.5, 0.0]]))


def test_half_pixel_puts_the_middle_of_a_cell_on_its_centre() -> None:
    # stride 8: cell 0 covers pixels 0..7, whose middle is 3.5; cell 1 is 8 further
    points = torch.tensor([[3.5, 11.5]])
    cells = pixels_to_cells(points, 96, (12, 12), Geometry.HALF_PIXEL)
    assert torch.allclose(cells, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("geometry", list(Geometry))
@given(x=st.floats(0, 767), y=st.floats(0, 767), height=st.integers(2, 96), width=st.integers(2, 96))
def test_there_and_back(geometry: Geometry, x: float, y: float, height: int, width: int) -> None:
    point = torch.tensor([[x, y]], dtype=torch.float64)
    back = cells_to_pixels(pixels_to_cells(point, 768, (height, width), geometry), 768, (height, width), geometry)
    # a whole cell's middle, but for the floor of half a cell and a point on a cell's very border
    half = 768 / min(height, width) / 2 + 1 + 1e-8
    assert torch.allclose(back, point, rtol=0, atol=half if geometry is Geometry.FLOOR else 1e-8)


def test_resizing_an_image_of_coordinates_keeps_the_geometry() -> None:
    """A map whose values are pixel coordinates, resized by torch with the geometry's align_corners, still holds the
    coordinates of its cells (away from the border, where half-pixel sampling is clamped)."""
    for geometry in Geometry:
        cells = torch.arange(12, dtype=torch.float64)
        xs = cells_to_pixels(torch.stack([cells, cells], 1), 96, (12, 12), geometry)[:, 0]
        resized = torch.nn.functional.interpolate(
            xs.expand(1, 1, 12, 12), (24, 24), mode="bilinear", align_corners=geometry.align_corners
        )[0, 0, 10]
        fine = torch.arange(24, dtype=torch.float64)
        expected = cells_to_pixels(torch.stack([fine, fine], 1), 96, (24, 24), geometry)[:, 0]
        assert torch.allclose(resized[5:-5], expected[5:-5], atol=1e-6)
