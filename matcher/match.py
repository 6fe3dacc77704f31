"""One pair, plainly: layers are fused into one map, and every correlation map is built. `matcher.sweep` is for many
pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from matcher.configuration import NORM_EPSILON, Correlations, Frame, Geometry, MatchSettings, check_weights, readout
from matcher.errors import MatchError
from matcher.geometry import cells_to_pixels, final_size, pixels_to_cells
from matcher.readout import check_channels, check_predictions, integer_neighbours, nearest, nearest_pixels, offsets

RADIUS = 0.1
"""The second-best place of a point lies farther than this from the one found, as a share of the image's sides."""

TOLERANCE = 0.05
"""A match is mutual where the way back ends within this of where it began, as a share of the image's sides."""


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
    size = final_size(maps, factor)
    resized = [upsample(layer.float(), size, align) for layer in maps]
    if len(resized) == 1:
        return resized[0]
    return torch.cat([weight * normalise(layer, dim=0) for layer, weight in zip(resized, weights, strict=True)])


def sample(features: Tensor, cells: Tensor) -> Tensor:
    """Bilinear samples (n, C) of a map (C, h, w) at cells (n, 2) as (x, y); beyond the border the border's value."""
    height, width = features.shape[-2:]
    extent = torch.tensor([width - 1, height - 1], dtype=features.dtype, device=features.device).clamp(min=1)
    grid = cells.to(features.dtype) / extent * 2 - 1  # (n, 2) in [-1, 1], cell centres of the corners at -1 and 1
    samples = functional.grid_sample(
        features[None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )  # (1, C, 1, n)
    return samples[0, :, 0].T


def correlate(source: Tensor, cells: Tensor, target: Tensor) -> Tensor:
    """Correlation maps (n, H, W) in [-1, 1]: cosine of the source's descriptors with every target cell.

    source, target: final maps (C, h, w) and (C, H, W). cells: (n, 2), (x, y) in cells of the source map, where the raw
    map is sampled bilinearly before the sample is normalised.
    """
    descriptors = normalise(sample(source, cells), dim=1)  # (n, C)
    return torch.einsum("nc,chw->nhw", descriptors, normalise(target, dim=0))


def match_points(
    source: Tensor, target: Tensor, points: Tensor, readouts: Sequence[str], settings: MatchSettings
) -> dict[str, Tensor]:
    """Where each source point lies in the target, by each readout.

    Args:
        source: Final map (C, h, w), see `fuse`.
        target: Final map (C, H, W).
        points: (n, 2), (x, y) in pixels of the resized frame.
        readouts: Names, see `matcher.configuration.MODULES`.
        settings: How maps become matches.

    Returns:
        By readout (n, 2), (x, y) in pixels of the resized frame.

    Raises:
        MatchError: The maps' channels differ, a point or a match is not finite, or a readout needs the original
            images' sizes, as `pixel` does: see `match_pixels`.
    """
    return read_points(correlate_points(source, target, points, readouts, settings), readouts)


def correlate_points(
    source: Tensor, target: Tensor, points: Tensor, readouts: Sequence[str], settings: MatchSettings
) -> Correlations:
    """What `match_points` reads points off. Arguments and errors are the same, but for matches that are not finite."""
    asked = {name: readout(name) for name in readouts}
    for name, own in asked.items():
        if own.frame is Frame.ORIGINAL:
            raise MatchError(f"The readout {name} needs the original images' sizes: use matcher.match.match_pixels.")
    check_channels(source.shape[0], target.shape[0])
    if not points.isfinite().all():
        raise MatchError("A point is not finite: drop the points that an image lacks.")
    source_size = final_size([source], 1)
    cells = pixels_to_cells(points.to(source), settings.image_size, source_size, settings.geometry)
    correlation = correlate(source, cells, target)  # (n, H, W)
    corners, shares = integer_neighbours(cells, source_size)
    around = correlation[:, None]
    if any(own.rows > 1 for own in asked.values()):
        around = correlate(source, corners.flatten(0, 1), target).unflatten(0, (-1, 4))  # (n, 4, H, W)
    return Correlations(settings, correlation, None, nearest(correlation), around, shares)


def read_points(read: Correlations, readouts: Sequence[str]) -> dict[str, Tensor]:
    """The points that readouts find in correlations, as `match_points` gives them. Raises `MatchError` for a match that
    is not finite."""
    settings, size, found = read.settings, final_size([read.sums], 1), dict[str, Tensor]()
    for name in readouts:
        cells = readout(name).read(read)
        found[name] = cells_to_pixels(cells, settings.image_size, size, settings.geometry)
        check_predictions(found[name], name, "the source to the target map")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Where n points lie in a target, and what speaks for it.

    points: (n, 2), (x, y) in pixels of the resized frame. scores: (n,), the correlation with the place found, -1 to 1.
    margins: (n,), by how much that exceeds the best one farther than `RADIUS` away. mutual: (n,), whether the way back,
    by the same readout, ends within `TOLERANCE` of where it began. correlations: (n, H, W), with every cell.
    """

    points: Tensor
    scores: Tensor
    margins: Tensor
    mutual: Tensor
    correlations: Tensor


def find_points(source: Tensor, target: Tensor, points: Tensor, readout: str, settings: MatchSettings) -> Found:
    """`match_points` by one readout, and whether the matches are to be trusted. Arguments and errors are the same."""
    read = correlate_points(source, target, points, [readout], settings)
    found = read_points(read, [readout])[readout]
    back = match_points(target, source, found, [readout], settings)[readout]
    return judge(read, found, points.to(back), back)


def judge(read: Correlations, found: Tensor, points: Tensor, back: Tensor) -> Found:
    """What speaks for matches.

    Args:
        read: What they were read off.
        found: (n, 2), where they are.
        points: (n, 2), whose matches they are.
        back: (n, 2), where the way back from `found` ends.

    Returns:
        The matches; all points are in pixels of the resized frame.
    """
    cosines, size, settings = read.cosines, final_size([read.sums], 1), read.settings
    cells = pixels_to_cells(found, settings.image_size, size, settings.geometry)
    scores = sample(cosines, cells).diagonal()  # each point in its own correlations
    dx, dy = offsets(cosines, cells)  # (n, W), (n, H)
    is_near = (dy / size[0]).square()[:, :, None] + (dx / size[1]).square()[:, None, :] <= RADIUS**2
    margins = scores - cosines.masked_fill(is_near, -1).flatten(1).amax(dim=1)
    mutual = (back - points).norm(dim=1) <= TOLERANCE * settings.image_size
    return Found(found, scores, margins, mutual, cosines)


def match_pixels(
    source: Tensor, target: Tensor, points: Tensor, source_size: tuple[int, int], target_size: tuple[int, int]
) -> Tensor:
    """Where each source point lies in the target: (n, 2), whole pixels of the original target image.

    source, target: final maps (C, h, w), see `fuse`. points: (n, 2) in pixels of the original source
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
