"""Where a pixel of the S x S image lies on a map of h x w cells, and back. Two conventions are in use."""

from enum import Enum

import torch
from torch import Tensor


class Geometry(Enum):
    """How pixel x maps to cell u on a map of width w (docs/method.md, Points).

    CORNERS: u = x (w - 1) / (S - 1), the centres of corner pixels and corner cells coincide (SD4Match).
    HALF_PIXEL: u = (x + 1/2) w / S - 1/2, the outer edges of image and map coincide (what strided convolutions do).
    """

    CORNERS = "corners"
    HALF_PIXEL = "half-pixel"

    @property
    def align_corners(self) -> bool:
        """The `align_corners` of torch's interpolation that keeps this geometry when a map is resized."""
        return self is Geometry.CORNERS


def pixels_to_cells(points: Tensor, image_size: int, map_size: tuple[int, int], geometry: Geometry) -> Tensor:
    """Points (..., 2) as (x, y) in pixels to (x, y) in cells of a map of `map_size` = (h, w); not clamped."""
    return rectangle_to_cells(points, (image_size, image_size), map_size, geometry)


def rectangle_to_cells(
    points: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """`pixels_to_cells` for an image of `image_size` = (height, width) pixels."""
    pixels, cells = _width_and_height(points, image_size), _width_and_height(points, map_size)
    if geometry is Geometry.CORNERS:
        return points * (cells - 1) / (pixels - 1)
    return (points + 0.5) * cells / pixels - 0.5


def cells_to_pixels(cells: Tensor, image_size: int, map_size: tuple[int, int], geometry: Geometry) -> Tensor:
    """The inverse of `pixels_to_cells`: (..., 2) in cells to (..., 2) in pixels.

    On a map one cell wide CORNERS puts every pixel at cell 0, so its inverse is pixel 0.
    """
    size = _width_and_height(cells, map_size)
    if geometry is Geometry.CORNERS:
        return cells * (image_size - 1) / (size - 1).clamp(min=1)
    return (cells + 0.5) * image_size / size - 0.5


def _width_and_height(points: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.tensor([width, height], dtype=points.dtype, device=points.device)
