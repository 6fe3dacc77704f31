"""Where a pixel lies on a map of h x w cells, and back, in three conventions (`Geometry`); and maps upsampled to other
cells: as matrices, so that scalar maps, single cells and norms need no upsampled map of all channels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import torch
from torch import Tensor
from torch.nn import functional

from matcher.configuration import Geometry


def pixels_to_cells(
    points: Tensor, image_size: int | tuple[int, int], map_size: tuple[int, int], geometry: Geometry
) -> Tensor:
    """Points (..., 2) as (x, y) in pixels to (x, y) in cells of a map of `map_size` = (h, w); not clamped. image_size:
    (height, width), or the side of a square."""
    pixels, cells = _width_and_height(points, image_size), _width_and_height(points, map_size)
    if geometry is Geometry.CORNERS:
        return points * (cells - 1) / (pixels - 1)
    if geometry is Geometry.FLOOR:
        return (points * (cells / pixels)).floor()
    return (points + 0.5) * cells / pixels - 0.5


def cells_to_pixels(cells: Tensor, image_size: int, map_size: tuple[int, int], geometry: Geometry) -> Tensor:
    """The inverse of `pixels_to_cells`: (..., 2) in cells to (..., 2) in pixels; of FLOOR about a cell's middle.

    On a map one cell wide CORNERS puts every pixel at cell 0, so its inverse is pixel 0.
    """
    size = _width_and_height(cells, map_size)
    if geometry is Geometry.CORNERS:
        return cells * (image_size - 1) / (size - 1).clamp(min=1)
    if geometry is Geometry.FLOOR:
        return cells * (image_size / size) + (image_size / size / 2).floor()
    return (cells + 0.5) * image_size / size - 0.5


def _width_and_height(points: Tensor, size: int | tuple[int, int]) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.tensor([width, height], dtype=points.dtype, device=points.device)


def final_size(maps: Sequence[Tensor], factor: int) -> tuple[int, int]:
    """(H, W) of the map that layers (C, h, w) are fused to: that of the finest, times `factor`."""
    return max(layer.shape[-2] for layer in maps) * factor, max(layer.shape[-1] for layer in maps) * factor


@dataclass(frozen=True, slots=True, eq=False)
class Upsampling:
    """From a map of (h, w) cells to one of (H, W). rows: (H, h), columns: (W, w): the weights of torch's own
    interpolation, bicubic or bilinear; the identity along a side that keeps its size. reach: how many rows lie between
    the first and the last that one upsampled row is made of, at most."""

    rows: Tensor
    columns: Tensor
    reach: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.rows), len(self.columns)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is upsampled."""
        return self.size == (self.rows.shape[1], self.columns.shape[1])

    def scalars(self, maps: Tensor) -> Tensor:
        """Scalar maps (..., h, w) to (..., H, W)."""
        return maps if self.is_identity else self.rows @ (maps @ self.columns.T)

    def cells(self, features: Tensor, cells: Tensor) -> Tensor:
        """The cells (n, 2) as integer (x, y) of the upsampled map, (n, C) in the weights' dtype (float32), of a raw map
        (C, h, w)."""
        x, y = cells[:, 0].long(), cells[:, 1].long()
        if self.is_identity:
            # not features[:, y, x]: gradients of cells asked for twice would be summed in whatever order threads take
            return features.flatten(1).index_select(1, y * features.shape[2] + x).T.to(self.rows)
        column, column_weight = _taps(self.columns)
        row, row_weight = _taps(self.rows)
        number = row[y][:, :, None] * features.shape[2] + column[x][:, None, :]  # (n, 4, 4), in reading order
        weights = row_weight[y][:, :, None] * column_weight[x][:, None, :]  # (n, 4, 4)
        used, place = number.flatten(1).unique(return_inverse=True)  # neighbouring cells share most of theirs
        blend = torch.zeros(len(cells), len(used), dtype=weights.dtype, device=features.device)
        blend.scatter_add_(1, place, weights.flatten(1))
        return blend @ features.flatten(1)[:, used].to(blend).T

    def to(self, dtype: torch.dtype) -> "Upsampling":
        """The same with weights of another dtype."""
        return replace(self, rows=self.rows.to(dtype), columns=self.columns.to(dtype))


