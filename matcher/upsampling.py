"""Upsampling as what it is, a linear map of rows and one of columns: for scalar maps, for single cells and for norms,
so that no map of many channels has to be upsampled as a whole."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from matcher.geometry import Geometry


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
