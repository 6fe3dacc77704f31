"""`evaluate`: PCK of a split's pairs, from a store's maps or from anybody's features; and the maps of prompts that
belong to pairs (cpm), which are made pair by pair and never cached."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Condition, MapKey, Networks
from featstore.backbones.dino import locate_dino
from featstore.backbones.layers import weights_for
from featstore.backbones.registry import block_of, is_diffusion
from featstore.config import EvalConfig, given_options
from featstore.datasets.records import Dataset, canonical_split
from featstore.datasets.registry import annotations_of, open_dataset
from featstore.pipeline.adapted import open_adapter
from featstore.pipeline.defaults import check_kept, choose_compute
from featstore.pipeline.distributed import Processes, Shares, by_target, in_blocks, join_processes
from featstore.pipeline.features import cache_patch_tokens, chunks, diffusion_maps
from featstore.pipeline.kept_adapted import find_adapted, keys_of
from featstore.pipeline.needed import make_latents, model_of, require_maps
from featstore.pipeline.opened import Opened, PairsToMatch, open_asked, take_pairs
from featstore.pipeline.pairs import (
    choose_pairs,
    default_split,
    images_of,
    in_resized_frame,
    keys_from_files,
    note_oddities,
    sizes_from_files,
)
from featstore.pipeline.plan import Noisy, PlannedPasses, Work, noisy_latents
from featstore.pipeline.results import Evaluation, Scoring
from featstore.pipeline.sources import MapsByLayer, open_features
from featstore.progress import Progress, Silent, tell_shapes
from featstore.prompts.cpm import PairPrompts, check_dino, open_pair_prompts
from featstore.store.keys import absolute
from featstore.store.store import Store, patch_tokens_of
from matcher.configuration import Geometry, LayerSpec, MatchSettings, Pad, find_readouts
from matcher.errors import InputError
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair, Pairs
from matcher.pck import Matches
from matcher.sweep import evaluate as match_pairs

OF_A_STORE = ("timesteps", "prompt", "prompts", "fallback", "ensemble", "dino", "dino_size", "dino_debias")


def evaluate(config: EvalConfig, progress: Progress | None = None) -> Evaluation:
    """Match the keypoints of a split's pairs and score them.

    Maps and latents that are not cached are made and kept. With `features` no store and no model is needed. Of several
    processes (torchrun) each makes and matches its share, and all get the whole.

    Args:
        config: What is evaluated, and how.
        progress: Who is told how far it is; None for nobody.

    Returns:
        The numbers, the predictions, and the config as it was used.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    progress = Silent() if progress is None else progress
    return _from_store(config, progress) if config.features is None else _from_file(config, config.features, progress)


def _from_store(config: EvalConfig, progress: Progress) -> Evaluation:
    if given_options(config, ("dataset", "size", "annotations", "pad")):
        raise InputError("--dataset, --size, --annotations and --pad go with --features: a store knows its own.")
    opened = open_asked(config, progress)
    store, dataset, choice = opened.store, opened.dataset, opened.choice
    wanted = opened.keys(config.timesteps)
    layers = opened.layers(wanted, config.weights)
    split = canonical_split(config.split or default_split(dataset))
    scoring = _scoring(config, layers, store.header.image_size, store.header.pad).of(dataset)
    with_noise = tuple(key for key in wanted if is_diffusion(key[0]))
    if opened.adapter is None:  # which says by itself what is not typed
        config = replace(
            config,
            layers=opened.names,
            timesteps=tuple(step for _, step in with_noise if step is not None) or None,
            weights=tuple(layer.weight for layer in layers),
        )
    used = replace(
        config,
        split=split,
        ensemble=opened.request.ensemble if with_noise else None,
        prompt=choice.label if choice.learned is None and with_noise else None,
        prompts=choice.source,
        out=None,
    )
    listed = take_pairs(opened, split, choose_pairs(dataset, split, config.categories or ()), progress, config)
    matched, features = _match_from_store(config, opened, listed, wanted, scoring)
    known = store.header.dataset_root
    origin = _origin(scoring, dataset, Path(known) if config.root is None and known is not None else config.root, store)
    return Evaluation(dataset.name, split, scoring, features, Matches.of(matched), listed.notes, used, origin)


