"""Correlations through which gradients flow: those of `matcher`, factorised in the same way, so that no fused map is
built (docs/method.md, Correlation)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.fusion import NORM_EPSILON
from matcher.geometry import pixels_to_cells
from matcher.gram import squared_norms
from matcher.match import MatchSettings
from matcher.queries import final_size
from matcher.readout import integer_neighbours
from matcher.upsampling import Upsampling, upsampling

TINY = 1e-12
"""Squared norms below it count as it: the root's gradient at 0 would be infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class LayeredMaps:
    """One image's maps, one a layer. maps: (C, h, w) each, float32 or float64. ups: to the final size. norms: (H, W)
    each, of the upsampled cells. weights: one a layer."""

    maps: tuple[Tensor, ...]
    ups: tuple[Upsampling, ...]
    norms: tuple[Tensor, ...]
    weights: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the final map."""
        return self.ups[0].size


@dataclass(frozen=True, slots=True, eq=False)
class Descriptors:
    """What n points are: (n, C) a layer, sampled but not normalised, and lengths (n,), of the fused descriptor."""

    layers: tuple[Tensor, ...]
    lengths: Tensor

    def at(self, rows: Tensor) -> "Descriptors":
        """Those of some points."""
        return Descriptors(tuple(layer[rows] for layer in self.layers), self.lengths[rows])


def layered(maps: Sequence[Tensor], weights: Sequence[float], settings: MatchSettings) -> LayeredMaps:
    """Maps (C, h, w), a layer each, made ready; half precision becomes float32."""
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
