"""The source's side of a correlation: what is sampled from its maps at the keypoints.

An image's keypoints are the same in all pairs that start in it: they are sampled once an image, not once a pair.
Nothing here depends on the weights of the layers, so one sample serves every weighting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matcher.configuration import Layout
from matcher.errors import MatchError
from matcher.fusion import NORM_EPSILON, upsampling
from matcher.geometry import Geometry, pixels_to_cells, rectangle_to_cells
from matcher.maps import LayerSpec
from matcher.pairs import Frame, MatchingPair
from matcher.readout import integer_neighbours, nearest_pixels


@dataclass(frozen=True, slots=True, eq=False)
class Keypoints:
    """The distinct source points of one image over many pairs.

    resized: (n, 2) pixels of the resized frame. original: (n, 2) pixels of the original image of `original_size` =
    (width, height), None where no pair gives them. rows: for each pair, by its index, which of the n points are its.
    """

    resized: NDArray[np.float32]
    original: NDArray[np.float32] | None
    original_size: tuple[int, int] | None
    rows: Mapping[int, NDArray[np.int64]]


def distinct_keypoints(pairs: Sequence[MatchingPair], members: Sequence[int]) -> Keypoints:
    """Of the pairs `members`, which start in the same image."""
    known = [pairs[index].original for index in members]
    stacked = np.concatenate([pairs[index].source_points for index in members])
    everywhere = [original for original in known if original is not None]
    if everywhere and len(everywhere) == len(members):
        stacked = np.hstack([stacked, np.concatenate([original.source_points for original in everywhere])])
    distinct, inverse = np.unique(stacked, axis=0, return_inverse=True)
    ends = np.cumsum([len(pairs[index].source_points) for index in members])
    rows = dict(zip(members, np.split(inverse.reshape(-1), ends[:-1]), strict=True))
    original = distinct[:, 2:] if distinct.shape[1] == 4 else None
    return Keypoints(distinct[:, :2], original, everywhere[0].source_size if original is not None else None, rows)


MapKey = tuple[int, LayerSpec]
"""A map of a layout: the position of its layer, and the layer with its timestep."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What n points are to a layout. shares: (n, rows), by which a point's rows blend into its descriptor.

    vectors: a map to (n, rows, C), the cells around each point, or (rows = 1) their blend. squares: a map to (n,), the
    blend's squared norm. Neither has unit norm.
    """

    shares: Tensor
    vectors: Mapping[MapKey, Tensor]
    squares: Mapping[MapKey, Tensor]


def sample(layout: Layout, keypoints: Keypoints, maps: Mapping[LayerSpec, Tensor]) -> Samples:
    """Sample the maps of one image, (C, h, w) each, at its keypoints.

    A layer that is alone is sampled raw; of several, each cell is divided by its norm before it is sampled
    (docs/method.md, Normalisation and fusion). In the original frame the sample is taken at the pixel nearest to the
    keypoint, as DIFT does.
    """
    first = [maps[specs[0]] for specs in layout.maps]
    size = final_size(first, layout.settings.upsample)
    corners, shares = integer_neighbours(_positions(layout, keypoints, size, first[0].device), size)
    vectors: dict[MapKey, Tensor] = {}
    squares: dict[MapKey, Tensor] = {}
    for position, specs in enumerate(layout.maps):
        for spec in specs:
            features = maps[spec]
            up = upsampling(
                (features.shape[-2], features.shape[-1]), size, layout.settings.upsample_align, features.device
            )
            cells = up.cells(features, corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C), float32
            if len(layout.maps) > 1:
                cells = cells / (cells.norm(dim=2, keepdim=True) + NORM_EPSILON)
            blend = torch.einsum("nkc,nk->nc", cells, shares)
            vectors[position, spec] = cells if layout.rows == 4 else blend[:, None]
            squares[position, spec] = blend.square().sum(dim=1)
    return Samples(shares if layout.rows == 4 else shares.new_ones(len(shares), 1), vectors, squares)


def final_size(maps: Sequence[Tensor], factor: int) -> tuple[int, int]:
    """(H, W) of the map that layers (C, h, w) are fused to."""
    return max(layer.shape[-2] for layer in maps) * factor, max(layer.shape[-1] for layer in maps) * factor


def join(parts: Sequence[Samples]) -> Samples:
    """The samples of several images, one after the other. Raises `MatchError` where their maps differ in channels."""
    for key in parts[0].vectors:
        channels = sorted({part.vectors[key].shape[2] for part in parts})
        if len(channels) > 1:
            raise MatchError(
                f"The maps of one layer have {channels[0]} channels for one source and {channels[-1]} for another: all "
                "must come from the same layer of the same model."
            )
    return Samples(
        torch.cat([part.shares for part in parts]),
        {key: torch.cat([part.vectors[key] for part in parts]) for key in parts[0].vectors},
        {key: torch.cat([part.squares[key] for part in parts]) for key in parts[0].squares},
    )


def _positions(layout: Layout, keypoints: Keypoints, size: tuple[int, int], device: torch.device) -> Tensor:
    """(n, 2) in cells of the final map."""
    if layout.frame is Frame.RESIZED:
        points = torch.from_numpy(keypoints.resized).to(device)
        return pixels_to_cells(points, layout.settings.image_size, size, layout.settings.geometry)
    assert keypoints.original is not None, "the sweep checks this"
    assert keypoints.original_size is not None, "the sweep checks this"
    width, height = keypoints.original_size
    pixels = nearest_pixels(torch.from_numpy(keypoints.original).to(device), keypoints.original_size)
    return rectangle_to_cells(pixels, (height, width), size, Geometry.HALF_PIXEL)
