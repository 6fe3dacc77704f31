"""The source's side of a correlation: what is sampled from its maps at the query points, a layer at a time.

Nothing here depends on the weights of the layers, so one sample serves every weighting.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.bicubic import Upsampling
from matcher.fusion import NORM_EPSILON
from matcher.readout import integer_neighbours


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """One layer at n query points. blended: (n, C), the bilinear sample at the point. corners: (n, 4, C), the four
    cells around it that the blend is made of. Neither has unit norm."""

    blended: Tensor
    corners: Tensor

    def part(self, start: int, stop: int) -> "Sampled":
        """Points `start` to `stop` - 1."""
        return Sampled(self.blended[start:stop], self.corners[start:stop])


def sample_raw(features: Tensor, cells: Tensor, up: Upsampling) -> Sampled:
    """Sample the only layer of a feature: its raw map (C, h, w), upsampled by `up`, at points (n, 2) in cells of the
    upsampled map."""
    corners, weights = integer_neighbours(cells, (len(up.rows), len(up.columns)))
    vectors = up.cells(features, corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C)
    return Sampled(_blend(vectors, weights), vectors)


def sample_normalised(features: Tensor, cells: Tensor, up: Upsampling) -> Sampled:
    """The same for one layer of several, each of whose cells is divided by its norm before it is sampled (DESIGN
    section 4)."""
    corners, weights = integer_neighbours(cells, (len(up.rows), len(up.columns)))
    vectors = up.cells(features, corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C)
    vectors = vectors / (vectors.norm(dim=2, keepdim=True) + NORM_EPSILON)
    return Sampled(_blend(vectors, weights), vectors)


def _blend(vectors: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("nkc,nk->nc", vectors, weights)