def _match_from_store(
    config: EvalConfig, opened: Opened, listed: PairsToMatch, wanted: Sequence[MapKey], scoring: Scoring
) -> tuple[Matches, dict[str, Any]]:
    """The matches, and where their maps came from; maps that lack are made and kept."""
    store, request = opened.store, opened.request
    progress, processes = listed.progress, listed.processes
    # what is made pair by pair is not kept
    kept = [key for key in wanted if request.prompt is not None or not is_diffusion(key[0])]
    images = sorted({*listed.pairs.grouped("source"), *listed.pairs.grouped("target")})
    made = find_adapted(opened, scoring.layers, images)
    if made is None:
        made = require_maps(store, opened.dataset, listed.rows, kept, request, progress)
    tell_shapes(progress, made.shapes)
    bad = processes.gather_bad(made.bad, config.skip_bad)  # from here on all processes find all maps
    features, maps = opened.describe(made.extractor, made.others), opened.maps(made, scoring.layers)
    if request.prompt is not None:
        device = request.compute.device
        return _match(listed.without(bad), maps, scoring, device, progress, processes), features
    unet = tuple(key for key in wanted if is_diffusion(key[0]))
    tell_pairwise_cost(progress, listed.count, len(unet), request.ensemble)
    pair_maps = open_pair_maps(opened, listed, listed.pairs, unet, {layer: maps for layer, _ in kept})
    return _match_pairwise(listed.pairs, pair_maps, scoring, progress, processes), features


def _from_file(config: EvalConfig, features: Path, progress: Progress) -> Evaluation:
    given = [*given_options(config, OF_A_STORE), *(["--skip-bad"] if config.skip_bad else [])]
    if given:
        raise InputError(f"{given[0]} goes with a store, not with features from a file.")
    check_kept(config.encoding, "features from a file")
    if config.dataset is None or config.size is None:
        raise InputError("--features needs --dataset (and its --root), and --size: the side of the images in pixels.")
    adapter = None if config.adapter is None else open_adapter(config.adapter)
    if adapter is None:
        if config.layers is None:
            raise InputError("--features needs --layers: the names of the file's layers.")
        shares = weights_for(config.layers, config.weights)
        taken = layers = tuple(LayerSpec(name, None, share) for name, share in zip(config.layers, shares, strict=True))
    else:
        keys = adapter.keys_in_file(config.layers)
        taken, layers = tuple(LayerSpec(*key) for key in keys), adapter.layers(keys, config.weights)
    scoring = _scoring(config, layers, config.size, Pad(config.pad or "stretch"))
    compute = choose_compute(config.device, config.dtype, config.batch_size)
    file = open_features(features)
    dataset = open_dataset(config.dataset, config.root, config.annotations)
    scoring = scoring.of(dataset)
    split = canonical_split(config.split or default_split(dataset))
    pairs = choose_pairs(dataset, split, config.categories or ())
    images = images_of(pairs)
    processes = join_processes()
    progress = progress if processes.is_main else Silent()
    file.check(images, taken)
    sizes = sizes_from_files(dataset, images)
    notes = note_oddities(dataset, [split], images, keys_from_files(dataset, images), progress)
    how = config.size, progress, scoring.settings.pad, config.theta
    framed = replace(in_resized_frame(dataset, pairs, sizes.__getitem__, *how), strict=config.strict)
    del pairs  # from here on they are columns
    about, used = {"features": str(features)}, replace(config, split=split, out=None)
    maps: MapSource = file
    if adapter is None:
        used = replace(used, weights=tuple(layer.weight for layer in layers))
    else:
        progress.tell(adapter.line)
        about, maps = about | adapter.describe(), adapter.maps(file, keys_of(layers), compute.device)
    matched = Matches.of(_match(framed, maps, scoring, compute.device, progress, processes))
    return Evaluation(dataset.name, split, scoring, about, matched, notes, used, _origin(scoring, dataset, config.root))


