"""From the raw maps of one or more layers to the final map of an image, and descriptors sampled from it.

One layer: the final map is the raw map, upsampled if asked. Two or more: every layer is upsampled to the finest one's
size, each cell of each layer is normalised, the layers are weighted and concatenated (docs/method.md; the report
gives the weights 0.8 : 0.6, that each layer is normalised first is our reading of it). This is the plain version,
which builds the fused map.

Weights count squared: two cells of fused maps correlate to sum w_i^2 cos_i / sum w_i^2, the layers' cosines weighted
0.64 : 0.36 for 0.8 : 0.6, and their plain mean for equal weights, whatever these are. (A descriptor that is sampled
between cells counts each layer by how well those cells agree in it, too: blends of unit vectors are shorter.)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from matcher.errors import MatchError
from matcher.geometry import Geometry

NORM_EPSILON = 1e-6
"""x / (||x|| + 1e-6), as in SD4Match."""

SMALLEST_NORM = 1e3 * NORM_EPSILON
"""Of what is normalised: below it the epsilon takes more than a thousandth of a cosine."""

LARGEST = 1e17
"""Of a value: beyond it a descriptor's norm overflows float32, and every match would be the first cell."""


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


def check_weights(layers: int, weights: Sequence[float]) -> None:
    """Raise `MatchError` unless there is one weight >= 0 a layer, not all zero, and the fused cells' norm, the root of
    the sum of their squares, is one that float32 and the normalisation's epsilon leave as it is."""
    if layers == 0:
        raise MatchError("No layer is named: give at least one.")
    if len(weights) != layers:
        raise MatchError(f"{layers} layer(s) but {len(weights)} weight(s): give one weight a layer.")
    if not all(math.isfinite(weight) for weight in weights) or min(weights) < 0 or max(weights) == 0:
        raise MatchError(
            f"The weights {list(weights)} cannot be used: none may be negative or infinite and one must be positive."
        )
    if not SMALLEST_NORM <= math.hypot(*weights) <= LARGEST:
        raise MatchError(
            f"The weights {list(weights)} cannot be used: the root of the sum of their squares is "
            f"{math.hypot(*weights):g}, and must lie between {SMALLEST_NORM:g} and {LARGEST:g}; only ratios count."
        )


def sample(features: Tensor, cells: Tensor) -> Tensor:
    """Bilinear samples (n, C) of a map (C, h, w) at cells (n, 2) as (x, y); beyond the border the border's value."""
    height, width = features.shape[-2:]
    extent = torch.tensor([width - 1, height - 1], dtype=features.dtype, device=features.device).clamp(min=1)
    grid = cells.to(features.dtype) / extent * 2 - 1  # (n, 2) in [-1, 1], cell centres of the corners at -1 and 1
    samples = functional.grid_sample(
        features[None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )  # (1, C, 1, n)
    return samples[0, :, 0].T
