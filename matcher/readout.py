"""Readouts: from correlation maps to one matched position a point. Positions are (x, y) in cells of the target map.

The four of SD4Match's evaluator; `bilinear` asks for four correlation maps a point, the others for one.
"""

from enum import Enum

import torch
from torch import Tensor

SIGMA = 7.0
"""Width in cells of the Gaussian of `kernel_soft_argmax` (SD4Match)."""


class Readout(Enum):
    """The names that `--readouts` takes."""

    NN = "nn"
    BILINEAR = "bilinear"
    SOFTMAX = "softmax"
    KERNELSOFTMAX = "kernelsoftmax"


def nearest(correlation: Tensor) -> Tensor:
    """The cell of the largest correlation: (n, h, w) to (n, 2). Of equal ones the first in reading order."""
    width = correlation.shape[-1]
    flat = correlation.flatten(1)
    # torch's argmax over rows takes several times numpy's on the CPU
    best = torch.from_numpy(flat.numpy().argmax(axis=1)) if flat.device.type == "cpu" else flat.argmax(dim=1)  # (n,)
    return torch.stack([best % width, best // width], dim=1).to(correlation.dtype)


def blend_nearest(neighbours: Tensor, weights: Tensor) -> Tensor:
    """The nearest cells of a point's four integer neighbours, blended: neighbours (n, 4, h, w), weights (n, 4)
    summing to 1, to (n, 2)."""
    matched = nearest(neighbours.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, 2)
    return (matched * weights[..., None]).sum(dim=1)


def soft_argmax(correlation: Tensor, beta: float) -> Tensor:
    """The mean cell under softmax(correlation / beta): (n, h, w) to (n, 2)."""
    height, width = correlation.shape[-2:]
    probability = (correlation.flatten(1) / beta).softmax(dim=1).unflatten(1, (height, width))
    x = (probability.sum(dim=1) * _axis(width, correlation)).sum(dim=1)
    y = (probability.sum(dim=2) * _axis(height, correlation)).sum(dim=1)
    return torch.stack([x, y], dim=1)


def kernel_soft_argmax(correlation: Tensor, beta: float, sigma: float) -> Tensor:
    """`soft_argmax` after the correlations (not the probabilities) were multiplied by a Gaussian of `sigma` cells
    centred on the largest one: (n, h, w) to (n, 2)."""
    height, width = correlation.shape[-2:]
    centre = nearest(correlation)  # (n, 2)
    dx = _axis(width, correlation) - centre[:, :1]  # (n, w)
    dy = _axis(height, correlation) - centre[:, 1:]  # (n, h)
    squared = dx[:, None, :] ** 2 + dy[:, :, None] ** 2  # (n, h, w)
    return soft_argmax(correlation * torch.exp(-squared / (2 * sigma**2)), beta)


def integer_neighbours(cells: Tensor, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each point and their bilinear weights: (n, 2) to (n, 4, 2) and (n, 4).

    Points are held inside the map of `map_size` = (h, w) first, as bilinear sampling with border padding does.
    """
    height, width = map_size
    last = torch.tensor([width - 1, height - 1], dtype=cells.dtype, device=cells.device)
    inside = cells.clamp(min=torch.zeros_like(last), max=last)
    low = inside.floor()
    high = torch.minimum(low + 1, last)
    share = inside - low  # (n, 2) in [0, 1)
    corners = torch.stack(
        [low, torch.stack([high[:, 0], low[:, 1]], 1), torch.stack([low[:, 0], high[:, 1]], 1), high], dim=1
    )
    right, down = share[:, 0], share[:, 1]
    weights = torch.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], dim=1)
    return corners, weights


def _axis(cells: int, like: Tensor) -> Tensor:
    return torch.arange(cells, dtype=like.dtype, device=like.device)
