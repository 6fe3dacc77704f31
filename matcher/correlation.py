"""How alike a source point is to every cell of the target."""

import torch
from torch import Tensor

from matcher.fusion import normalise, sample

BETA = 0.04
"""Temperature of the matching probability softmax(m / beta) (SD4Match; docs/method.md, Correlation)."""


def correlate(source: Tensor, cells: Tensor, target: Tensor) -> Tensor:
    """Correlation maps (n, H, W) in [-1, 1]: cosine of the source's descriptors with every target cell.

    source, target: final maps (C, h, w) and (C, H, W). cells: (n, 2), (x, y) in cells of the source map, where the raw
    map is sampled bilinearly before the sample is normalised.
    """
    descriptors = normalise(sample(source, cells), dim=1)  # (n, C)
    return torch.einsum("nc,chw->nhw", descriptors, normalise(target, dim=0))
