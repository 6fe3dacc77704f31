"""A grid on a store: every configuration on a split's pairs, from cached maps or from maps that are never written."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from matcher.configuration import Configuration, readout
from matcher.correlate import BLOCK_CELLS
from matcher.grid import GridScores, Hits, score_grid
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair, Pairs
from matcher.sweep import KEPT_BYTES

LIBRARIES = 500_000_000
"""Bytes that Python and torch take on their own, about."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried: configurations, readouts and alphas (fractions of theta)."""

    configurations: tuple[Configuration, ...]
    readouts: tuple[str, ...]
    alphas: tuple[float, ...]

    def scores(self, pairs: Pairs, hits: Hits) -> GridScores:
        """With what was found for some pairs: (configurations, readouts, alphas, pairs)."""
        return GridScores(pairs, self.configurations, self.readouts, self.alphas, hits)

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
    pairs = Pairs.of(pairs)

    def score(rows: Sequence[int]) -> tuple[Sequence[int], Hits]:
        progress.start("matching", len(rows), "pairs")
        return rows, _hits(pairs.take(rows), maps, grid, ledger, compute, progress)

    shares = by_target(pairs, processes.count, done_before(ledger, processes))
    rows, hits = score_shares(shares, grid, processes, score)
    return grid.scores(pairs, hits[..., np.argsort(rows)])


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
    pairs = Pairs.of(pairs)

    def score(rows: Sequence[int]) -> tuple[Sequence[int], Hits]:
        # loading the model's libraries takes seconds, and a grid that was finished before needs none
        from featstore.pipeline.stream import MapStream, open_stream

        stream: MapStream | None = None
        categories = pairs.grouped("category", rows)
        parts: list[Hits] = []
        for category, members in categories.items():
            own = pairs.take(members)
            maps: MapSource = MapsInMemory({})  # a finished category asks for none
            if not ledger.done.issuperset(own.grouped("target")):
                if stream is None:
                    stream = open_stream(store, dataset, tuple(categories), grid.maps, request)
                images = sorted({*own.grouped("source"), *own.grouped("target")})
                maps = stream.maps_of([store.images.row(image) for image in images], progress)
            progress.start(f"matching {category}", len(own), "pairs")
            parts.append(_hits(own, maps, grid, ledger, request.compute, progress))
        return [row for members in categories.values() for row in members], np.concatenate(parts, axis=-1)

    shares = by_category(pairs, processes.count, done_before(ledger, processes))
    rows, hits = score_shares(shares, grid, processes, score)
    return grid.scores(pairs.take(rows), hits)


def done_before(ledger: StoredLedger, processes: Processes) -> frozenset[str]:
    """The target images that were finished before any process went on: the first one's word, so that all divide the
    others alike."""
    return processes.gather(ledger.done)[0]


def score_shares(
    shares: Shares, grid: Grid, processes: Processes, score: Callable[[Sequence[int]], tuple[Sequence[int], Hits]]
) -> tuple[list[int], Hits]:
    """The hits of all pairs, of which each process scores its share: one share after the other. score: from places of
    pairs to their hits, in an order of its own. Raises `ProcessError` where another process ended early."""
    own = shares[processes.rank]
    found = score(own) if own else ([], np.zeros((*grid.shape, 0), dtype=np.uint16))
    parts = processes.gather(found)
    return [row for rows, _ in parts for row in rows], np.concatenate([hits for _, hits in parts], axis=-1)


def _hits(
    pairs: Pairs, maps: MapSource, grid: Grid, ledger: StoredLedger, compute: Compute, progress: Progress
) -> Hits:
    return score_grid(
        pairs, maps, grid.configurations, grid.readouts, grid.alphas, compute.device, ledger, progress.advance
    ).hits


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
    rows = max(readout(name).rows for name in grid.readouts)
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
