"""Correlations of many source points with one target, in many configurations.

The source's side: an image's keypoints are the same in all pairs that start in it, so they are sampled once per image,
not once per pair. Nothing in a sample depends on the weights of the layers, so one sample serves every weighting. The
target's side: each of its maps is correlated once at its own resolution; configurations are weighted sums of these. In
the original frame they are read at every pixel of the target image, as DIFT does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.configuration import (
    NORM_EPSILON,
    Configuration,
    Correlations,
    Frame,
    Geometry,
    LayerSpec,
    MatchSettings,
    Readout,
)
from matcher.geometry import (
    Upsampling,
    cells_to_pixels,
    final_size,
    inner_products,
    pixels_to_cells,
    squared_norms,
    upsampling,
    without,
)
from matcher.readout import NN, cells_of, doubt, integer_neighbours, largest, nearest_pixels

Maps = Mapping[LayerSpec, Tensor]
"""Those of an image, (C, h, w) each."""

MapKey = tuple[int, LayerSpec]
"""A map of a family: the position of its layer, and the layer with its timestep."""


@dataclass(frozen=True, slots=True)
class Family:
    """Configurations of the same layers and settings, which differ in timesteps and weights alone: their source points
    are sampled once a map, and each map is correlated once.

    members: the configurations' indices. readouts: all of one `frame`, as those of the original one sample elsewhere.
    maps: for each layer, the distinct maps asked for (of weight 1).
    """

    settings: MatchSettings
    frame: Frame
    readouts: tuple[Readout, ...]
    members: tuple[int, ...]
    configurations: tuple[Configuration, ...]
    maps: tuple[tuple[LayerSpec, ...], ...]

    @property
    def rows(self) -> int:
        """Correlation maps that a point asks for."""
        return max(known.rows for known in self.readouts)

    def upsamplings(self, maps: Maps) -> tuple[dict[MapKey, Upsampling], tuple[int, int]]:
        """How each map of an image reaches the final size, and that, (H, W)."""
        size = final_size([maps[specs[0]] for specs in self.maps], self.settings.upsample)
        keys = [(position, spec) for position, specs in enumerate(self.maps) for spec in specs]
        align = self.settings.upsample_align
        return {key: upsampling(final_size([maps[key[1]]], 1), size, align, maps[key[1]].device) for key in keys}, size


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What n points are to a family. shares: (n, rows), by which a point's rows blend into its descriptor.

    vectors: a map to (n, rows, C), the cells around each point, or (rows = 1) their blend. squares: a map to (n,), the
    blend's squared norm. Neither has unit norm.
    """

    shares: Tensor
    vectors: Mapping[MapKey, Tensor]
    squares: Mapping[MapKey, Tensor]


def sample(family: Family, points: Tensor, original_size: tuple[int, int], maps: Maps) -> Samples:
    """Sample the maps of one image at points (n, 2), pixels of the family's frame. original_size: (width, height); of
    any size where that is the resized frame.

    A layer that is alone is sampled raw; of several, each cell is divided by its norm before it is sampled
    (docs/method.md, Normalisation and fusion). In the original frame the sample is taken at the pixel nearest to the
    keypoint, as DIFT does.
    """
    ups, size = family.upsamplings(maps)
    if family.frame is Frame.RESIZED:
        positions = pixels_to_cells(points, family.settings.image_size, size, family.settings.geometry)
    else:
        pixels = nearest_pixels(points, original_size)
        positions = pixels_to_cells(pixels, original_size[::-1], size, Geometry.HALF_PIXEL)
    corners, shares = integer_neighbours(positions, size)
    vectors: dict[MapKey, Tensor] = {}
    squares: dict[MapKey, Tensor] = {}
    for key, up in ups.items():
        cells = up.cells(maps[key[1]], corners.flatten(0, 1)).unflatten(0, (-1, 4))  # (n, 4, C), float32
        if len(family.maps) > 1:
            cells = cells / (cells.norm(dim=2, keepdim=True) + NORM_EPSILON)
        blend = torch.einsum("nkc,nk->nc", cells, shares)
        vectors[key] = cells if family.rows == 4 else blend[:, None]
        squares[key] = blend.square().sum(dim=1)
    return Samples(shares if family.rows == 4 else shares.new_ones(len(shares), 1), vectors, squares)


BLOCK_CELLS = 2**25
"""Correlations held at once, all maps of a target together: 134 MB."""

CHUNK_CELLS = 2**17
"""Cells of one configuration that are summed and read at once on a CPU: 0.5 MB a row, and as much of each layer, which
stay in its cache while weights change."""

CHUNK_PIXELS = 2**22
"""Correlations at pixels that are held at once: 17 MB."""

