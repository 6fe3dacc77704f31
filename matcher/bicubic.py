"""Bicubic upsampling as what it is, a linear map of rows and one of columns: for scalar maps, for single cells and for
norms, so that no map of many channels has to be upsampled as a whole."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from matcher.geometry import Geometry

_BLOCK_CHANNELS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Upsampling:
    """From a map of (h, w) cells to one of (H, W). rows: (H, h), columns: (W, w): the weights of torch's bicubic
    interpolation; the identity along a side that keeps its size."""

    rows: Tensor
    columns: Tensor

    def scalars(self, maps: Tensor) -> Tensor:
        """Scalar maps (n, h, w) to (n, H, W)."""
        if self.is_identity:
            return maps
        return self.rows @ (maps @ self.columns.T)

    def cells(self, features: Tensor, cells: Tensor) -> Tensor:
        """The cells (n, 2) as integer (x, y) of the upsampled map, (n, C), of a raw map (C, h, w)."""
        x, y = cells[:, 0].long(), cells[:, 1].long()
        if self.is_identity:
            return features[:, y, x].T
        column, column_weight = _taps(self.columns)
        row, row_weight = _taps(self.rows)
        patch = features[:, row[y][:, :, None], column[x][:, None, :]]  # (C, n, 4, 4)
        weights = row_weight[y][:, :, None] * column_weight[x][:, None, :]  # (n, 4, 4)
        return torch.einsum("cnij,nij->nc", patch, weights)

    def norms(self, features: Tensor) -> Tensor:
        """The norm of every cell of the upsampled map, (H, W), of a raw map (C, h, w); a few channels at a time."""
        if self.is_identity:
            return features.norm(dim=0)
        squared = torch.zeros(len(self.rows), len(self.columns), dtype=features.dtype, device=features.device)
        for block in features.split(_BLOCK_CHANNELS):
            squared += self.scalars(block).square().sum(dim=0)
        return squared.sqrt()

    @property
    def is_identity(self) -> bool:
        """Whether nothing is upsampled."""
        return self.rows.shape[0] == self.rows.shape[1] and self.columns.shape[0] == self.columns.shape[1]


@lru_cache(maxsize=32)
def upsampling(size: tuple[int, int], target: tuple[int, int], align: Geometry, device: torch.device) -> Upsampling:
    """The upsampling from `size` = (h, w) to `target` = (H, W); the few that occur are made once."""
    return Upsampling(_weights(size[0], target[0], align).to(device), _weights(size[1], target[1], align).to(device))


def _weights(cells: int, target: int, align: Geometry) -> Tensor:
    """(target, cells): what torch's own interpolation makes of each unit vector."""
    unit = torch.eye(cells)
    if cells == target:
        return unit
    columns = functional.interpolate(
        unit[None, :, :, None], (target, 1), mode="bicubic", align_corners=align.align_corners
    )
    return columns[0, :, :, 0].T.contiguous()


def _taps(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a weight matrix (H, h) the cells that count, (H, k), k <= 4, and their weights, (H, k)."""
    index = (weights != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :4]
    return index, weights.gather(1, index)
