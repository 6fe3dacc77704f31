"""A grid on a store: every configuration on a split's pairs, from cached maps or from maps that are never written."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featstore.backbones.base import Compute, MapKey
from featstore.backbones.registry import is_diffusion
from featstore.datasets.records import Dataset, Pair
from featstore.pipeline.distributed import ALONE, Processes, Shares, by_category, by_target
from featstore.pipeline.evaluate import images_of
from featstore.pipeline.needed import FoundBackbone, MapsCost, estimate_maps, model_of
from featstore.pipeline.plan import MapRequest, missing_latents, sharing_a_pass
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import Extractor
from featstore.store.ledger import StoredLedger, open_ledger
from featstore.store.row_encoding import encoding_for
from featstore.store.source import StoredMaps
from featstore.store.store import Store
from matcher.configuration import Configuration
from matcher.grid import GridScores, joined, score_grid
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair
from matcher.readout import Readout
from matcher.sweep import KEPT_BYTES, grouped
from matcher.target import BLOCK_CELLS

LIBRARIES = 500_000_000
"""Bytes that Python and torch take on their own, about."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried: configurations, readouts and alphas (fractions of theta)."""

    configurations: tuple[Configuration, ...]
    readouts: tuple[Readout, ...]
    alphas: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Configurations, readouts, alphas."""
        return len(self.configurations), len(self.readouts), len(self.alphas)

    @property
    def maps(self) -> tuple[MapKey, ...]:
        """The (layer, timestep) whose maps it needs, sorted."""
        layers = [layer for configuration in self.configurations for layer in configuration.layers]
        keys = {(layer.layer, layer.timestep) for layer in layers}
        return tuple(sorted(keys, key=lambda key: (key[0], key[1] or 0)))

    @property
    def diffusion_maps(self) -> tuple[MapKey, ...]:
        """Those that are made of noisy latents."""
        return tuple(key for key in self.maps if is_diffusion(key[0]))


def grid_ledger(store: Store, pairs: Sequence[MatchingPair], grid: Grid, features: Mapping[str, Any]) -> StoredLedger:
    """Where a grid keeps what it has done. features: what the maps depend on."""
    return open_ledger(store, pairs, grid.shape, {"grid": repr(grid), "features": dict(features)})


def score_cached(
    maps: StoredMaps,
    pairs: Sequence[MatchingPair],
    grid: Grid,
    ledger: StoredLedger,
    compute: Compute,
    progress: Progress,
    processes: Processes = ALONE,
) -> GridScores:
    """Score a grid from maps that are all in the store, in the order of `pairs`."""

    def score(own: Sequence[MatchingPair]) -> GridScores:
        progress.start("matching", len(own), "pairs")
        return _score(own, maps, grid, ledger, compute, progress)

    shares = by_target(pairs, processes.count, done_before(ledger, processes))
    scores = score_shares(pairs, shares, grid, processes, score)
    if scores.pairs == tuple(pairs):
        return scores
    place = {id(pair): index for index, pair in enumerate(scores.pairs)}
    return replace(scores, pairs=tuple(pairs), hits=scores.hits[..., [place[id(pair)] for pair in pairs]])


def score_streamed(
    store: Store,
    dataset: Dataset,
    pairs: Sequence[MatchingPair],
    grid: Grid,
    request: MapRequest,
    ledger: StoredLedger,
    progress: Progress,
    processes: Processes = ALONE,
) -> GridScores:
    """Score a grid a category at a time, whose maps are made, kept in memory and let go; latents must be cached.

    Categories that the ledger has finished are not made again. The scores come category by category. Of several
    processes each takes whole categories.
    """

    def score(own: Sequence[MatchingPair]) -> GridScores:
        return _score_streamed(store, dataset, own, grid, request, ledger, progress)

    shares = by_category(pairs, processes.count, done_before(ledger, processes))
    return score_shares(pairs, shares, grid, processes, score)


def done_before(ledger: StoredLedger, processes: Processes) -> frozenset[str]:
    """The target images that were finished before any process went on: the first one's word, so that all divide the
    others alike."""
    return processes.gather(ledger.done)[0]


def score_shares(
    pairs: Sequence[MatchingPair],
    shares: Shares,
    grid: Grid,
    processes: Processes,
    score: Callable[[Sequence[MatchingPair]], GridScores],
) -> GridScores:
    """The scores of all pairs, of which each process scores its share: one share after the other, in the order in which
    `score` gives its pairs. Raises `ProcessError` where another process ended early."""
    if processes.count == 1:
        return score(pairs)
    indices, hits = list[int](), np.zeros((*grid.shape, 0), dtype=np.uint16)
    if shares[processes.rank]:
        index_of = {id(pairs[index]): index for index in shares[processes.rank]}
        scores = score([pairs[index] for index in shares[processes.rank]])
        indices, hits = [index_of[id(pair)] for pair in scores.pairs], scores.hits
    parts = processes.gather((indices, hits))
    return GridScores(
        tuple(pairs[index] for part, _ in parts for index in part),
        grid.configurations,
        grid.readouts,
        grid.alphas,
        np.concatenate([hits for _, hits in parts], axis=-1),
    )


def _score_streamed(
    store: Store,
    dataset: Dataset,
    pairs: Sequence[MatchingPair],
    grid: Grid,
    request: MapRequest,
    ledger: StoredLedger,
    progress: Progress,
) -> GridScores:
    # loading the model's libraries takes seconds, and a grid that was finished before needs none
    from featstore.pipeline.stream import MapStream, open_stream

    stream: MapStream | None = None
    categories = grouped(pairs, lambda pair: pair.category, range(len(pairs)))
    parts: list[GridScores] = []
    for category, members in categories.items():
        own = [pairs[index] for index in members]
        maps: MapSource = MapsInMemory({})  # a finished category asks for none
        if not ledger.done.issuperset(pair.target for pair in own):
            if stream is None:
                stream = open_stream(store, dataset, tuple(categories), grid.maps, request)
            images = sorted({image for pair in own for image in (pair.source, pair.target)})
            maps = stream.maps_of([store.images.row(image) for image in images], progress)
        progress.start(f"matching {category}", len(own), "pairs")
        parts.append(_score(own, maps, grid, ledger, request.compute, progress))
    return joined(parts)


def _score(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    grid: Grid,
    ledger: StoredLedger,
    compute: Compute,
    progress: Progress,
) -> GridScores:
    return score_grid(
        pairs, maps, grid.configurations, grid.readouts, grid.alphas, compute.device, ledger, progress.advance
    )


@dataclass(frozen=True, slots=True)
class GridCost:
    """What a grid takes. images: distinct ones. maps: what making the missing ones takes. peak_bytes: memory at most,
    about, the networks' weights apart."""

    images: int
    maps: MapsCost
    peak_bytes: int


