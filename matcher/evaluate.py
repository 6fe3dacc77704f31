"""Match the points of many pairs from cached maps.

The dot product is linear and so is bicubic upsampling, <q, up(F)> = up(<q, F>): the correlation with a fused map is a
weighted sum of the layers' correlations, each computed at its own resolution and upsampled as a scalar map (DESIGN
section 4, "It factorises"). No fused map is built, and all queries of one target image share one matrix product a
layer. `matcher.reference` is the plain version that this one is tested against.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.bicubic import Upsampling, upsampling
from matcher.descriptors import Sampled, sample_normalised, sample_raw
from matcher.errors import MatchError
from matcher.fusion import NORM_EPSILON, check_weights
from matcher.geometry import cells_to_pixels, pixels_to_cells
from matcher.maps import LayerSpec, MapSource
from matcher.match import MatchSettings
from matcher.pairs import FramePoints, MatchingPair
from matcher.pck import MatchedPair
from matcher.readout import (
    Readout,
    blend_nearest,
    integer_neighbours,
    kernel_soft_argmax,
    nearest,
    soft_argmax,
)

BLOCK_CELLS = 2**23
"""Correlations held at once, in one tensor: 34 MB. Soft readouts take a few such tensors."""


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """An image's raw maps, float32, a layer each (C, h, w), and how each reaches the final map's size (H, W)."""

    maps: tuple[Tensor, ...]
    ups: tuple[Upsampling, ...]
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """The points of one pair on the source's side. cells: (n, 2) in cells of the source's final map, of size
    `size`. layers: what was sampled from each layer."""

    pair: int
    cells: Tensor
    size: tuple[int, int]
    layers: tuple[Sampled, ...]


def evaluate(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    readouts: Sequence[Readout],
    settings: MatchSettings,
    device: torch.device,
    on_pair: Callable[[], None] = lambda: None,
) -> list[MatchedPair]:
    """What each readout predicts for each pair, in the order of `pairs`. `on_pair` is called as each is done.

    Each image's maps are asked for at most twice: for the queries that start in it, and as a target. Memory: the
    queries of one category, one image's maps, and blocks of `BLOCK_CELLS` correlations.

    Raises `MapError` and `MatchError` where maps are missing or do not fit together.
    """
    weights = [layer.weight for layer in layers]
    check_weights(len(layers), weights)
    matched: list[MatchedPair | None] = [None] * len(pairs)
    for group in _grouped(pairs, lambda pair: pair.category, range(len(pairs))).values():
        queries: dict[int, _Query] = {}
        for source, members in _grouped(pairs, lambda pair: pair.source, group).items():
            image = _open(maps, source, layers, settings, device)
            queries |= {query.pair: query for query in _queries(pairs, members, image, settings)}
        for target, members in _grouped(pairs, lambda pair: pair.target, group).items():
            image = _open(maps, target, layers, settings, device)
            found = _match([queries.pop(index) for index in members], image, weights, readouts, settings)
            for index, predictions in zip(members, found, strict=True):
                matched[index] = MatchedPair(pairs[index], predictions)
                on_pair()
    return [match for match in matched if match is not None]


def _grouped(
    pairs: Sequence[MatchingPair], key: Callable[[MatchingPair], str], members: Sequence[int]
) -> dict[str, list[int]]:
    """Indices of pairs by a key, both in the order in which they come."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in members:
        groups[key(pairs[index])].append(index)
    return groups


def _open(
    maps: MapSource, image: str, layers: Sequence[LayerSpec], settings: MatchSettings, device: torch.device
) -> _Image:
    raw = tuple(maps.load(image, layer).to(device).float() for layer in layers)
    height = max(layer.shape[-2] for layer in raw) * settings.upsample
    width = max(layer.shape[-1] for layer in raw) * settings.upsample
    ups = tuple(
        upsampling((layer.shape[-2], layer.shape[-1]), (height, width), settings.upsample_align, device)
        for layer in raw
    )
    return _Image(raw, ups, (height, width))


def _queries(
    pairs: Sequence[MatchingPair], members: Sequence[int], source: _Image, settings: MatchSettings
) -> Iterator[_Query]:
    """The queries of all pairs that start in one image, sampled together."""
    counts = [len(pairs[index].source_points) for index in members]
    points = torch.cat([torch.from_numpy(pairs[index].source_points) for index in members]).to(source.maps[0])
    cells = pixels_to_cells(points, settings.image_size, source.size, settings.geometry)
    sample = sample_raw if len(source.maps) == 1 else sample_normalised
    layers = [sample(features, cells, up) for features, up in zip(source.maps, source.ups, strict=True)]
    start = 0
    for index, count in zip(members, counts, strict=True):
        stop = start + count
        yield _Query(index, cells[start:stop], source.size, tuple(layer.part(start, stop) for layer in layers))
        start = stop


