"""`grid`: which layer, which timestep, which together, with which weights; scored from cached maps, from maps that are
never written, or from those of prompts that belong to pairs."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from featstore.backbones.base import MapKey
from featstore.backbones.layers import weights_for
from featstore.backbones.registry import is_diffusion, is_other
from featstore.config import ENSEMBLE, EvalConfig, GridConfig
from featstore.datasets.records import Dataset, canonical_split
from featstore.errors import ImageError
from featstore.pipeline.adapted import UsedAdapter
from featstore.pipeline.distributed import ALONE, Processes, Shares, by_category, by_target, in_blocks
from featstore.pipeline.evaluate import PairMaps, open_pair_maps, tell_pairwise_cost
from featstore.pipeline.needed import (
    MapsCost,
    estimate_maps,
    find_backbones,
    make_latents,
    model_of,
    open_stream,
    require_maps,
)
from featstore.pipeline.opened import Opened, PromptChoice, open_asked, take_pairs
from featstore.pipeline.pairs import RULES, choose_pairs, choose_some, default_split
from featstore.pipeline.plan import FoundBackbone, MapRequest, Work, extractor_of, missing_latents, sharing_a_pass
from featstore.pipeline.sources import StoredLedger, StoredMaps, open_ledger
from featstore.plain_text import human_bytes
from featstore.progress import Progress, Silent, tell_disk
from featstore.prompts.base import Prompts
from featstore.store.keys import Extractor, PixelExtractor, absolute
from featstore.store.rows import DTYPE
from featstore.store.store import Store
from matcher.configuration import (
    Configuration,
    Geometry,
    LayerSpec,
    MatchSettings,
    Pad,
    all_layers_fused,
    angles,
    find_readouts,
    one_layer_each,
    readout,
)
from matcher.correlate import BLOCK_CELLS
from matcher.errors import InputError
from matcher.grid import GridScores, Hits, score_grid
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair, Pairs
from matcher.sweep import KEPT_BYTES

LIBRARIES = 500_000_000
"""Bytes that Python and torch take on their own, about."""
HIT_BYTES, PREDICTION_BYTES = 6, 80
"""Of one number that is scored, which is copied when all are put in order, and of one point's prediction, about."""

LAYERS = ("2", "3")
"""What is tried where nobody says otherwise."""