Found = Mapping[str, FoundBackbone]
"""Other backbones than the store's model, by family (`featstore.pipeline.needed.find_backbones`)."""


def cost_cached(
    store: Store, extractor: Extractor, pairs: Sequence[Pair], grid: Grid, prompt: Prompts, found: Found
) -> GridCost:
    """Of a grid whose maps are kept; nothing is written, no weights are loaded."""
    rows = [store.images.row(image) for image in images_of(pairs)]
    shapes = _map_shapes(store, extractor, grid, found)
    kept = min(KEPT_BYTES, _largest_category(pairs) * _image_bytes(extractor, shapes))
    peak = kept + _working_bytes(extractor, pairs, grid, shapes)
    return GridCost(len(rows), estimate_maps(store, rows, grid.maps, extractor, prompt, found), peak)


def cost_streamed(
    store: Store, extractor: Extractor, pairs: Sequence[Pair], grid: Grid, prompt: Prompts, found: Found
) -> GridCost:
    """Of a grid whose maps are never written, a category's at a time in memory."""
    rows = [store.images.row(image) for image in images_of(pairs)]
    encode = len(missing_latents(store, rows))
    passes = len(rows) * len(sharing_a_pass(grid.diffusion_maps, prompt.differ_by_layer)) * extractor.ensemble
    others = dict.fromkeys(found, len(rows))
    maps = MapsCost(encode, 0, passes, encode * store.latents().row_bytes, encode, others)
    shapes = _map_shapes(store, extractor, grid, found)
    kept = _largest_category(pairs) * _image_bytes(extractor, shapes)
    return GridCost(len(rows), maps, kept + _working_bytes(extractor, pairs, grid, shapes))


def _largest_category(pairs: Sequence[Pair]) -> int:
    """Images of the category that has most."""
    images: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        images[pair.category] |= {pair.source, pair.target}
    return max(map(len, images.values()))


def _image_bytes(extractor: Extractor, shapes: Sequence[Sequence[int]]) -> int:
    """Of all maps of one image as they are read: float16, or float32 of those that are kept as int8."""
    return encoding_for(extractor.stored.value).read_dtype.itemsize * sum(map(math.prod, shapes))


def _working_bytes(extractor: Extractor, pairs: Sequence[Pair], grid: Grid, shapes: Sequence[Sequence[int]]) -> int:
    """Of maps (one target's in float32, three as read), the descriptors of a category, and correlations."""
    channels = sum(shape[0] for shape in shapes)
    points = _largest_category(pairs) * max(len(pair.source_points) for pair in pairs)
    rows = 4 if Readout.BILINEAR in grid.readouts else 1
    return LIBRARIES + 5 * _image_bytes(extractor, shapes) + 4 * points * rows * channels + 3 * 4 * BLOCK_CELLS


def _map_shapes(store: Store, extractor: Extractor, grid: Grid, found: Found) -> list[tuple[int, ...]]:
    """Of every map of one image: from the store where it has such maps, else from the model, which is then looked
    for."""
    others = {layer: shape.map for one in found.values() for layer, shape in one.shapes.items()}
    shapes: list[tuple[int, ...]] = []
    for layer, timestep in grid.maps:
        array = None if layer in others else store.maps(extractor, layer, timestep)
        if layer in others:
            shapes.append(others[layer])
        elif array is not None:
            shapes.append(array.row_shape)
        else:
            shapes.append(model_of(store).shape(layer, store.header.image_size).map)
    return shapes


def choose_some(pairs: tuple[Pair, ...], count: int | None) -> tuple[Pair, ...]:
    """`count` of the pairs, drawn without replacement by a fixed seed, in their order; all where there are no more or
    none is said."""
    if count is None or count >= len(pairs):
        return pairs
    drawn = np.random.default_rng(0).choice(len(pairs), size=count, replace=False)
    return tuple(pairs[index] for index in sorted(drawn))