def _match(
    queries: Sequence[_Query],
    target: _Image,
    weights: Sequence[float],
    readouts: Sequence[Readout],
    settings: MatchSettings,
) -> list[dict[Readout, FramePoints]]:
    """Predictions in pixels, (n, 2) a readout, on the CPU, for each of the queries into one target image."""
    for layer, features in enumerate(target.maps):
        channels = queries[0].layers[layer].blended.shape[1]
        if channels != features.shape[0]:
            raise MatchError(
                f"The source map has {channels} channels and the target map {features.shape[0]}: "
                "both must come from the same layers of the same model."
            )
    norms = _cell_norms(target, weights)
    blended = [torch.cat([query.layers[layer].blended for query in queries]) for layer in range(len(target.maps))]
    found: dict[Readout, list[Tensor]] = {readout: [] for readout in readouts}
    block = max(BLOCK_CELLS // (target.size[0] * target.size[1]), 1)
    once = [readout for readout in readouts if readout is not Readout.BILINEAR]
    for start in range(0, len(blended[0]) if once else 0, block):
        correlation = _correlate([layer[start : start + block] for layer in blended], target, weights, norms)
        for readout in once:
            found[readout].append(_read(readout, correlation, settings))
    if Readout.BILINEAR in found:
        corners = [torch.cat([query.layers[layer].corners for query in queries]) for layer in range(len(target.maps))]
        shares = torch.cat([integer_neighbours(query.cells, query.size)[1] for query in queries])  # (n, 4)
        step = max(block // 4, 1)
        for start in range(0, len(shares), step):
            vectors = [layer[start : start + step].flatten(0, 1) for layer in corners]
            around = _correlate(vectors, target, weights, norms).unflatten(0, (-1, 4))  # (b, 4, H, W)
            found[Readout.BILINEAR].append(blend_nearest(around, shares[start : start + step]))
    counts = [len(query.cells) for query in queries]
    # all pairs of the target leave the device together
    pixels = {
        kind: cells_to_pixels(torch.cat(parts), settings.image_size, target.size, settings.geometry).cpu().split(counts)
        for kind, parts in found.items()
    }
    return [{readout: pixels[readout][index].numpy() for readout in readouts} for index in range(len(queries))]


def _cell_norms(target: _Image, weights: Sequence[float]) -> list[Tensor]:
    """For each layer what its correlations are divided by, (H, W): with several layers the norm of the layer's cell
    times that of the fused cell, over the squared weight."""
    own = [up.norms(features) for features, up in zip(target.maps, target.ups, strict=True)]
    if len(own) == 1:
        return [own[0] + NORM_EPSILON]
    squared = [(weight * norm / (norm + NORM_EPSILON)) ** 2 for weight, norm in zip(weights, own, strict=True)]
    fused = torch.stack(squared).sum(dim=0).sqrt() + NORM_EPSILON
    return [(norm + NORM_EPSILON) * fused for norm in own]


def _correlate(vectors: Sequence[Tensor], target: _Image, weights: Sequence[float], norms: Sequence[Tensor]) -> Tensor:
    """Correlation maps (n, H, W) of n query vectors, given a layer each as (n, C), with one target image."""
    shares = [1.0] if len(vectors) == 1 else [weight**2 for weight in weights]
    total = torch.zeros((), device=target.maps[0].device)
    length = torch.zeros((), device=target.maps[0].device)
    for vector, features, up, share, norm in zip(vectors, target.maps, target.ups, shares, norms, strict=True):
        products = (vector @ features.flatten(1)).unflatten(1, features.shape[1:])  # (n, h, w)
        total = total + share * up.scalars(products) / norm
        length = length + share * vector.square().sum(dim=1)
    return total / (length.sqrt() + NORM_EPSILON)[:, None, None]


def _read(readout: Readout, correlation: Tensor, settings: MatchSettings) -> Tensor:
    match readout:
        case Readout.SOFTMAX:
            return soft_argmax(correlation, settings.beta)
        case Readout.KERNELSOFTMAX:
            return kernel_soft_argmax(correlation, settings.beta, settings.sigma)
        case _:
            return nearest(correlation)