MOST_TOGETHER = 4096
"""Configurations of three layers or more together that a sweep tries; where every choice of timesteps would be more,
all layers take the same one."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried: configurations, readouts and alphas (fractions of theta)."""

    configurations: tuple[Configuration, ...]
    readouts: tuple[str, ...]
    alphas: tuple[float, ...]

    @property
    def axes(self) -> tuple[tuple[Configuration, ...], tuple[str, ...], tuple[float, ...]]:
        """Configurations, readouts, alphas: those of hits."""
        return self.configurations, self.readouts, self.alphas

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many of each."""
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
    strict = {"strict": True} if Pairs.of(pairs).strict else {}
    return open_ledger(store, pairs, grid.shape, {"grid": repr(grid), "features": dict(features), **strict})


Scored = Iterator[tuple[Sequence[int], Hits]]
"""Places of pairs, and their hits."""


@dataclass(frozen=True, slots=True)
class GridWork:
    """A grid that is scored on pairs, of which each process takes its share and all get the whole; target images that
    the ledger has finished are not matched again.

    Args:
        pairs: That are scored.
        grid: What is tried.
        ledger: What is done already.
        device: Where it is matched.
        progress: Who is told how far it is.
        processes: That share the work.
    """

    pairs: Pairs
    grid: Grid
    ledger: StoredLedger
    device: torch.device
    progress: Progress
    processes: Processes = ALONE

    def cached(self, maps: MapSource) -> GridScores:
        """Score from maps that are all in the store, in the order of the pairs."""

        def score(rows: Sequence[int]) -> Scored:
            self.progress.start("matching", len(rows), "pairs")
            yield rows, self._hits(rows, maps)

        rows, hits = self._shared(by_target(self.pairs, self.processes.count, self._done()), score)
        return self._scores(range(len(rows)), hits[..., np.argsort(rows)])

    def streamed(
        self, store: Store, dataset: Dataset, request: MapRequest, adapted: Callable[[MapSource], MapSource]
    ) -> GridScores:
        """Score a category at a time, whose maps are made, kept in memory and let go; latents must be cached.

        Categories that the ledger has finished are not made again. The scores come category by category. Of several
        processes each takes whole categories. adapted: what is matched in place of the maps that are made.
        """

        def score(rows: Sequence[int]) -> Scored:
            # its libraries take seconds to load, and a grid that was finished before needs none
            stream = cache(lambda: open_stream(store, dataset, tuple(categories), self.grid.maps, request))
            categories = self.pairs.grouped("category", rows)
            for category, members in categories.items():
                maps: MapSource = MapsInMemory({})  # a finished category asks for none
                targets = self.pairs.grouped("target", members)
                if not self.ledger.done.issuperset(targets):
                    images = sorted({*self.pairs.grouped("source", members), *targets})
                    maps = adapted(stream().maps_of([store.images.row(image) for image in images], self.progress))
                self.progress.start(f"matching {category}", len(members), "pairs")
                yield members, self._hits(members, maps)

        return self._scores(*self._shared(by_category(self.pairs, self.processes.count, self._done()), score))

    def pairwise(self, open_maps: Callable[[], PairMaps]) -> GridScores:
        """Score from maps that belong to pairs, a target image at a time. open_maps: called once, by all processes,
        where a pair is left to be scored."""
        targets, finished = self.pairs.grouped("target"), self._done()
        left = [target not in finished for target in targets]
        maps = open_maps() if any(left) else None

        def score(rows: Sequence[int]) -> Scored:
            self.progress.start("UNet passes and matching", len(rows), "pairs")
            tried = *self.grid.axes, self.device
            for target, members in self.pairs.grouped("target", rows).items():
                done = self.ledger.load(target)
                if done is None:
                    assert maps is not None, "something was left"
                    made = maps.of(self.pairs.take(members))
                    done = np.concatenate([score_grid([pair], of_pair, *tried).hits for pair, of_pair in made], axis=-1)
                    self.ledger.save(target, done)
                else:
                    self.progress.advance(len(members))
                yield members, done

        return self._scores(*self._shared(in_blocks(list(targets.values()), left, self.processes.count), score))

    def _done(self) -> frozenset[str]:
        """The target images that were finished before any process went on: the first one's word, so that all divide the
        others alike."""
        return self.processes.gather(self.ledger.done)[0]

    def _shared(self, shares: Shares, score: Callable[[Sequence[int]], Scored]) -> tuple[list[int], Hits]:
        """The hits of all pairs: one share after the other. score: from places of pairs to their hits, in an order of
        its own. Raises `ProcessError` where another process ended early."""
        own = shares[self.processes.rank]
        parts = [part for theirs in self.processes.gather([*score(own)] if own else []) for part in theirs]
        none = np.zeros((*self.grid.shape, 0), dtype=np.uint16)
        return [row for rows, _ in parts for row in rows], np.concatenate([none, *(hits for _, hits in parts)], axis=-1)

    def _hits(self, rows: Sequence[int], maps: MapSource) -> Hits:
        shared = self.device, self.ledger, self.progress.advance
        return score_grid(self.pairs.take(rows), maps, *self.grid.axes, *shared).hits

    def _scores(self, rows: Sequence[int], hits: Hits) -> GridScores:
        return GridScores(self.pairs.take(rows), *self.grid.axes, hits)


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
    store: Store, extractor: Extractor, pairs: Pairs, grid: Grid, prompt: Prompts, found: Found
) -> GridCost:
    """Of a grid whose maps are kept; nothing is written, no weights are loaded."""
    rows, category, image_bytes, working = _sizes(store, extractor, pairs, grid, found)
    maps = estimate_maps(store, rows, grid.maps, extractor, prompt, found)
    return GridCost(len(rows), maps, min(KEPT_BYTES, category * image_bytes) + working)


def cost_streamed(
    store: Store, extractor: Extractor, pairs: Pairs, grid: Grid, prompt: Prompts, found: Found
) -> GridCost:
    """Of a grid whose maps are never written, a category's at a time in memory."""
    rows, category, image_bytes, working = _sizes(store, extractor, pairs, grid, found)
    encode = len(missing_latents(store, rows))
    passes = len(rows) * len(sharing_a_pass(grid.diffusion_maps, prompt.differ_by_layer)) * extractor.ensemble
    maps = MapsCost(encode, passes, encode * store.latents().row_bytes, encode, dict.fromkeys(found, len(rows)))
    return GridCost(len(rows), maps, category * image_bytes + working)