def _origin(scoring: Scoring, dataset: Dataset, root: Path | None, store: Store | None = None) -> dict[str, str | None]:
    """Where numbers come from, for the record: the rule for theta, where data set and store lie."""
    place, folder = None if store is None else absolute(store.path), None if root is None else str(root.resolve())
    more = {} if (annotations := annotations_of(dataset)) is None else {"annotations": annotations}
    return {"theta": scoring.rule, "store": place, "root": folder, **more}


def _scoring(config: EvalConfig, layers: tuple[LayerSpec, ...], image_size: int, pad: Pad) -> Scoring:
    geometry, align = Geometry(config.geometry), Geometry(config.upsample_align or config.geometry)
    said = config.parameters(*config.readouts)
    settings = MatchSettings(image_size, geometry, config.upsample, align, pad=pad, **said)
    readouts = find_readouts(config.readouts, pad)
    return Scoring(layers, readouts, config.alphas, settings, theta=config.theta, strict=config.strict)


def _match(
    pairs: Pairs, maps: MapSource, scoring: Scoring, device: torch.device, progress: Progress, processes: Processes
) -> Matches:
    """Match every pair. Each process matches its share, and all get the whole."""

    def match(own: Pairs) -> Matches:
        progress.start("matching", len(own), "pairs")
        return match_pairs(own, maps, scoring.layers, scoring.readouts, scoring.settings, device, progress.advance)

    return _match_shares(pairs, by_target(pairs, processes.count), processes, match)


def _match_pairwise(
    pairs: Pairs, maps: "PairMaps", scoring: Scoring, progress: Progress, processes: Processes
) -> Matches:
    """The same where maps belong to pairs."""

    def match(own: Pairs) -> Matches:
        progress.start("UNet passes and matching", len(own), "pairs")
        how = scoring.layers, scoring.readouts, scoring.settings, maps.work.compute.device
        found = [match_pairs([pair], made, *how).predictions for pair, made in maps.of(own)]
        none = np.zeros((0, 2), dtype=np.float32)
        return Matches(own, {name: np.concatenate([none, *(one[name] for one in found)]) for name in scoring.readouts})

    # whole batches: those that one process would make, and so the same bits
    size, count = maps.pairs_a_batch, len(pairs)
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return _match_shares(pairs, in_blocks(batches, [True] * len(batches), processes.count), processes, match)


def _match_shares(pairs: Pairs, shares: Shares, processes: Processes, match: Callable[[Pairs], Matches]) -> Matches:
    """All pairs matched, in their order, of which each process matches its share. Raises `ProcessError` where another
    process ended early."""
    own = match(pairs.take(shares[processes.rank]))
    predictions = {name: np.empty((int(pairs.counts.sum()), 2), dtype=np.float32) for name in own.predictions}
    for share, part in zip(shares, processes.gather(dict(own.predictions)), strict=True):
        for name, found in part.items():
            predictions[name][pairs.points(share)] = found
    return Matches(pairs, predictions)


def tell_pairwise_cost(progress: Progress, pairs: int, maps: int, ensemble: int) -> None:
    """What prompts cost that belong to pairs: both images of each pair take a UNet pass for every (layer, timestep) and
    noise draw, and no map is cached."""
    progress.tell(
        f"cpm's maps depend on the pair: {2 * pairs * maps * ensemble} UNet passes for {pairs} pairs "
        f"({maps} map(s) of both images, ensemble {ensemble}), none of them cached"
    )


