"""How alike a source point is to every cell of the target."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.errors import MatchError
from matcher.fusion import normalise, sample
from matcher.geometry import Geometry, cells_to_pixels, pixels_to_cells
from matcher.readout import (
    SIGMA,
    WINDOW,
    WINDOW_BETA,
    Readout,
    blend_nearest,
    check_predictions,
    integer_neighbours,
    kernel_soft_argmax,
    nearest,
    soft_argmax,
    window_soft_argmax,
)

BETA = 0.04
"""Temperature of the matching probability softmax(m / beta) (SD4Match; docs/method.md, Correlation)."""


def correlate(source: Tensor, cells: Tensor, target: Tensor) -> Tensor:
    """Correlation maps (n, H, W) in [-1, 1]: cosine of the source's descriptors with every target cell.

    source, target: final maps (C, h, w) and (C, H, W). cells: (n, 2), (x, y) in cells of the source map, where the raw
    map is sampled bilinearly before the sample is normalised.
    """
    descriptors = normalise(sample(source, cells), dim=1)  # (n, C)
    return torch.einsum("nc,chw->nhw", descriptors, normalise(target, dim=0))


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """How maps become matches; recorded with every result.

    image_size: side S of the resized image in pixels. geometry: pixel to cell. upsample: factor on the finest map's
    size. upsample_align: geometry of the upsampling. beta: softmax temperature. sigma: kernel width in cells. window:
    reach in cells of the readout `window`, window_beta: its own temperature.
    """

    image_size: int
    geometry: Geometry = Geometry.CORNERS
    upsample: int = 1
    upsample_align: Geometry = Geometry.CORNERS
    beta: float = BETA
    sigma: float = SIGMA
    window: int = WINDOW
    window_beta: float = WINDOW_BETA

    def __post_init__(self) -> None:
        if self.image_size < 2:
            raise MatchError(f"An image size of {self.image_size} pixels is too small: it must be at least 2.")
        if self.upsample < 1:
            raise MatchError(f"Maps cannot be upsampled {self.upsample} times: the factor must be at least 1.")
        for name in ("beta", "sigma", "window_beta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise MatchError(f"{name} is {getattr(self, name)}: it must be finite and above 0.")
        if self.window < 0:
            raise MatchError(f"A window of {self.window} cells cannot be: it must be at least 0.")


def match_points(
    source: Tensor, target: Tensor, points: Tensor, readouts: Sequence[Readout], settings: MatchSettings
) -> dict[Readout, Tensor]:
    """Where each source point lies in the target, by each readout.

    source, target: final maps (C, h, w) and (C, H, W), see `matcher.fusion.fuse`. points: (n, 2), (x, y) in pixels of
    the resized frame. Returns (n, 2) in pixels of the resized frame, a readout.

    Raises `MatchError` where the maps' channels differ, a point or a match is not finite, and for `pixel`, which needs
    the original images' sizes: see `matcher.readout.match_pixels`.
    """
    if source.shape[0] != target.shape[0]:
        raise MatchError(
            f"The source map has {source.shape[0]} channels and the target map {target.shape[0]}: "
            "both must come from the same layers of the same model."
        )
    if not points.isfinite().all():
        raise MatchError("A point is not finite: drop the points that an image lacks.")
    source_size, target_size = _size(source), _size(target)
    points = points.to(source)
    cells = pixels_to_cells(points, settings.image_size, source_size, settings.geometry)
    correlation = correlate(source, cells, target)  # (n, H, W)

    def read(readout: Readout) -> Tensor:
        match readout:
            case Readout.NN:
                return nearest(correlation)
            case Readout.BILINEAR:
                corners, weights = integer_neighbours(cells, source_size)
                around = correlate(source, corners.flatten(0, 1), target).unflatten(0, (-1, 4))  # (n, 4, H, W)
                return blend_nearest(around, weights)
            case Readout.SOFTMAX:
                return soft_argmax(correlation, settings.beta)
            case Readout.KERNELSOFTMAX:
                return kernel_soft_argmax(correlation, settings.beta, settings.sigma)
            case Readout.WINDOW:
                return window_soft_argmax(correlation, settings.window_beta, settings.window)
            case Readout.PIXEL:
                raise MatchError(
                    "The readout pixel needs the original images' sizes: use matcher.readout.match_pixels."
                )

    found = {
        readout: cells_to_pixels(read(readout), settings.image_size, target_size, settings.geometry)
        for readout in readouts
    }
    for readout, positions in found.items():
        check_predictions(positions, readout, "the source to the target map")
    return found


def _size(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]