def _sizes(
    store: Store, extractor: Extractor, pairs: Pairs, grid: Grid, found: Found
) -> tuple[list[int], int, int, int]:
    """The images' rows; the images of the category that has most; bytes of all maps of one image as they are read
    (float16); bytes of maps (one target's in float32, three as read), the descriptors of a category, correlations,
    and what all configurations predict for a target and have scored."""
    most = max(len(np.union1d(pairs.source[own], pairs.target[own])) for own in pairs.occurring.values())
    rows = sorted(store.images.row(pairs.images[place]) for place in np.union1d(pairs.source, pairs.target))
    others = {layer: shape.map for one in found.values() for layer, shape in one.shapes.items()}

    def shape_of(layer: str, timestep: int | None) -> tuple[int, ...]:
        """From the store where it has such maps, else from the model, which is then looked for."""
        array = None if layer in others else store.maps(extractor, layer, timestep)
        if array is not None:
            return array.row_shape
        return others[layer] if layer in others else model_of(store).shape(layer, store.header.image_size).map

    shapes = {key: shape_of(*key) for key in grid.maps}
    image_bytes = DTYPE.itemsize * sum(map(math.prod, shapes.values()))
    # layers that are fused are sampled otherwise than alone, so each family of configurations has its own descriptors
    sampled = {
        (tuple(of.layer for of in one.layers), of.layer, of.timestep)
        for one in grid.configurations
        for of in one.layers
    }
    channels = sum(shapes[layer, timestep][0] for _, layer, timestep in sampled)
    descriptors = most * int(pairs.counts.max()) * max(readout(name).rows for name in grid.readouts)
    into_one = int(np.bincount(pairs.target, weights=pairs.counts).max())
    scored = math.prod(grid.shape) * len(pairs) * HIT_BYTES
    predicted = math.prod(grid.shape[:2]) * into_one * PREDICTION_BYTES
    working = LIBRARIES + 5 * image_bytes + 4 * descriptors * channels + 3 * 4 * BLOCK_CELLS + scored + predicted
    return rows, most, image_bytes, working


@dataclass(frozen=True, slots=True)
class GridRun:
    """A grid's scores and what they are of.

    Args:
        dataset: Its name.
        split: Whose pairs were matched.
        scores: Of every configuration, readout and alpha.
        features: Where the maps came from, for the record.
        config: As it was used: what was left open is settled.
        theta: The rule for theta, in words.
        store: Where the store lies.
        evaluation: The evaluation that the best configuration is reported with, on the split for reporting.
        chose_nothing: Whether that is another split than the grid's.
        forget: Lets go of what the store keeps to go on with; call it once the scores are kept.
    """

    dataset: str
    split: str
    scores: GridScores
    features: Mapping[str, Any]
    config: GridConfig
    theta: str
    store: str
    evaluation: EvalConfig
    chose_nothing: bool
    forget: Callable[[], None]


