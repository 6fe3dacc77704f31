"""Correlations of many source points with one target, in many configurations.

The source's side: an image's keypoints are the same in all pairs that start in it, so they are sampled once per image,
not once per pair. Nothing in a sample depends on the weights of the layers, so one sample serves every weighting. The
target's side: each of its maps is correlated once at its own resolution; configurations are weighted sums of these.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matcher.configuration import Configuration, MatchSettings
from matcher.errors import MatchError
from matcher.fusion import NORM_EPSILON, Upsampling, squared_norms, upsampling
from matcher.geometry import Geometry, cells_to_pixels, pixels_to_cells, rectangle_to_cells
from matcher.maps import LayerSpec
from matcher.pairs import Frame, Pairs
from matcher.readout import (
    NN,
    Correlations,
    Readout,
    cells_of,
    doubt,
    integer_neighbours,
    largest,
    nearest_pixels,
)


@dataclass(frozen=True, slots=True)
class Family:
    """Configurations of the same layers and settings, which differ in timesteps and weights alone: their source points
    are sampled once a map, and each map is correlated once.

    layers: names. maps: for each layer, the distinct maps asked for (of weight 1). members: indices of the
    configurations. readouts: all of one `frame`, as those of the original one sample elsewhere.
    """

    layers: tuple[str, ...]
    settings: MatchSettings
    frame: Frame
    readouts: tuple[Readout, ...]
    members: tuple[int, ...]
    maps: tuple[tuple[LayerSpec, ...], ...]

    @property
    def rows(self) -> int:
        """Correlation maps that a point asks for."""
        return max(known.rows for known in self.readouts)


def families(configurations: Sequence[Configuration], readouts: Sequence[Readout]) -> tuple[Family, ...]:
    """The configurations by what they share, each readout with its frame."""
    grouped: dict[tuple[tuple[str, ...], MatchSettings], list[int]] = defaultdict(list)
    for index, configuration in enumerate(configurations):
        grouped[tuple(layer.layer for layer in configuration.layers), configuration.settings].append(index)
    found = []
    for (names, settings), members in grouped.items():
        maps = tuple(
            tuple(dict.fromkeys(configurations[index].layers[position].map for index in members))
            for position in range(len(names))
        )
        for frame in Frame:
            own = tuple(known for known in readouts if known.frame is frame)
            if own:
                found.append(Family(names, settings, frame, own, tuple(members), maps))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Keypoints:
    """The distinct source points of one image over many pairs.

    resized: (n, 2) pixels of the resized frame. original: (n, 2) pixels of the original image of `original_size` =
    (width, height), None where the pairs have none. rows: which of the n each source point of the pairs is.
    """

    resized: NDArray[np.float32]
    original: NDArray[np.float32] | None
    original_size: tuple[int, int] | None
    rows: NDArray[np.int64]


def distinct_keypoints(pairs: Pairs, members: Sequence[int]) -> Keypoints:
    """Of the pairs `members`, which start in the same image."""
    points = pairs.points(members)
    stacked = pairs.resized.source_points[points]
    if pairs.original is None or pairs.sizes is None:
        distinct, rows = np.unique(stacked, axis=0, return_inverse=True)
        return Keypoints(distinct, None, None, rows.reshape(-1))
    stacked = np.hstack([stacked, pairs.original.source_points[points]])
    distinct, rows = np.unique(stacked, axis=0, return_inverse=True)
    width, height = pairs.sizes[members[0], :2].tolist()
    return Keypoints(distinct[:, :2], distinct[:, 2:], (width, height), rows.reshape(-1))


MapKey = tuple[int, LayerSpec]
"""A map of a family: the position of its layer, and the layer with its timestep."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What n points are to a family. shares: (n, rows), by which a point's rows blend into its descriptor.

    vectors: a map to (n, rows, C), the cells around each point, or (rows = 1) their blend. squares: a map to (n,), the
    blend's squared norm. Neither has unit norm.
    """

    shares: Tensor
    vectors: Mapping[MapKey, Tensor]
    squares: Mapping[MapKey, Tensor]


def sample(family: Family, keypoints: Keypoints, maps: Mapping[LayerSpec, Tensor]) -> Samples:
    """Sample the maps of one image, (C, h, w) each, at its keypoints.

    A layer that is alone is sampled raw; of several, each cell is divided by its norm before it is sampled
    (docs/method.md, Normalisation and fusion). In the original frame the sample is taken at the pixel nearest to the
    keypoint, as DIFT does.
    """
    first = [maps[specs[0]] for specs in family.maps]
    size = final_size(first, family.settings.upsample)
    corners, shares = integer_neighbours(_positions(family, keypoints, size, first[0].device), size)
    vectors: dict[MapKey, Tensor] = {}
    squares: dict[MapKey, Tensor] = {}
    for position, specs in enumerate(family.maps):
        for spec in specs:
            features = maps[spec]
            up = upsampling(
                (features.shape[-2], features.shape[-1]), size, family.settings.upsample_align, features.device
            )
            cells = up.cells(features, corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C), float32
            if len(family.maps) > 1:
                cells = cells / (cells.norm(dim=2, keepdim=True) + NORM_EPSILON)
            blend = torch.einsum("nkc,nk->nc", cells, shares)
            vectors[position, spec] = cells if family.rows == 4 else blend[:, None]
            squares[position, spec] = blend.square().sum(dim=1)
    return Samples(shares if family.rows == 4 else shares.new_ones(len(shares), 1), vectors, squares)


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


def _positions(family: Family, keypoints: Keypoints, size: tuple[int, int], device: torch.device) -> Tensor:
    """(n, 2) in cells of the final map."""
    if family.frame is Frame.RESIZED:
        points = torch.from_numpy(keypoints.resized).to(device)
        return pixels_to_cells(points, family.settings.image_size, size, family.settings.geometry)
    assert keypoints.original is not None, "the sweep checks this"
    assert keypoints.original_size is not None, "the sweep checks this"
    width, height = keypoints.original_size
    pixels = nearest_pixels(torch.from_numpy(keypoints.original).to(device), keypoints.original_size)
    return rectangle_to_cells(pixels, (height, width), size, Geometry.HALF_PIXEL)


BLOCK_CELLS = 2**25
"""Correlations held at once, all maps of a target together: 134 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetMap:
    """features: (C, h, w), float32. up: to the final size (H, W). divisor: (H, W), what its correlations are divided
    by; None where they are not."""

    features: Tensor
    up: Upsampling
    divisor: Tensor | None

    def correlate(self, vectors: Tensor) -> Tensor:
        """Query vectors (n, rows, C) to correlations (n, rows, H, W)."""
        products = vectors.flatten(0, 1) @ self.features.flatten(1)  # (n * rows, h * w)
        maps = self.up.scalars(products.unflatten(1, self.features.shape[1:]))
        if self.divisor is not None:
            maps = maps.div_(self.divisor)
        return maps.unflatten(0, vectors.shape[:2])