EVEN = 1e-6
"""Normalised cells count as having norm 1 where all their squared norms are closer to it than this."""


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """A configuration over one target. keys, weights: of the layers that weigh something. lengths: (H, W), norms of the
    fused cells; None where all have the norm `length`."""

    keys: tuple[MapKey, ...]
    weights: tuple[float, ...]
    lengths: Tensor | None = None
    length: float = 1.0

    @classmethod
    def plain(cls, configuration: Configuration) -> "Blend":
        """One whose lengths are not known yet."""
        layers = configuration.layers
        if len(layers) == 1:  # its weight does not matter
            return cls(((0, layers[0].map),), (1.0,))
        weighing = [(position, layer) for position, layer in enumerate(layers) if layer.weight > 0]
        keys = tuple((position, layer.map) for position, layer in weighing)
        return cls(keys, tuple(layer.weight for _, layer in weighing))

    def sum(self, products: Mapping[MapKey, Tensor], buffer: Tensor) -> Tensor:
        """Products (n, ...), a layer each, summed by squared weight over the largest squared weight and divided by
        `lengths`; not yet a cosine. It lies in `buffer`, (at least n, ...), or, where one layer counts alone, may be
        that layer's: it must not be changed."""
        base = max(self.weights)
        first = self.keys[self.weights.index(base)]
        total = products[first]
        for key, weight in zip(self.keys, self.weights, strict=True):
            if key != first:
                total = torch.add(total, products[key], alpha=(weight / base) ** 2, out=buffer[: len(total)])
        return total if self.lengths is None else total / self.lengths

    def square(self, squares: Mapping[MapKey, Tensor]) -> Tensor:
        """Squared norms (...) of the layers' cells, a layer each, to those of the fused ones."""
        own = [weight**2 * squares[key] for key, weight in zip(self.keys, self.weights, strict=True)]
        return torch.stack(own).sum(dim=0)

    def scale(self, squares: Mapping[MapKey, Tensor]) -> Tensor:
        """(n,), what makes a cosine of a sum. squares: squared norms of the layers' samples, (n,) each."""
        return max(self.weights) ** 2 / self.length / (self.square(squares).sqrt() + NORM_EPSILON)