def grid(config: GridConfig, progress: Progress | None = None) -> GridRun:
    """Score every layer at every timestep, and layers together at every choice of timesteps and weights: every two of
    them and all, or, where weights are given, all alone.

    Costs one UNet pass per image, noise draw and timestep, and one matrix product per map and target image; every
    further combination is a weighted sum. May be stopped at any time: the same call goes on.

    Args:
        config: What is tried, and on what.
        progress: Who is told how far it is; None for nobody.

    Returns:
        The scores of all configurations.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    progress = Silent() if progress is None else progress
    if config.adapter is None:
        config = replace(config, layers=config.layers or LAYERS)
        _together(config, dict.fromkeys(config.layers or (), (None,)))  # refuses, before anything is opened
    opened = open_asked(config, progress)
    _check_adapter(opened.adapter)
    config = replace(config, layers=opened.names)
    steps = _timesteps(config, opened)
    store, dataset, choice, request = opened.store, opened.dataset, opened.choice, opened.request
    split = canonical_split(config.split or ("val" if "val" in dataset.splits else dataset.splits[-1]))
    tried = _tried(config, steps, store.header.image_size, store.header.pad)
    pairs = choose_some(choose_pairs(dataset, split, config.categories or ()), config.max_pairs)
    progress.tell(
        f"{len(tried.configurations)} configurations, {len(pairs)} pairs of {dataset.name} {split}; "
        f"prompt {choice.label!r}, ensemble {request.ensemble}, model {store.header.model_id}, "
        f"images {'padded' if store.header.pad is Pad.SQUARE else 'resized'} to {store.header.image_size} pixels"
    )
    progress.tell(f"configurations by layers: {_by_layers(tried)}")
    if split == "test":
        progress.tell("note: this chooses on test; choose on val where there is one, and report on test")
    listed = take_pairs(opened, split, pairs, progress, config)
    del pairs  # from here on they are columns
    progress, processes, compute, prompts = listed.progress, listed.processes, request.compute, request.prompt
    extractor: Extractor | None = None
    bad: Sequence[ImageError] = ()
    others: Mapping[str, PixelExtractor] = {}
    if prompts is None:
        tell_pairwise_cost(progress, listed.count, len(tried.diffusion_maps), request.ensemble)
    else:
        extractor = extractor_of(store, prompts, request.ensemble, compute, request.encoding)
        found = find_backbones(store, opened.names, request)
        others = {family: one.extractor for family, one in found.items()}
        cost = (cost_streamed if config.stream else cost_cached)(store, extractor, listed.pairs, tried, prompts, found)
        _tell_cost(progress, cost, store)
        processes.wait()  # what it takes is counted before it is begun
    if config.stream and prompts is not None:
        bad = make_latents(Work(store, dataset, compute, progress), listed.rows)[1]
    else:  # what is made pair by pair is not kept
        kept = [key for key in tried.maps if prompts is not None or not is_diffusion(key[0])]
        made = require_maps(store, dataset, listed.rows, kept, request, progress)
        bad, others = made.bad, made.others
    framed = listed.without(processes.gather_bad(bad, config.skip_bad))  # from here on all processes find all maps
    features = opened.describe(extractor, others)
    ledger = grid_ledger(store, framed, tried, features)
    if ledger.done:
        finished = f"{len(ledger.done)} of {len(ledger.pairs)} target images"
        progress.tell(f"{finished} were finished before: going on from there")
    stored = StoredMaps(store, extractor, others)
    work = GridWork(framed, tried, ledger, compute.device, progress, processes)
    if prompts is None:
        beside = {layer: stored for layer in opened.names if is_other(layer)}
        scores = work.pairwise(lambda: open_pair_maps(opened, listed, framed, tried.diffusion_maps, beside))
    else:
        layers = [LayerSpec(*key) for key in tried.maps]
        if config.stream:
            scores = work.streamed(store, dataset, request, partial(opened.adapted, layers=layers))
        else:
            scores = work.cached(opened.adapted(stored, layers))
    reported = default_split(dataset)
    timesteps = tuple(dict.fromkeys(config.timesteps or ()))
    weightings = config.weightings or ("sweep" if len(opened.names) > 1 else None)
    return GridRun(
        dataset.name,
        split,
        scores,
        features,
        replace(config, timesteps=timesteps or None, weightings=weightings, split=split, **_named(choice)),
        (dataset.theta_rule if config.theta is None else RULES[config.theta]).value,
        absolute(store.path),
        _evaluation(config, choice, reported),
        split != reported,
        ledger.forget,
    )


def _check_adapter(adapter: UsedAdapter | None) -> None:
    """Raise `InputError` for one of which there is nothing to be tried."""
    if adapter is not None and adapter.spec.kind != "residual":
        what = "weights alone, and a grid tries its own" if adapter.is_plain else "a network for these maps together"
        raise InputError(
            f"The adapter {adapter.path} is {what}: `dualsd eval --adapter {adapter.path}` scores it; a grid tries "
            "residual ones, whose blocks are used at any timestep."
        )


Steps = dict[str, tuple[int | None, ...]]
"""Timesteps by layer, (None,) for one that has none."""
Fused = list[tuple[Steps, tuple[tuple[float, ...], ...]]]
"""Choices of timesteps of layers that are fused, each with its weightings."""


def _timesteps(config: GridConfig, opened: Opened) -> Steps:
    if opened.store.header.model_unet is not None or None in (config.timesteps or ()):
        return {layer: (timestep,) for layer, timestep in opened.keys(config.timesteps)}  # (None,) each, or refused
    if config.timesteps is None and not all(map(is_other, opened.names)):
        raise InputError("A grid needs timesteps: say which with --t, e.g. --t 50..400.")
    timesteps = tuple(dict.fromkeys(config.timesteps or ()))
    return {layer: (None,) if is_other(layer) else timesteps for layer in opened.names}


def _together(config: GridConfig, steps: Steps) -> Fused:
    """Where weights are given, all layers; in a sweep every two, with 11 angles from one to the other, and of three or
    more all, with equal weights and with each one doubled."""
    layers, typed = tuple(steps), config.weightings
    if len(layers) == 1:
        if typed is not None:
            raise InputError("--weights weighs several layers, but --layers names one.")
        return []
    if typed is not None and typed != "sweep":
        return [(steps, tuple(dict.fromkeys(weights_for(layers, own) for own in typed)))]
    found: Fused = [({layer: steps[layer] for layer in two}, angles()) for two in itertools.combinations(layers, 2)]
    if len(layers) > 2:
        doubled = (tuple(2.0 if other == layer else 1.0 for other in layers) for layer in layers)
        weights = ((1.0,) * len(layers), *doubled)
        choices = [steps]
        if math.prod(map(len, steps.values())) * len(weights) > MOST_TOGETHER:
            every = max(steps.values(), key=len)
            choices = [{layer: (step,) if len(own) > 1 else own for layer, own in steps.items()} for step in every]
        found += [(choice, weights) for choice in choices]
    return found


def _tried(config: GridConfig, steps: Steps, image_size: int, pad: Pad) -> Grid:
    together = _together(config, steps)
    configurations: list[Configuration] = []
    for shape in map(Geometry, dict.fromkeys(config.geometries)):
        for factor in dict.fromkeys(config.upsamples):
            align, said = Geometry(config.upsample_align or shape.value), config.parameters(*config.readouts)
            settings = MatchSettings(image_size, shape, factor, align, pad=pad, **said)
            configurations += one_layer_each(steps, settings)
            for choice, weights in together:
                configurations += all_layers_fused(choice, weights, settings)
    return Grid(tuple(configurations), find_readouts(config.readouts, pad), config.alphas)


def _by_layers(grid: Grid) -> str:
    """How many configurations there are of which layers."""
    counts = Counter("+".join(layer.layer for layer in one.layers) for one in grid.configurations)
    return "; ".join(f"layer{'s' * ('+' in layers)} {layers}: {count}" for layers, count in counts.items())


def _tell_cost(progress: Progress, cost: GridCost, store: Store) -> None:
    """What it takes, before it starts."""
    maps = cost.maps
    others = "".join(f", {count} {family} passes" for family, count in maps.others.items())
    progress.tell(
        f"{cost.images} images: {maps.encode} to encode (VAE passes), {maps.passes} UNet passes{others}; "
        f"peak memory about {human_bytes(cost.peak_bytes)} besides the networks; {human_bytes(maps.bytes_to_write)} in "
        f"{maps.files_to_write} files to write"
    )
    if maps.bytes_to_write:
        tell_disk(progress, store.path, maps.bytes_to_write)


def _named(choice: PromptChoice) -> dict[str, Any]:
    """The prompts that were chosen, as a config names them."""
    return {"prompt": choice.label, "prompts": None} if choice.source is None else {"prompts": choice.source}


def _evaluation(config: GridConfig, choice: PromptChoice, split: str) -> EvalConfig:
    """The evaluation that has the grid's maps, of no layers yet."""
    same = {
        name: getattr(config, name)
        for name in ("store", "root", "dtype", "encoding", "fallback", "dino", "theta", "strict", "adapter")
    }
    ensemble = None if config.ensemble == ENSEMBLE else config.ensemble
    if config.beta or config.sigma or config.window is not None:  # only the readouts that were tried may have them
        same |= {name: getattr(config, name) for name in ("readouts", "beta", "sigma", "window")}
    return EvalConfig(**same, ensemble=ensemble, split=split, **_named(choice))
