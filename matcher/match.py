"""One pair of final maps, matched plainly: every correlation map is built. `matcher.sweep` is for many pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from matcher.configuration import MatchSettings
from matcher.errors import MatchError
from matcher.fusion import normalise, sample
from matcher.geometry import cells_to_pixels, pixels_to_cells
from matcher.pairs import Frame
from matcher.readout import Correlations, check_predictions, integer_neighbours, nearest, nearest_pixels
from matcher.registry import readout


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
        source: Final map (C, h, w), see `matcher.fusion.fuse`.
        target: Final map (C, H, W).
        points: (n, 2), (x, y) in pixels of the resized frame.
        readouts: Names, see `matcher.registry`.
        settings: How maps become matches.

    Returns:
        By readout (n, 2), (x, y) in pixels of the resized frame.

    Raises:
        MatchError: The maps' channels differ, a point or a match is not finite, or a readout needs the original
            images' sizes, as `pixel` does: see `match_pixels`.
    """
    asked = {name: readout(name) for name in readouts}
    for name, own in asked.items():
        if own.frame is Frame.ORIGINAL:
            raise MatchError(f"The readout {name} needs the original images' sizes: use matcher.match.match_pixels.")
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
    corners, shares = integer_neighbours(cells, source_size)
    around = correlation[:, None]
    if any(own.rows > 1 for own in asked.values()):
        around = correlate(source, corners.flatten(0, 1), target).unflatten(0, (-1, 4))  # (n, 4, H, W)
    read = Correlations(settings, correlation, None, nearest(correlation), around, shares)
    found = {
        name: cells_to_pixels(own.read(read), settings.image_size, target_size, settings.geometry)
        for name, own in asked.items()
    }
    for name, positions in found.items():
        check_predictions(positions, name, "the source to the target map")
    return found


def _size(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]


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
