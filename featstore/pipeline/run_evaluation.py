"""`evaluate`: PCK of a split's pairs, from a store's maps or from anybody's features."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featstore.backbones.base import Asked, Compute
from featstore.backbones.registry import is_diffusion
from featstore.config import ENSEMBLE, EvalConfig, given_options
from featstore.datasets.records import canonical_split
from featstore.datasets.registry import open_dataset
from featstore.pair_list import note_oddities
from featstore.pipeline.defaults import (
    LEARNED_TIMESTEPS,
    TEXT_TIMESTEPS,
    check_kept,
    choose_compute,
    dataset_of,
    find_readouts,
    timesteps_for,
    unet_layers,
    weights_for,
)
from featstore.pipeline.distributed import join_processes
from featstore.pipeline.evaluate import (
    Evaluation,
    Scoring,
    choose_pairs,
    default_split,
    describe_features,
    describe_others,
    images_of,
    in_frame_of_store,
    in_resized_frame,
    keys_from_files,
    score,
    sizes_from_files,
    unreadable,
    without_images,
)
from featstore.pipeline.images import check_unchanged
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest
from featstore.pipeline.prompt_choice import PromptChoice, TypedPrompts, choose_for_store, layers_of
from featstore.pipeline.told import tell_left_out, tell_pairwise_cost, tell_shapes
from featstore.progress import Progress, Silent
from featstore.store.keys import Stored, absolute, parse_location
from featstore.store.source import StoredMaps, open_features
from featstore.store.store import Store, open_store
from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.errors import InputError

OF_A_STORE = ("timesteps", "prompt", "prompts", "fallback", "ensemble", "dino", "dino_size")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation and what it was of.

    Args:
        result: The numbers.
        config: As it was used: what was left open is settled.
        theta: The data set's rule.
        store: Where the maps' store lies; None for features from a file.
        root: The data set's folder; None for one that has none.
    """

    result: Evaluation
    config: EvalConfig
    theta: str
    store: str | None
    root: Path | None


