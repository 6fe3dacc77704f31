"""`grid`: which layer, which timestep, which together, with which weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featstore.backbones.base import Asked
from featstore.backbones.registry import is_diffusion, is_other
from featstore.config import ENSEMBLE, EvalConfig, GridConfig
from featstore.datasets.records import canonical_split
from featstore.errors import ImageError
from featstore.pair_list import note_oddities
from featstore.pipeline.defaults import (
    check_kept,
    check_names,
    choose_compute,
    dataset_of,
    find_readouts,
    unet_layers,
    weights_for,
)
from featstore.pipeline.distributed import join_processes
from featstore.pipeline.evaluate import (
    choose_pairs,
    default_split,
    describe_features,
    describe_others,
    images_of,
    in_frame_of_store,
    unreadable,
    without_images,
)
from featstore.pipeline.grid import (
    Grid,
    GridCost,
    choose_some,
    cost_cached,
    cost_streamed,
    grid_ledger,
    score_cached,
    score_streamed,
)
from featstore.pipeline.images import check_unchanged
from featstore.pipeline.needed import find_backbones, make_latents, require_maps
from featstore.pipeline.pairwise import PairMaps, open_pair_maps, score_grid_pairwise
from featstore.pipeline.plan import MapRequest, extractor_of
from featstore.pipeline.prompt_choice import PromptChoice, TypedPrompts, choose_for_store
from featstore.pipeline.told import tell_disk, tell_left_out, tell_pairwise_cost
from featstore.plain_text import human_bytes
from featstore.progress import Progress, Silent
from featstore.store.keys import PixelExtractor, Stored, absolute, parse_location
from featstore.store.source import StoredMaps
from featstore.store.store import Store, open_store
from matcher.configuration import Configuration, Geometry, MatchSettings, all_layers_fused, angles, one_layer_each
from matcher.errors import InputError
from matcher.grid import GridScores


@dataclass(frozen=True, slots=True)
class GridRun:
    """A grid's scores and what they are of.

    Args:
        dataset: Its name.
        split: Whose pairs were matched.
        scores: Of every configuration, readout and alpha.
        features: Where the maps came from, for the record.
        config: As it was used: what was left open is settled.
        theta: The data set's rule.
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
    """Score every layer at every timestep, and all layers together at every choice of timesteps and weights.

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
    timesteps = _timesteps(config)
    find_readouts(config.readouts)
    weightings = _weightings(config)
    compute, stored = choose_compute(config), Stored(config.stored)
    store = open_store(parse_location(config.store))
    numbers = unet_layers(config.layers)
    choice = choose_for_store(store, TypedPrompts(numbers, timesteps, config.prompt, config.prompts, config.fallback))
    if numbers:
        progress.tell(choice.line)
    if choice.prompts is None:
        check_kept(config.stored, "prompts of pairs (cpm)")
    dataset = dataset_of(store, config.root)
    split = canonical_split(config.split or ("val" if "val" in dataset.splits else dataset.splits[-1]))
    pairs = choose_some(choose_pairs(dataset, split, config.categories or ()), config.max_pairs)
    choice.check_categories({pair.category for pair in pairs})
    tried = _tried(config, timesteps, weightings, store.header.image_size)
    progress.tell(
        f"{len(tried.configurations)} configurations, {len(pairs)} pairs of {dataset.name} {split}; "
        f"prompt {choice.label!r}, ensemble {config.ensemble}, model {store.header.model_id}, "
        f"images resized to {store.header.image_size} pixels"
    )
    if split == "test":
        progress.tell("note: this chooses on test; choose on val where there is one, and report on test")
    images = images_of(pairs)
    processes = join_processes()
    progress = progress if processes.is_main else Silent()
    share = processes.part.of(images)
    check_unchanged(store, dataset, share, progress)
    everything = in_frame_of_store(store, dataset, pairs, progress)
    note_oddities(dataset, [split], images, store.images.known_keys, progress)
    rows = [store.images.row(image) for image in share]
    text = choice.prompts
    bad: Sequence[ImageError] = ()
    extractor = None if text is None else extractor_of(store, text, config.ensemble, compute, stored)
    others_asked = {"dino": Asked(config.dino, config.dino_size)}
    request = MapRequest(text, config.ensemble, compute, stored, others_asked)
    if text is None or extractor is None:
        tell_pairwise_cost(progress, len(pairs), len(tried.diffusion_maps), config.ensemble)
    else:
        found = find_backbones(store, config.layers, request)
        cost = (cost_streamed if config.stream else cost_cached)(store, extractor, pairs, tried, text, found)
        _tell_cost(progress, cost, store)
        processes.wait()  # what it takes is counted before it is begun
    others: Mapping[str, PixelExtractor] = {}
    if config.stream and text is not None:
        bad = make_latents(store, dataset, rows, compute, progress)
        others = {family: one.extractor for family, one in found.items()}
    else:  # what is made pair by pair is not kept
        kept = [key for key in tried.maps if text is not None or not is_diffusion(key[0])]
        made = require_maps(store, dataset, rows, kept, request, progress)
        bad, others = made.bad, made.others
    bad = unreadable(*processes.gather(bad))  # from here on all processes find all maps
    if bad and not config.skip_bad:
        raise bad[0]
    framed = without_images(everything, bad)
    tell_left_out(progress, bad, len(pairs), len(framed))
    features = {
        **(describe_features(store, extractor, choice.describe(), config.ensemble, compute) if numbers else {}),
        **describe_others(others.values()),
    }
    ledger = grid_ledger(store, framed, tried, features)
    if ledger.done:
        finished = f"{len(ledger.done)} of {len(ledger.pairs)} target images"
        progress.tell(f"{finished} were finished before: going on from there")
    if text is None or extractor is None:
        learned = choice.learned
        assert learned is not None, "only learned prompts belong to pairs"

        def open_maps() -> PairMaps:
            return open_pair_maps(
                store,
                dataset,
                framed,
                tried.diffusion_maps,
                learned,
                config.dino,
                config.ensemble,
                compute,
                progress,
                processes,
                {layer: StoredMaps(store, None, others) for layer in config.layers if is_other(layer)},
            )

        scores = score_grid_pairwise(framed, open_maps, tried, ledger, compute, progress, processes)
    elif config.stream:
        scores = score_streamed(store, dataset, framed, tried, request, ledger, progress, processes)
    else:
        scores = score_cached(StoredMaps(store, extractor, others), framed, tried, ledger, compute, progress, processes)
    used = replace(config, timesteps=timesteps, weightings=weightings, split=split, **_named(choice))
    reported = default_split(dataset)
    return GridRun(
        dataset.name,
        split,
        scores,
        features,
        used,
        dataset.theta_rule.value,
        absolute(store.path),
        _evaluation(config, choice, reported),
        split != reported,
        ledger.forget,
    )


def _timesteps(config: GridConfig) -> tuple[int, ...]:
    check_names(config.layers)
    if config.timesteps is None and not all(map(is_other, config.layers)):
        raise InputError("A grid needs timesteps: say which with --t, e.g. --t 50..400.")
    return tuple(dict.fromkeys(config.timesteps or ()))


def _weightings(config: GridConfig) -> tuple[tuple[float, ...], ...]:
    """A weight per layer each; for `sweep` 11 angles between two layers; the report's where none is given."""
    if len(config.layers) == 1 and config.weightings is not None:
        raise InputError("--weights weighs several layers, but --layers names one.")
    if config.weightings is None:
        return (weights_for(config.layers, None),)
    if config.weightings == "sweep":
        if len(config.layers) != 2:
            raise InputError(f"--weights sweep goes from one layer to the other of two, not {len(config.layers)}.")
        return angles()
    return tuple(dict.fromkeys(weights_for(config.layers, own) for own in config.weightings))


def _tried(
    config: GridConfig, timesteps: tuple[int, ...], weightings: tuple[tuple[float, ...], ...], image_size: int
) -> Grid:
    steps = {layer: (None,) if is_other(layer) else timesteps for layer in config.layers}
    configurations: list[Configuration] = []
    for shape in map(Geometry, dict.fromkeys(config.geometries)):
        for factor in dict.fromkeys(config.upsamples):
            settings = MatchSettings(image_size, shape, factor, Geometry(config.upsample_align or shape.value))
            configurations += one_layer_each(steps, settings)
            if len(steps) > 1:
                configurations += all_layers_fused(steps, weightings, settings)
    return Grid(tuple(configurations), find_readouts(config.readouts), config.alphas)


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
    return EvalConfig(
        store=config.store,
        root=config.root,
        dtype=config.dtype,
        stored=config.stored,
        fallback=config.fallback,
        dino=config.dino,
        ensemble=None if config.ensemble == ENSEMBLE else config.ensemble,
        split=split,
        **_named(choice),
    )
