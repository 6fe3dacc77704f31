"""Correlations through which gradients flow: those of `matcher`, factorised in the same way, so that no fused map is
built (docs/method.md, Correlation)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featstore.errors import TuningError
from matcher.configuration import NORM_EPSILON, MatchSettings
from matcher.geometry import Upsampling, final_size, pixels_to_cells, squared_norms, upsampling
from matcher.readout import integer_neighbours

TINY = 1e-12
"""Squared norms below it count as it: the root's gradient at 0 would be infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class LayeredMaps:
    """One image's maps, one per layer. maps: (C, h, w) each, float32 or float64. ups: to the final size. norms: (H, W)
    each, of the upsampled cells. weights: one per layer."""

    maps: tuple[Tensor, ...]
    ups: tuple[Upsampling, ...]
    norms: tuple[Tensor, ...]
    weights: tuple[float | Tensor, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the final map."""
        return self.ups[0].size


@dataclass(frozen=True, slots=True, eq=False)
class Descriptors:
    """What n points are: (n, C) per layer, sampled but not normalised, and lengths (n,), of the fused descriptor."""

    layers: tuple[Tensor, ...]
    lengths: Tensor


def layered(maps: Sequence[Tensor], weights: Sequence[float | Tensor], settings: MatchSettings) -> LayeredMaps:
    """Maps (C, h, w), one per layer, made ready; half precision becomes float32."""
    wide = tuple(features if features.dtype is torch.float64 else features.float() for features in maps)
    size = final_size(wide, settings.upsample)
    ups = tuple(
        upsampling((layer.shape[-2], layer.shape[-1]), size, settings.upsample_align, layer.device).to(layer.dtype)
        for layer in wide
    )
    norms = tuple(_root(squared_norms(layer, up)) for layer, up in zip(wide, ups, strict=True))
    return LayeredMaps(wide, ups, norms, (1.0,) if len(wide) == 1 else tuple(weights))


def describe_points(image: LayeredMaps, points: Tensor, settings: MatchSettings) -> Descriptors:
    """Sample an image at points (n, 2), pixels of the resized frame: a layer that is alone raw, of several each cell
    divided by its norm first (docs/method.md, Normalisation and fusion)."""
    cells = pixels_to_cells(points, settings.image_size, image.size, settings.geometry)
    corners, shares = integer_neighbours(cells, image.size)
    found = []
    for features, up in zip(image.maps, image.ups, strict=True):
        around = up.cells(features, corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C)
        if len(image.maps) > 1:
            around = around / (_root(around.square().sum(dim=2, keepdim=True)) + NORM_EPSILON)
        found.append(torch.einsum("nkc,nk->nc", around, shares.to(around)))
    squares = sum(weight**2 * layer.square().sum(dim=1) for weight, layer in zip(image.weights, found, strict=True))
    return Descriptors(tuple(found), _root(torch.as_tensor(squares)) + NORM_EPSILON)


def correlations(source: Descriptors, target: LayeredMaps) -> Tensor:
    """Cosines (n, H, W) of points' descriptors with every cell of the target's fused map."""
    total, squares = torch.zeros(()), torch.zeros(())
    for layer, features, up, norm, weight in zip(
        source.layers, target.maps, target.ups, target.norms, target.weights, strict=True
    ):
        products = (layer @ features.flatten(1)).unflatten(1, features.shape[1:])  # (n, h, w)
        total = total + weight**2 * up.scalars(products) / (norm + NORM_EPSILON)
        squares = squares + weight**2 * (norm / (norm + NORM_EPSILON)).square()
    if len(target.maps) > 1:
        total = total / (squares.sqrt() + NORM_EPSILON)
    return total / source.lengths[:, None, None]


def _root(squares: Tensor) -> Tensor:
    return squares.clamp(min=TINY).sqrt()


WIDE_MAP = 48
"""Cells per side from which on the published kernel is used."""


def default_kernel(map_side: int, published: int = 7) -> int:
    """k in cells: the one recommended for the model, by default SD4Match's, on maps of 48 cells and more, else 3.

    On smaller maps 7 cells are too large a part of the picture: on 16 cells tuning then loses PCK while the loss falls,
    and on the demo's 32 it gains half of what it gains with 3.
    """
    return published if map_side >= WIDE_MAP else 3


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