def evaluate(config: EvalConfig, progress: Progress | None = None) -> Evaluated:
    """Match the keypoints of a split's pairs and score them.

    Maps, noisy latents and latents that are not cached are made and kept. With `features` no store and no model is
    needed. Of several processes (torchrun) each makes and matches its share, and all get the whole.

    Args:
        config: What is evaluated, and how.
        progress: Who is told how far it is; None for nobody.

    Returns:
        The numbers, the predictions, and the config as it was used.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    if progress is None:
        progress = Silent()
    find_readouts(config.readouts)
    return _from_store(config, progress) if config.features is None else _from_file(config, config.features, progress)


def _scoring(config: EvalConfig, image_size: int, timesteps: tuple[int | None, ...]) -> Scoring:
    names = config.layers or ()
    shares = weights_for(names, config.weights)
    specs = tuple(map(LayerSpec, names, timesteps, shares))
    settings = MatchSettings(
        image_size,
        Geometry(config.geometry),
        config.upsample,
        Geometry(config.upsample_align or config.geometry),
    )
    return Scoring(specs, find_readouts(config.readouts), config.alphas, settings)


def _from_store(config: EvalConfig, progress: Progress) -> Evaluated:
    if config.dataset is not None or config.size is not None:
        raise InputError("--dataset and --size go with --features: a store knows its own.")
    compute = choose_compute(config)
    store = open_store(parse_location(config.store))
    numbers = None if config.layers is None else unet_layers(config.layers)
    choice = choose_for_store(
        store, TypedPrompts(numbers, config.timesteps, config.prompt, config.prompts, config.fallback)
    )
    if choice.prompts is None:
        check_kept(config.stored, "prompts of pairs (cpm)")
    names = config.layers or tuple(map(str, layers_of(choice, None)))
    if unet_layers(names):
        progress.tell(choice.line)
    usual = TEXT_TIMESTEPS if choice.learned is None else LEARNED_TIMESTEPS
    timesteps = timesteps_for(names, config.timesteps, usual)
    dataset = dataset_of(store, config.root)
    split = canonical_split(config.split or default_split(dataset))
    used = replace(
        config,
        split=split,
        layers=names,
        timesteps=tuple(step for step in timesteps if step is not None) or None,
        ensemble=(config.ensemble or ENSEMBLE) if unet_layers(names) else None,
        prompt=choice.label if choice.learned is None and unet_layers(names) else None,
        prompts=choice.source,
        out=None,
    )
    scoring = _scoring(used, store.header.image_size, timesteps)
    used = replace(used, weights=tuple(layer.weight for layer in scoring.layers))
    result = _match(used, store, scoring, choice, compute, progress)
    known = store.header.dataset_root
    root = config.root if config.root is not None or known is None else Path(known)
    return Evaluated(result, used, dataset.theta_rule.value, absolute(store.path), root)


def _match(
    config: EvalConfig, store: Store, scoring: Scoring, choice: PromptChoice, compute: Compute, progress: Progress
) -> Evaluation:
    """Match a split from a store's maps; those that lack are made and kept. The processes meet here, once what was
    asked for is found to be right."""
    dataset, split = dataset_of(store, config.root), config.split or ""
    pairs = choose_pairs(dataset, split, config.categories or ())
    choice.check_categories({pair.category for pair in pairs})
    images = images_of(pairs)
    processes = join_processes()
    processes.check_same(dict(choice.describe()), "prompts")  # the newest run's, which another may be just now
    progress = progress if processes.is_main else Silent()
    share = processes.part.of(images)
    rows = [store.images.row(image) for image in share]
    ensemble, stored = config.ensemble or ENSEMBLE, Stored(config.stored)
    wanted = [(layer.layer, layer.timestep) for layer in scoring.layers]
    check_unchanged(store, dataset, share, progress)
    framed = in_frame_of_store(store, dataset, pairs, progress)
    count = len(pairs)
    del pairs  # from here on they are columns
    notes = note_oddities(dataset, [split], images, store.images.known_keys, progress)
    asked = {"dino": Asked(config.dino, config.dino_size)}
    # what is made pair by pair is not kept
    kept = [key for key in wanted if choice.prompts is not None or not is_diffusion(key[0])]
    request = MapRequest(choice.prompts, ensemble, compute, stored, asked)
    made = require_maps(store, dataset, rows, kept, request, progress)
    tell_shapes(progress, made.shapes)
    bad = unreadable(*processes.gather(made.bad))  # from here on all processes find all maps
    if bad and not config.skip_bad:
        raise bad[0]
    others = describe_others(made.others.values())
    maps = StoredMaps(store, made.extractor, made.others)
    about: dict[str, Any] = {}
    if any(is_diffusion(layer) for layer, _ in wanted):
        about = describe_features(store, made.extractor, choice.describe(), ensemble, compute)
    if choice.prompts is None:
        from featstore.pipeline.pairwise import open_pair_maps, score_pairwise

        unet = tuple(key for key in wanted if is_diffusion(key[0]))
        tell_pairwise_cost(progress, count, len(unet), ensemble)
        assert choice.learned is not None, "only learned prompts belong to pairs"
        beside = {layer: maps for layer, _ in kept}
        pair_maps = open_pair_maps(
            store, dataset, framed, unet, choice.learned, config.dino, ensemble, compute, progress, processes, beside
        )
        result = score_pairwise(dataset, split, framed, pair_maps, scoring, about | others, progress, processes)
        return replace(result, notes=notes)
    readable = without_images(framed, bad)
    tell_left_out(progress, bad, count, len(readable))
    result = score(dataset, split, readable, maps, scoring, about | others, compute.device, progress, processes)
    return replace(result, notes=notes)


def _from_file(config: EvalConfig, features: Path, progress: Progress) -> Evaluated:
    given = [*given_options(config, OF_A_STORE), *(["--skip-bad"] if config.skip_bad else [])]
    if given:
        raise InputError(f"{given[0]} goes with a store, not with features from a file.")
    check_kept(config.stored, "features from a file")
    if config.dataset is None or config.size is None:
        raise InputError("--features needs --dataset (and its --root), and --size: the side of the images in pixels.")
    if config.layers is None:
        raise InputError("--features needs --layers: the names of the file's layers.")
    scoring = _scoring(config, config.size, (None,) * len(config.layers))
    compute = choose_compute(config)
    maps = open_features(features)
    dataset = open_dataset(config.dataset, config.root)
    split = canonical_split(config.split or default_split(dataset))
    pairs = choose_pairs(dataset, split, config.categories or ())
    images = images_of(pairs)
    processes = join_processes()
    progress = progress if processes.is_main else Silent()
    maps.check(images, scoring.layers)
    sizes = sizes_from_files(dataset, images)
    notes = note_oddities(dataset, [split], images, keys_from_files(dataset, images), progress)
    framed = in_resized_frame(dataset, pairs, sizes.__getitem__, scoring.settings.image_size, progress)
    about = {"features": str(features)}
    result = score(dataset, split, framed, maps, scoring, about, compute.device, progress, processes)
    used = replace(config, split=split, weights=tuple(layer.weight for layer in scoring.layers), out=None)
    return Evaluated(replace(result, notes=notes), used, dataset.theta_rule.value, None, config.root)
