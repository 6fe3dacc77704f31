"""DIFT's readout `pixel`, the plain version: features upsampled bilinearly to the original images' resolution, the most
alike pixel taken, in the original frame (https://github.com/Tsingularity/dift, eval_spair.py)."""

import torch
from torch import Tensor
from torch.nn import functional

from matcher.fusion import normalise
from matcher.readout import nearest


def match_pixels(
    source: Tensor, target: Tensor, points: Tensor, source_size: tuple[int, int], target_size: tuple[int, int]
) -> Tensor:
    """Where each source point lies in the target: (n, 2), whole pixels of the original target image.

    source, target: final maps (C, h, w), see `matcher.fusion.fuse`. points: (n, 2) in pixels of the original source
    image; the descriptor is that of the nearest pixel. Sizes: (width, height) of the original images.
    """
    upsampled, dense = (
        functional.interpolate(features[None], (height, width), mode="bilinear")[0]
        for features, (width, height) in ((source, source_size), (target, target_size))
    )
    x, y = nearest_pixels(points, source_size).long().unbind(dim=1)
    descriptors = normalise(upsampled[:, y, x].T, dim=1)  # (n, C)
    dense = normalise(dense, dim=0)
    # a point at a time: a correlation map is as large as the image
    return torch.cat([nearest(torch.einsum("c,chw->hw", vector, dense)[None]) for vector in descriptors])


def nearest_pixels(points: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole pixels (n, 2) of an image of `size` = (width, height) nearest to points (n, 2)."""
    last = torch.tensor([size[0] - 1, size[1] - 1], dtype=points.dtype, device=points.device)
    return (points + 0.5).floor().clamp(min=torch.zeros_like(last), max=last)
