"""All queries into one target image, read off cells of its final map: every readout but `pixel`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.configuration import Configuration, Layout
from matcher.fusion import NORM_EPSILON
from matcher.geometry import cells_to_pixels
from matcher.gram import squared_norms
from matcher.maps import LayerSpec
from matcher.queries import MapKey, Samples
from matcher.readout import (
    Readout,
    blend_nearest,
    cells_of,
    doubt,
    kernel_soft_argmax,
    largest,
    soft_argmax,
    window_soft_argmax,
)
from matcher.target import TargetMap, block_of, target_upsamplings, weighted_sum

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
                raise AssertionError("pixel is read off pixels: matcher.target_pixels")