@lru_cache(maxsize=128)
def upsampling(
    size: tuple[int, int], target: tuple[int, int], align: Geometry, device: torch.device, mode: str = "bicubic"
) -> Upsampling:
    """The upsampling from `size` = (h, w) to `target` = (H, W); the few that occur are made once.

    Args:
        size: That of the map.
        target: That of the upsampled map.
        align: Which cells coincide.
        device: Where the weights lie.
        mode: torch's, `bicubic` or `bilinear`.

    Returns:
        What torch's own interpolation makes of each unit vector, per side.
    """
    sides = []
    for cells, wanted in zip(size, target, strict=True):
        unit = torch.eye(cells)
        if cells != wanted:
            tall = functional.interpolate(
                unit[None, :, :, None], (wanted, 1), mode=mode, align_corners=align.align_corners
            )
            unit = tall[0, :, :, 0].T.contiguous()
        sides.append(unit)  # (wanted, cells)
    used = (sides[0] != 0).to(torch.uint8)
    last = used.shape[1] - 1 - used.flip(1).argmax(dim=1)
    reach = int((last - used.argmax(dim=1)).max())
    return Upsampling(sides[0].to(device), sides[1].to(device), reach)


def _taps(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a weight matrix (H, h) the cells that count, (H, k), k <= 4, and their weights, (H, k)."""
    index = (weights != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :4]
    return index, weights.gather(1, index)


Offset = tuple[int, int]
"""From a cell to its neighbour: rows down (>= 0), columns right (negative: left)."""

BLOCK_CHANNELS = 128
"""Channels that are looked at at once, so that what is made of them stays in the cache."""


def squared_norms(features: Tensor, up: Upsampling) -> Tensor:
    """The squared norm of every cell, (H, W), of a map (C, h, w) upsampled by `up`; >= 0.

    With rows upsampled, each row's cells have a Gram matrix, of which columns take what they are blends of: all of it
    matrix products, though most of a Gram matrix goes unused, as those are faster by far than sums over channels.
    """
    if up.is_identity:
        return features.square().sum(dim=0)
    blocks = (up.rows @ block for block in features.split(BLOCK_CHANNELS))  # (c, H, w) each
    gram = reduce(torch.add, (tall.permute(1, 2, 0) @ tall.transpose(0, 1) for tall in blocks))  # (H, w, w)
    return ((up.columns @ gram) * up.columns).sum(dim=2).clamp(min=0)


def inner_products(features: Tensor, up: Upsampling, offsets: Sequence[Offset]) -> list[Tensor]:
    """For each offset (down, right) the inner products of every upsampled cell with its neighbour there, where it has
    one: (H - down, W - |right|)."""
    found: dict[Offset, dict[int, Tensor]] = {offset: {} for offset in offsets}
    for block in features.split(BLOCK_CHANNELS):
        wide = block if block.shape[2] == len(up.columns) else block @ up.columns.T  # (c, h, W)
        for offset, products in found.items():
            for apart in _distances(up, offset):
                products[apart] = products.get(apart, 0) + _products_in_columns(wide, offset[1], apart)
    return [_blend_rows(up, offset, products) for offset, products in found.items()]


def _products_in_columns(wide: Tensor, right: int, apart: int) -> Tensor:
    """Inner products of each cell (i, X) of (c, h, W) with (i + apart, X + right): (h - |apart|, W - |right|)."""
    own, other = without(without(wide, -right), -apart, dim=1), without(without(wide, right), apart, dim=1)
    return (own * other).sum(dim=0)


def without(values: Tensor, count: int, dim: int = -1) -> Tensor:
    """Without the first `count` along a dimension, of which they are columns by default, or, where that is negative,
    without the last ones."""
    return values.narrow(dim, max(0, count), values.shape[dim] - abs(count))


def _blend_rows(up: Upsampling, offset: Offset, products: dict[int, Tensor]) -> Tensor:
    """From inner products in columns, by how far their rows are apart, to those of upsampled rows."""
    upper, lower = without(up.rows, -offset[0], dim=0), without(up.rows, offset[0], dim=0)  # (H - down, h)
    parts = (
        # of a cell with itself, rows i and j give the same as rows j and i
        (2 if offset == (0, 0) and apart > 0 else 1) * (without(upper, -apart) * without(lower, apart)) @ product
        for apart, product in products.items()
    )
    return reduce(torch.add, parts)


def _distances(up: Upsampling, offset: Offset) -> range:
    """How far apart the rows may lie that an upsampled cell and its neighbour are made of."""
    furthest = up.rows.shape[1] - 1
    reach = min(up.reach, furthest)
    return range(0 if offset == (0, 0) else -reach, min(reach + offset[0], furthest) + 1)