def target_upsamplings(family: Family, maps: Mapping[LayerSpec, Tensor]) -> dict[MapKey, Upsampling]:
    """How each map of a family reaches the final size."""
    size = final_size([maps[specs[0]] for specs in family.maps], family.settings.upsample)
    return {
        (position, spec): upsampling(
            (maps[spec].shape[-2], maps[spec].shape[-1]), size, family.settings.upsample_align, maps[spec].device
        )
        for position, specs in enumerate(family.maps)
        for spec in specs
    }


def check_channels(samples: Samples, maps: Mapping[LayerSpec, Tensor]) -> None:
    """Raise `MatchError` where the source's maps have other channels than the target's."""
    for (_, spec), vectors in samples.vectors.items():
        if vectors.shape[2] != maps[spec].shape[0]:
            raise MatchError(
                f"The source map has {vectors.shape[2]} channels and the target map {maps[spec].shape[0]}: both must "
                "come from the same layers of the same model."
            )


def block_of(family: Family, size: tuple[int, int]) -> int:
    """How many points are correlated at once with all maps of a family."""
    count = sum(len(specs) for specs in family.maps)
    return max(BLOCK_CELLS // (size[0] * size[1] * family.rows * count), 1)


def weighted_sum(products: Sequence[Tensor], weights: Sequence[float], buffer: Tensor) -> Tensor:
    """Correlations (n, ...), a layer each, summed by squared weight over the largest squared weight. The sum lies in
    `buffer`, (at least n, ...), or, where one layer counts alone, is that layer's: it must not be changed."""
    base = max(weights)
    first = list(weights).index(base)
    total = products[first]
    for position, (product, weight) in enumerate(zip(products, weights, strict=True)):
        if position != first and weight > 0:
            total = torch.add(total, product, alpha=(weight / base) ** 2, out=buffer[: len(product)])
    return total


CHUNK_CELLS = 2**17
"""Cells of one configuration that are summed and read at once on a CPU: 0.5 MB a row, and as much of each layer, which
stay in its cache while weights change."""

EVEN = 1e-6
"""Normalised cells count as having norm 1 where all their squared norms are closer to it than this."""


def match_cells(
    family: Family,
    configurations: Sequence[Configuration],
    samples: Samples,
    rows: Tensor,
    maps: Mapping[LayerSpec, Tensor],
) -> Tensor:
    """Where `samples` at `rows` (n,) lie in the target whose maps are given, float32 (C, h, w): (members of the family,
    its readouts, n, 2) in pixels of the resized frame."""
    ups = target_upsamplings(family, maps)
    size = next(iter(ups.values())).size
    norms = {key: squared_norms(maps[key[1]], up).sqrt() for key, up in ups.items()}
    targets = {key: TargetMap(maps[key[1]], up, norms[key] + NORM_EPSILON) for key, up in ups.items()}
    lengths = {key: _lengths(norm) for key, norm in norms.items()}
    blends, places = _distinct([_blend(configurations[index], lengths) for index in family.members])
    best = torch.empty(len(blends), len(rows), dtype=torch.long, device=rows.device)
    doubts = torch.empty(len(blends), len(rows), device=rows.device)
    found = torch.empty(len(blends), len(family.readouts), len(rows), 2, device=rows.device)
    block = block_of(family, size)
    chunk = max(CHUNK_CELLS // (size[0] * size[1]), 1) if rows.device.type == "cpu" else block
    buffer = torch.empty(min(chunk, block, len(rows)), family.rows, *size, device=rows.device)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        products = {key: target.correlate(samples.vectors[key][chosen]) for key, target in targets.items()}
        squares = {key: samples.squares[key][chosen] for key in targets}
        shares = samples.shares[chosen]
        for first in range(0, len(chosen), chunk):
            part = slice(first, first + chunk)
            into = slice(start + first, start + min(first + chunk, len(chosen)))
            pieces = {key: product[part] for key, product in products.items()}
            for member, blend in enumerate(blends):
                total = blend.sum([pieces[key] for key in blend.keys], buffer)
                # a correlation is linear in its descriptor: that of the blend is the blend of the corners'
                whole = total[:, 0] if family.rows == 1 else torch.einsum("nrhw,nr->nhw", total, shares[part])
                best[member, into] = largest(whole)
                doubts[member, into] = doubt(whole, best[member, into])
                if family.readouts != (NN,):
                    scale = blend.scale([squares[key][part] for key in blend.keys])
                    centre = cells_of(best[member, into], size)
                    correlations = Correlations(family.settings, whole, scale, centre, total, shares[part])
                    for column, known in enumerate(family.readouts):
                        found[member, column, into] = known.read(correlations)
    if NN in family.readouts:
        found[:, family.readouts.index(NN)] = cells_of(best, size) + doubts[..., None]
    return cells_to_pixels(found[places], family.settings.image_size, size, family.settings.geometry)


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """A configuration over one target. keys, weights: of the layers that weigh something. lengths: (H, W), norms of the
    fused cells; None where all have the norm `length`."""

    keys: tuple[MapKey, ...]
    weights: tuple[float, ...]
    lengths: Tensor | None
    length: float

    def sum(self, products: Sequence[Tensor], buffer: Tensor) -> Tensor:
        """Products (n, rows, H, W), a layer each, summed and divided by `lengths`; not yet a cosine. buffer: of at
        least n, may be where the sum lies."""
        total = weighted_sum(products, self.weights, buffer)
        return total if self.lengths is None else total / self.lengths

    def scale(self, squares: Sequence[Tensor]) -> Tensor:
        """(n,), what makes a cosine of a sum. squares: squared norms of the layers' samples, (n,) each."""
        descriptors = torch.stack([weight**2 * square for weight, square in zip(self.weights, squares, strict=True)])
        return max(self.weights) ** 2 / self.length / (descriptors.sum(dim=0).sqrt() + NORM_EPSILON)


def _lengths(norms: Tensor) -> Tensor | None:
    """Squared norms of cells that were divided by their `norms` plus epsilon, (H, W); None where all are 1."""
    squares = (norms / (norms + NORM_EPSILON)).square()
    return None if bool(squares.amin() > 1 - EVEN) else squares


def _blend(configuration: Configuration, lengths: Mapping[MapKey, Tensor | None]) -> Blend:
    """lengths: what `_lengths` gives for each map."""
    layers = [((position, layer.map), layer.weight) for position, layer in enumerate(configuration.layers)]
    if len(layers) == 1:  # its correlations are cosines once they were divided by the map's own norms
        return Blend((layers[0][0],), (1.0,), None, 1.0)
    keys, weights = zip(*((key, weight) for key, weight in layers if weight > 0), strict=True)
    squares = [lengths[key] for key in keys]
    if all(square is None for square in squares):
        return Blend(keys, weights, None, sum(weight**2 for weight in weights) ** 0.5 + NORM_EPSILON)
    total = torch.zeros(())
    for weight, square in zip(weights, squares, strict=True):
        total = weight**2 * (1.0 if square is None else square) + total
    return Blend(keys, weights, total.sqrt() + NORM_EPSILON, 1.0)


def _distinct(blends: Sequence[Blend]) -> tuple[list[Blend], list[int]]:
    """The different ones, those of the same maps beside each other (these are then in the processor's cache), and for
    each of `blends` which of them it is: with one weight 0 the other layers' timesteps make no difference."""
    of_maps: dict[tuple[MapKey, ...], dict[tuple[float, ...], Blend]] = {}
    for blend in blends:
        of_maps.setdefault(blend.keys, {}).setdefault(blend.weights, blend)
    found = [blend for own in of_maps.values() for blend in own.values()]
    number = {(blend.keys, blend.weights): place for place, blend in enumerate(found)}
    return found, [number[blend.keys, blend.weights] for blend in blends]