def match(family: Family, samples: Samples, rows: Tensor, maps: Maps, original_size: tuple[int, int]) -> Tensor:
    """Where points lie in a target image.

    Args:
        family: What is asked.
        samples: Those of the source images.
        rows: (n,), the samples that are meant.
        maps: The target's, float32.
        original_size: (width, height) of the target's original; of any size where the family is of the resized frame.

    Returns:
        (members of the family, its readouts, n, 2) in pixels of the family's frame.
    """
    ups, size = family.upsamplings(maps)
    norms = {key: squared_norms(maps[key[1]], up).sqrt() for key, up in ups.items()}
    divisors: dict[MapKey, Tensor | None] = {key: norm + NORM_EPSILON for key, norm in norms.items()}
    block = max(BLOCK_CELLS // (size[0] * size[1] * family.rows * len(ups)), 1)
    to_pixels: Upsampling | None = None
    at_pixels: dict[MapKey, Tensor] = {}  # squared norms
    if family.frame is Frame.RESIZED:
        lengths = {key: lengths_of(norm) for key, norm in norms.items()}
        blends, places = _distinct([blend_of(one, lengths) for one in family.configurations])
        chunk, found_on = max(CHUNK_CELLS // (size[0] * size[1]), 1) if rows.device.type == "cpu" else block, size
    else:
        if len(family.maps) == 1:  # it is normalised at the pixels only; of several, each cell before they are fused
            divisors = dict.fromkeys(divisors)
        found_on = original_size[::-1]
        to_pixels = upsampling(size, found_on, Geometry.HALF_PIXEL, rows.device, "bilinear")
        at_pixels = {
            key: squared_norms_at_pixels(maps[key[1]], up, divisors[key], to_pixels) for key, up in ups.items()
        }
        blends, places = _distinct(list(map(Blend.plain, family.configurations)))
        chunk = max(CHUNK_PIXELS // (found_on[0] * found_on[1]), 1)
    best = torch.empty(len(blends), len(rows), dtype=torch.long, device=rows.device)
    doubts = torch.empty(len(blends), len(rows), device=rows.device)
    found = torch.empty(len(blends), len(family.readouts), len(rows), 2, device=rows.device)
    buffer = torch.empty(min(chunk, block, len(rows)), family.rows, *size, device=rows.device)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        products = {
            key: correlate(samples.vectors[key][chosen], maps[key[1]], up, divisors[key]) for key, up in ups.items()
        }
        for first in range(0, len(chosen), chunk):
            part = chosen[first : first + chunk]
            into = slice(start + first, start + first + len(part))
            pieces = {key: product[first : first + chunk] for key, product in products.items()}
            squares, shares = {key: samples.squares[key][part] for key in ups}, samples.shares[part]
            for member, blend in enumerate(blends):
                total = blend.sum(pieces, buffer)
                # a correlation is linear in its descriptor: that of the blend is the blend of the corners'
                whole = total[:, 0] if family.rows == 1 else torch.einsum("nrhw,nr->nhw", total, shares)
                if to_pixels is not None:
                    whole = to_pixels.scalars(whole) / (blend.square(at_pixels).sqrt() + NORM_EPSILON)
                best[member, into] = largest(whole)
                doubts[member, into] = doubt(whole, best[member, into])
                if family.readouts != (NN,):
                    centre = cells_of(best[member, into], found_on) + doubts[member, into, None]
                    read = Correlations(family.settings, whole, blend.scale(squares), centre, total, shares)
                    for column, known in enumerate(family.readouts):
                        found[member, column, into] = known.read(read)
    if NN in family.readouts:
        found[:, family.readouts.index(NN)] = cells_of(best, size) + doubts[..., None]
    if to_pixels is not None:
        return found[places]
    return cells_to_pixels(found[places], family.settings.image_size, size, family.settings.geometry)


def correlate(vectors: Tensor, features: Tensor, up: Upsampling, divisor: Tensor | None) -> Tensor:
    """Query vectors (n, rows, C) with a map (C, h, w), float32, brought to the final size by `up`: correlations
    (n, rows, H, W), divided by `divisor` (H, W) if there is one."""
    products = vectors.flatten(0, 1) @ features.flatten(1)  # (n * rows, h * w)
    maps = up.scalars(products.unflatten(1, features.shape[1:]))
    return (maps if divisor is None else maps.div_(divisor)).unflatten(0, vectors.shape[:2])


TIMES = {(0, 0): 1, (0, 1): 2, (1, 0): 2, (1, 1): 2, (1, -1): 2}
"""How often the square of a bilinear blend has the inner product of a cell and the one (down, right) of it."""


def squared_norms_at_pixels(features: Tensor, up: Upsampling, divisor: Tensor | None, to_pixels: Upsampling) -> Tensor:
    """Squared norms, (H_pixels, W_pixels), of a map (C, h, w) whose cells were brought to the final size by `up`,
    divided by `divisor` (H, W), if there is one, and upsampled by `to_pixels`; >= 0."""
    rows, columns = to_pixels.rows, to_pixels.columns
    total = torch.zeros(to_pixels.size, dtype=rows.dtype, device=rows.device)
    # a map of one row or one column has no neighbours there
    offsets = [(down, right) for down, right in TIMES if down < rows.shape[1] and abs(right) < columns.shape[1]]
    for (down, right), products in zip(offsets, inner_products(features, up, offsets), strict=True):
        if divisor is not None:
            above, below = without(divisor, -down, dim=0), without(divisor, down, dim=0)
            products = products / (without(above, -right) * without(below, right))
        row_pairs = without(rows, -down) * without(rows, down)
        column_pairs = without(columns, -right) * without(columns, right)
        total += TIMES[down, right] * (row_pairs @ products @ column_pairs.T)
    return total.clamp(min=0)


def lengths_of(norms: Tensor) -> Tensor | None:
    """Squared norms of cells that were divided by their `norms` plus epsilon, (H, W); None where all are 1."""
    squares = (norms / (norms + NORM_EPSILON)).square()
    return None if bool(squares.amin() > 1 - EVEN) else squares


def blend_of(configuration: Configuration, lengths: Mapping[MapKey, Tensor | None]) -> Blend:
    """lengths: what `lengths_of` gives for each map."""
    blend = Blend.plain(configuration)
    if len(configuration.layers) == 1:  # its correlations are cosines once they were divided by the map's own norms
        return blend
    squares = [lengths[key] for key in blend.keys]
    if all(square is None for square in squares):
        length = sum(weight**2 for weight in blend.weights) ** 0.5 + NORM_EPSILON
        return Blend(blend.keys, blend.weights, None, length)
    total = torch.zeros(())
    for weight, square in zip(blend.weights, squares, strict=True):
        total = weight**2 * (1.0 if square is None else square) + total
    return Blend(blend.keys, blend.weights, total.sqrt() + NORM_EPSILON)


def _distinct(blends: Sequence[Blend]) -> tuple[list[Blend], list[int]]:
    """The different ones, those of the same maps beside each other (these are then in the processor's cache), and for
    each of `blends` which of them it is: with one weight 0 the other layers' timesteps make no difference."""
    distinct = {(blend.keys, blend.weights): blend for blend in blends}
    order = {keys: place for place, (keys, _) in enumerate(distinct)}
    found = sorted(distinct.values(), key=lambda blend: order[blend.keys])
    number = {(blend.keys, blend.weights): place for place, blend in enumerate(found)}
    return found, [number[blend.keys, blend.weights] for blend in blends]
