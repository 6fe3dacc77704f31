"""SD4Match's loss: where a point should be found, the matching probability is to be high, within a small Gaussian."""

import math

import torch
from torch import Tensor

from featstore.errors import TuningError
from matcher.readout import integer_neighbours

WIDE_MAP = 48
"""Cells a side from which on the published kernel is used."""


def default_kernel(map_side: int) -> int:
    """k in cells: 7 (SD4Match's) on maps of 48 cells and more, else 3.

    On smaller maps 7 cells are too large a part of the picture: on 16 cells tuning then loses PCK while the loss falls,
    and on the demo's 32 it gains half of what it gains with 3.
    """
    return 7 if map_side >= WIDE_MAP else 3


def gaussian(kernel: int) -> tuple[Tensor, Tensor]:
    """Offsets (k * k, 2) as (x, y) in cells, float64, and the density of a Gaussian at each, (k * k,): sigma
    (k // 2) / 2, not renormalised; 1 for a kernel of one cell. Raises `TuningError` for an even kernel."""
    if kernel < 1 or kernel % 2 == 0:
        raise TuningError(f"A kernel of {kernel} cells has no centre: take an odd number, e.g. 7.")
    reach = kernel // 2
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    offsets = torch.stack([x.flatten(), y.flatten()], dim=1)
    if reach == 0:
        return offsets, torch.ones(1, dtype=torch.float64)
    sigma = reach / 2
    density = torch.exp(-offsets.square().sum(dim=1) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    return offsets, density


def keypoint_losses(correlation: Tensor, target: Tensor, kernel: int, beta: float) -> Tensor:
    """The loss of each point, (n,): minus the sum over k x k offsets of the Gaussian's density times log P, where P =
    softmax(correlation / beta) is sampled bilinearly at target + offset (docs/method.md, Loss).

    correlation: (n, H, W). target: (n, 2), where the points should be found, in cells. Offsets whose sample does not
    lie strictly inside the map do not count.
    """
    count, height, width = correlation.shape
    logs = torch.log_softmax(correlation.flatten(1) / beta, dim=1)  # (n, H * W)
    offsets, density = (values.to(correlation) for values in gaussian(kernel))
    sampled = target.to(correlation)[:, None] + offsets  # (n, k * k, 2)
    last = torch.tensor([width - 1, height - 1]).to(correlation)
    inside = ((sampled > 0) & (sampled < last)).all(dim=2)  # (n, k * k)
    corners, shares = integer_neighbours(sampled.flatten(0, 1), (height, width))  # (n * k * k, 4, 2) and (.., 4)
    places = (corners[..., 1] * width + corners[..., 0]).long().view(count, -1)  # (n, k * k * 4)
    neighbours = logs.gather(1, places).view(count, -1, 4)
    # log of a blend of probabilities, stable: a neighbour of share 0 has log share -inf and no gradient
    blended = torch.logsumexp(neighbours + shares.log().view(count, -1, 4), dim=2)  # (n, k * k)
    return -(torch.where(inside, blended, 0) * density).sum(dim=1)