@dataclass(frozen=True, slots=True)
class PairMaps:
    """Makes the maps of pairs. noisy: hands out the noisy latents of image rows. wanted: (layer, timestep). ensemble:
    noise draws that are averaged. others: maps of other backbones' layers, which do not depend on the pair, by
    layer."""

    work: Work
    networks: Networks
    noisy: Noisy[int]
    prompts: PairPrompts
    wanted: tuple[MapKey, ...]
    ensemble: int
    others: Mapping[str, MapSource]

    @property
    def pairs_a_batch(self) -> int:
        """Whose maps are made together."""
        return max(self.work.compute.batch_size // (2 * self.ensemble), 1)

    def of(self, pairs: Sequence[MatchingPair]) -> Iterator[tuple[MatchingPair, MapSource]]:
        """Each pair with both images' maps, in order."""
        row = self.work.store.images.row
        for batch in chunks(pairs, self.pairs_a_batch):
            ends = [(pair.source, pair.target) for pair in batch]
            places = tuple((index, image) for index, pair in enumerate(ends) for image in dict.fromkeys(pair))
            parts = [PlannedPasses((key,), places) for key in self.wanted]
            prompts = {layer: self.prompts.of(block_of(layer), ends) for layer, _ in self.wanted}

            def told(
                layer: str, items: Sequence[tuple[int, str]], prompts: Mapping[str, Condition] = prompts
            ) -> Condition:
                return prompts[layer].each(getitem, [index for index, _ in items])

            def noisy(item: tuple[int, str], timestep: int | None, draws: Sequence[int]) -> NDArray[Any]:
                return self.noisy(row(item[1]), timestep, draws)

            maps: list[dict[tuple[str, str, int | None], Tensor]] = [{} for _ in batch]
            compute, silent = self.work.compute, Silent()  # progress counts pairs
            made = diffusion_maps(self.networks, parts, noisy, told, self.ensemble, compute, silent)
            for (index, image), key, features in made:
                maps[index][image, *key] = features
            for pair, own_maps in zip(batch, maps, strict=True):
                own = MapsInMemory(own_maps)
                yield pair, MapsByLayer({**self.others, **{layer: own for layer, _ in self.wanted}})
                self.work.progress.advance()


def open_pair_maps(
    opened: Opened, listed: PairsToMatch, pairs: Pairs, wanted: tuple[MapKey, ...], others: Mapping[str, MapSource]
) -> PairMaps:
    """Make the latents and patch tokens that are missing, each process of its share of the images, and load the
    networks.

    Args:
        opened: The store, the learned prompts and how maps are made.
        listed: The processes, and who is told.
        pairs: Those whose maps are to be made.
        wanted: (layer, timestep) of the UNet.
        others: Maps of other backbones' layers, by layer.

    Raises:
        ImageError: For the first image that cannot be read.
        PromptError: For another DINOv2 than the prompts'.
        DiskFullError: Where the disk fills up.
    """
    store, learned, processes, ensemble = opened.store, opened.choice.learned, listed.processes, opened.request.ensemble
    assert learned is not None, "only learned prompts belong to pairs"
    work, model = Work(store, opened.dataset, opened.request.compute, listed.progress), model_of(store)
    rows = sorted({store.images.row(image) for image in (*pairs.grouped("source"), *pairs.grouped("target"))})
    own = processes.part.of(rows)
    noisy = noisy_latents(store, {timestep for _, timestep in wanted if timestep is not None})
    found = locate_dino(opened.request.asked["dino"].name, model.location)
    check_dino(learned, found[0])
    processes.gather_bad(make_latents(work, own, model)[1], skip_bad=False)
    tokens = cache_patch_tokens(work, *found, own)
    processes.wait()
    work.progress.wait("loading the model")
    networks = model.load(work.compute, [layer for layer, _ in wanted])
    prompts = open_pair_prompts(learned, networks.text, patch_tokens_of(store, tokens))
    return PairMaps(work, networks, noisy, prompts, wanted, ensemble, others)
