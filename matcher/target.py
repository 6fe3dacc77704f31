"""Correlations with one target image's cells: of one layer, or of several, fused without building the fused map."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.configuration import Configuration, Layout
from matcher.errors import MatchError
from matcher.fusion import NORM_EPSILON, Upsampling, bilinear_upsampling, inner_products, squared_norms, upsampling
from matcher.geometry import cells_to_pixels
from matcher.maps import LayerSpec
from matcher.queries import MapKey, Samples, final_size
from matcher.readout import (
    Readout,
    blend_nearest,
    cells_of,
    doubt,
    kernel_soft_argmax,
    largest,
    nearest,
    soft_argmax,
    window_soft_argmax,
)

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


def target_upsamplings(layout: Layout, maps: Mapping[LayerSpec, Tensor]) -> dict[MapKey, Upsampling]:
    """How each map of a layout reaches the final size."""
    size = final_size([maps[specs[0]] for specs in layout.maps], layout.settings.upsample)
    return {
        (position, spec): upsampling(
            (maps[spec].shape[-2], maps[spec].shape[-1]), size, layout.settings.upsample_align, maps[spec].device
        )
        for position, specs in enumerate(layout.maps)
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


def block_of(layout: Layout, size: tuple[int, int]) -> int:
    """How many points are correlated at once with all maps of a layout."""
    count = sum(len(specs) for specs in layout.maps)
    return max(BLOCK_CELLS // (size[0] * size[1] * layout.rows * count), 1)


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
    layout: Layout,
    configurations: Sequence[Configuration],
    samples: Samples,
    rows: Tensor,
    maps: Mapping[LayerSpec, Tensor],
) -> Tensor:
    """Where `samples` at `rows` (n,) lie in the target whose maps are given, float32 (C, h, w): (members of the layout,
    its readouts, n, 2) in pixels of the resized frame."""
    ups = target_upsamplings(layout, maps)
    size = next(iter(ups.values())).size
    norms = {key: squared_norms(maps[key[1]], up).sqrt() for key, up in ups.items()}
    targets = {key: TargetMap(maps[key[1]], up, norms[key] + NORM_EPSILON) for key, up in ups.items()}
    lengths = {key: _lengths(norm) for key, norm in norms.items()}
    blends, places = _distinct([_blend(configurations[index], lengths) for index in layout.members])
    best = torch.empty(len(blends), len(rows), dtype=torch.long, device=rows.device)
    doubts = torch.empty(len(blends), len(rows), device=rows.device)
    found = torch.empty(len(blends), len(layout.readouts), len(rows), 2, device=rows.device)
    block = block_of(layout, size)
    chunk = max(CHUNK_CELLS // (size[0] * size[1]), 1) if rows.device.type == "cpu" else block
    buffer = torch.empty(min(chunk, block, len(rows)), layout.rows, *size, device=rows.device)
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
                whole = total[:, 0] if layout.rows == 1 else torch.einsum("nrhw,nr->nhw", total, shares[part])
                best[member, into] = largest(whole)
                doubts[member, into] = doubt(whole, best[member, into])
                if layout.readouts != (Readout.NN,):
                    scale = blend.scale([squares[key][part] for key in blend.keys])
                    centre = cells_of(best[member, into], size)
                    for column, position in enumerate(_read(layout, total, shares[part], whole, scale, centre)):
                        found[member, column, into] = position
    if Readout.NN in layout.readouts:
        found[:, layout.readouts.index(Readout.NN)] = cells_of(best, size) + doubts[..., None]
    return cells_to_pixels(found[places], layout.settings.image_size, size, layout.settings.geometry)


@dataclass(frozen=True, slots=True, eq=False)
class _Blend:
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


def _blend(configuration: Configuration, lengths: Mapping[MapKey, Tensor | None]) -> _Blend:
    """lengths: what `_lengths` gives for each map."""
    layers = [((position, layer.map), layer.weight) for position, layer in enumerate(configuration.layers)]
    if len(layers) == 1:  # its correlations are cosines once they were divided by the map's own norms
        return _Blend((layers[0][0],), (1.0,), None, 1.0)
    keys, weights = zip(*((key, weight) for key, weight in layers if weight > 0), strict=True)
    squares = [lengths[key] for key in keys]
    if all(square is None for square in squares):
        return _Blend(keys, weights, None, sum(weight**2 for weight in weights) ** 0.5 + NORM_EPSILON)
    total = torch.zeros(())
    for weight, square in zip(weights, squares, strict=True):
        total = weight**2 * (1.0 if square is None else square) + total
    return _Blend(keys, weights, total.sqrt() + NORM_EPSILON, 1.0)


def _distinct(blends: Sequence[_Blend]) -> tuple[list[_Blend], list[int]]:
    """The different ones, those of the same maps beside each other (these are then in the processor's cache), and for
    each of `blends` which of them it is: with one weight 0 the other layers' timesteps make no difference."""
    of_maps: dict[tuple[MapKey, ...], dict[tuple[float, ...], _Blend]] = {}
    for blend in blends:
        of_maps.setdefault(blend.keys, {}).setdefault(blend.weights, blend)
    found = [blend for own in of_maps.values() for blend in own.values()]
    number = {(blend.keys, blend.weights): place for place, blend in enumerate(found)}
    return found, [number[blend.keys, blend.weights] for blend in blends]


_SOFT = frozenset({Readout.SOFTMAX, Readout.KERNELSOFTMAX, Readout.WINDOW})


def _read(
    layout: Layout, total: Tensor, shares: Tensor, whole: Tensor, scale: Tensor, centre: Tensor
) -> Iterator[Tensor]:
    """Positions in cells, (n, 2), a readout. total: (n, rows, H, W), shares: (n, rows), by which a point's rows blend
    to `whole`, (n, H, W), whose largest cell is `centre`, (n, 2). scale: (n,), what makes cosines of sums."""
    settings = layout.settings
    cosines = whole * scale[:, None, None] if _SOFT.intersection(layout.readouts) else whole
    for readout in layout.readouts:
        match readout:
            case Readout.NN:
                yield centre
            case Readout.BILINEAR:
                yield blend_nearest(total, shares)
            case Readout.SOFTMAX:
                yield soft_argmax(cosines, settings.beta)
            case Readout.KERNELSOFTMAX:
                yield kernel_soft_argmax(cosines, settings.beta, settings.sigma, centre)
            case Readout.WINDOW:
                yield window_soft_argmax(cosines, settings.window_beta, settings.window, centre)
            case Readout.PIXEL:
                raise AssertionError("pixel is read off pixels: matcher.target")


CHUNK_PIXELS = 2**22
"""Correlations at pixels that are held at once: 17 MB."""

TIMES = {(0, 0): 1, (0, 1): 2, (1, 0): 2, (1, 1): 2, (1, -1): 2}
"""How often the square of a bilinear blend has the inner product of a cell and the one (down, right) of it."""


def match_pixels_of_target(
    layout: Layout,
    configurations: Sequence[Configuration],
    samples: Samples,
    rows: Tensor,
    maps: Mapping[LayerSpec, Tensor],
    original_size: tuple[int, int],
) -> Tensor:
    """Where `samples` at `rows` (n,) lie in the target whose maps are given, float32 (C, h, w), and whose original has
    `original_size` = (width, height): (members of the layout, 1, n, 2), whole pixels of the original frame."""
    ups = target_upsamplings(layout, maps)
    size = next(iter(ups.values())).size
    to_pixels = bilinear_upsampling(size, (original_size[1], original_size[0]), rows.device)
    targets = {}
    for key, up in ups.items():
        # a layer that is alone is normalised at the pixels only, of several each cell before they are fused
        divisor = None if len(layout.layers) == 1 else squared_norms(maps[key[1]], up).sqrt() + NORM_EPSILON
        targets[key] = TargetMap(maps[key[1]], up, divisor)
    squares = {key: squared_norms_at_pixels(target, to_pixels) for key, target in targets.items()}
    found = torch.empty(len(layout.members), 1, len(rows), 2, device=rows.device)
    block = block_of(layout, size)
    buffer = torch.empty(min(block, len(rows)), *size, device=rows.device)
    chunk = max(CHUNK_PIXELS // (original_size[0] * original_size[1]), 1)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        products = {key: target.correlate(samples.vectors[key][chosen])[:, 0] for key, target in targets.items()}
        for member, index in enumerate(layout.members):
            keys = [(position, layer.map) for position, layer in enumerate(configurations[index].layers)]
            # one layer's weight does not matter
            weights = [layer.weight for layer in configurations[index].layers] if len(keys) > 1 else [1.0]
            total = weighted_sum([products[key] for key in keys], weights, buffer[: len(chosen)])
            norms = torch.stack([weight**2 * squares[key] for key, weight in zip(keys, weights, strict=True)])
            length = norms.sum(dim=0).sqrt() + NORM_EPSILON  # (H_pixels, W_pixels)
            for first in range(0, len(chosen), chunk):
                part = total[first : first + chunk]
                position = nearest(to_pixels.scalars(part) / length)
                found[member, 0, start + first : start + first + len(part)] = position
    return found


def squared_norms_at_pixels(target: TargetMap, to_pixels: Upsampling) -> Tensor:
    """Squared norms, (H_pixels, W_pixels), of a map whose cells were brought to the final size, divided by its divisor
    if it has one, and upsampled by `to_pixels`; >= 0."""
    rows, columns = to_pixels.rows, to_pixels.columns
    total = torch.zeros(to_pixels.size, dtype=rows.dtype, device=rows.device)
    # a map of one row or one column has no neighbours there
    offsets = [(down, right) for down, right in TIMES if down < rows.shape[1] and abs(right) < columns.shape[1]]
    for (down, right), products in zip(offsets, inner_products(target.features, target.up, offsets), strict=True):
        if target.divisor is not None:
            above, below = target.divisor[: len(rows[0]) - down], target.divisor[down:]
            products = products / (_without(above, -right) * _without(below, right))
        row_pairs = rows[:, : rows.shape[1] - down] * rows[:, down:]
        column_pairs = _without(columns, -right) * _without(columns, right)
        total += TIMES[down, right] * (row_pairs @ products @ column_pairs.T)
    return total.clamp(min=0)


def _without(values: Tensor, columns: int) -> Tensor:
    """(n, W) without its first `columns` columns or, where that is negative, its last ones."""
    return values[:, max(0, columns) : values.shape[1] - max(0, -columns)]
