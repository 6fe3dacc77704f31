"""Layers fused into one map, upsampled where they are coarser; and the norms of an upsampled map without the map."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from matcher.geometry import Geometry
from matcher.weights import LARGEST as LARGEST
from matcher.weights import NORM_EPSILON as NORM_EPSILON
from matcher.weights import SMALLEST_NORM as SMALLEST_NORM
from matcher.weights import check_weights as check_weights


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

    def scalars(self, maps: Tensor) -> Tensor:
        """Scalar maps (..., h, w) to (..., H, W)."""
        if self.is_identity:
            return maps
        return self.rows @ (maps @ self.columns.T)

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
        if self.rows.dtype is dtype:
            return self
        return replace(self, rows=self.rows.to(dtype), columns=self.columns.to(dtype))

    @property
    def is_identity(self) -> bool:
        """Whether nothing is upsampled."""
        return self.rows.shape[0] == self.rows.shape[1] and self.columns.shape[0] == self.columns.shape[1]


@lru_cache(maxsize=32)
def upsampling(size: tuple[int, int], target: tuple[int, int], align: Geometry, device: torch.device) -> Upsampling:
    """The bicubic upsampling from `size` = (h, w) to `target` = (H, W); the few that occur are made once."""
    rows, columns = (
        _weights(cells, wanted, "bicubic", align.align_corners) for cells, wanted in zip(size, target, strict=True)
    )
    return Upsampling(rows.to(device), columns.to(device), _reach(rows))


@lru_cache(maxsize=128)
def bilinear_upsampling(size: tuple[int, int], target: tuple[int, int], device: torch.device) -> Upsampling:
    """The bilinear one that DIFT upsamples with (torch's default, `align_corners=False`)."""
    rows, columns = (_weights(cells, wanted, "bilinear", False) for cells, wanted in zip(size, target, strict=True))
    return Upsampling(rows.to(device), columns.to(device), _reach(rows))


def _weights(cells: int, target: int, mode: str, align_corners: bool) -> Tensor:
    """(target, cells): what torch's own interpolation makes of each unit vector."""
    unit = torch.eye(cells)
    if cells == target:
        return unit
    columns = functional.interpolate(unit[None, :, :, None], (target, 1), mode=mode, align_corners=align_corners)
    return columns[0, :, :, 0].T.contiguous()


def _reach(rows: Tensor) -> int:
    used = (rows != 0).to(torch.uint8)
    last = rows.shape[1] - 1 - used.flip(1).argmax(dim=1)
    return int((last - used.argmax(dim=1)).max())


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
    gram: Tensor | None = None
    for block in features.split(BLOCK_CHANNELS):
        tall = up.rows @ block  # (c, H, w)
        part = tall.permute(1, 2, 0) @ tall.transpose(0, 1)  # (H, w, w)
        gram = part if gram is None else gram + part
    assert gram is not None, "a map has channels"
    return ((up.columns @ gram) * up.columns).sum(dim=2).clamp(min=0)


def inner_products(features: Tensor, up: Upsampling, offsets: Sequence[Offset]) -> list[Tensor]:
    """For each offset (down, right) the inner products of every upsampled cell with its neighbour there, where it has
    one: (H - down, W - |right|)."""
    products: dict[tuple[Offset, int], Tensor] = {}
    for block in features.split(BLOCK_CHANNELS):
        wide = block if _is_identity(up.columns) else block @ up.columns.T  # (c, h, W)
        for offset in offsets:
            for apart in _distances(up, offset):
                product = _products_in_columns(wide, offset[1], apart)
                key = offset, apart
                products[key] = products[key] + product if key in products else product
    return [
        _blend_rows(up, offset, {apart: products[offset, apart] for apart in _distances(up, offset)})
        for offset in offsets
    ]


def _products_in_columns(wide: Tensor, right: int, apart: int) -> Tensor:
    """Inner products of each cell (i, X) of (c, h, W) with (i + apart, X + right): (h - |apart|, W - |right|)."""
    height, width = wide.shape[1:]
    own = wide[:, max(0, -apart) : height - max(0, apart), max(0, -right) : width - max(0, right)]
    other = wide[:, max(0, apart) : height - max(0, -apart), max(0, right) : width - max(0, -right)]
    return (own * other).sum(dim=0)


def _blend_rows(up: Upsampling, offset: Offset, products: dict[int, Tensor]) -> Tensor:
    """From inner products in columns, by how far their rows are apart, to those of upsampled rows."""
    down = offset[0]
    upper, lower = up.rows[: len(up.rows) - down], up.rows[down:]  # (H - down, h)
    height = up.rows.shape[1]
    total: Tensor | None = None
    for apart, product in products.items():
        own = upper[:, max(0, -apart) : height - max(0, apart)]
        other = lower[:, max(0, apart) : height - max(0, -apart)]
        # of a cell with itself, rows i and j give the same as rows j and i
        part = (2 if offset == (0, 0) and apart > 0 else 1) * (own * other) @ product
        total = part if total is None else total + part
    assert total is not None, "rows are at least 0 apart"
    return total


def _distances(up: Upsampling, offset: Offset) -> range:
    """How far apart the rows may lie that an upsampled cell and its neighbour are made of."""
    furthest = up.rows.shape[1] - 1
    reach = min(up.reach, furthest)
    return range(0 if offset == (0, 0) else -reach, min(reach + offset[0], furthest) + 1)


def _is_identity(weights: Tensor) -> bool:
    return weights.shape[0] == weights.shape[1]


def normalise(features: Tensor, dim: int) -> Tensor:
    """Features divided by their norm plus `NORM_EPSILON` along the channel dimension `dim`; same shape."""
    return features / (features.norm(dim=dim, keepdim=True) + NORM_EPSILON)


def upsample(features: Tensor, size: tuple[int, int], align: Geometry) -> Tensor:
    """A map (C, h, w) resized bicubically to (C, *size); returned as it is where it has that size already."""
    if tuple(features.shape[-2:]) == size:
        return features
    return functional.interpolate(features[None], size, mode="bicubic", align_corners=align.align_corners)[0]


def fuse(maps: Sequence[Tensor], weights: Sequence[float], factor: int, align: Geometry) -> Tensor:
    """The final map (sum of C, H, W) of one image from its layers' raw maps, each (C, h, w).

    (H, W) is the finest layer's size times `factor` (1: not upsampled further). Cells of several layers have norm
    sqrt(sum of squared weights); those of one layer keep their own, its weight does not matter. float32.

    Raises `MatchError` where the counts of maps and weights differ or a weight is negative or all are zero.
    """
    check_weights(len(maps), weights)
    height = max(layer.shape[-2] for layer in maps) * factor
    width = max(layer.shape[-1] for layer in maps) * factor
    resized = [upsample(layer.float(), (height, width), align) for layer in maps]
    if len(resized) == 1:
        return resized[0]
    return torch.cat([weight * normalise(layer, dim=0) for layer, weight in zip(resized, weights, strict=True)])


def sample(features: Tensor, cells: Tensor) -> Tensor:
    """Bilinear samples (n, C) of a map (C, h, w) at cells (n, 2) as (x, y); beyond the border the border's value."""
    height, width = features.shape[-2:]
    extent = torch.tensor([width - 1, height - 1], dtype=features.dtype, device=features.device).clamp(min=1)
    grid = cells.to(features.dtype) / extent * 2 - 1  # (n, 2) in [-1, 1], cell centres of the corners at -1 and 1
    samples = functional.grid_sample(
        features[None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )  # (1, C, 1, n)
    return samples[0, :, 0].T
