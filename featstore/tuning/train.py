"""`train`: prompts learned from a store, and nothing else. Latents, noisy latents and (cpm) patch tokens that lack are
made first; steps call no VAE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featstore.backbones.base import Compute
from featstore.backbones.dino import locate_dino
from featstore.config import DEFAULT_STORE, TrainConfig, to_json
from featstore.datasets.records import Dataset
from featstore.errors import TuningError
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.defaults import choose_compute, dataset_of
from featstore.pipeline.distributed import Processes, join_processes
from featstore.pipeline.features import cache_patch_tokens
from featstore.pipeline.needed import fill, model_of
from featstore.pipeline.pairs import (
    choose_pairs,
    choose_some,
    describe_list,
    images_of,
    in_resized_frame,
    note_oddities,
    spell_list,
)
from featstore.pipeline.plan import NoisyRows, Work
from featstore.progress import Progress, Silent, tell_shapes
from featstore.prompts.base import LearnedPrompts, Start
from featstore.store.keys import StoreLocation, parse_location
from featstore.store.store import Store, no_patches, open_store, patch_tokens_of
from featstore.tuning.data import CachedNoise, FreshNoise, NoiseAhead, NoisySource
from featstore.tuning.networks import open_networks
from featstore.tuning.run_folder import RunFolder, create_run, identity, resume_run
from featstore.tuning.settings import Noise, TuningSettings, resumed, settings_of, settled
from featstore.tuning.step import LoadNoisy
from featstore.tuning.trainer import Outcome, Problem, learn
from matcher.errors import InputError
from matcher.pairs import MatchingPair

KEPT_VALIDATION_LATENTS = 2048
"""Kept in memory where the store is on object storage: 150 MB of SD 2-1's."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A training, finished or stopped.

    Args:
        run: Its folder.
        outcome: How it ended.
        settings: What decided it.
        store: What it was trained on.
        listed: The training pairs, as every result says them: `n_pairs`, `n_points`, `pairs_hash`.
    """

    run: RunFolder
    outcome: Outcome
    settings: TuningSettings
    store: StoreLocation
    listed: dict[str, Any]


def train(config: TrainConfig, progress: Progress | None = None, command: str | None = None) -> TrainResult:
    """Learn prompts for one layer (SD4Match) or for several (the dual method: a set per layer, trained together).

    A signal (Ctrl-C, SIGTERM, SIGUSR1) makes it save and stop. Several processes (torchrun) share every batch.

    Args:
        config: What is learned, and how; with `resume`, a run goes on.
        progress: Who is told how far it is; None for nobody.
        command: What was typed, for the record.

    Returns:
        The run and how it ended, in all processes.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    if config.resume is None and config.mode is None:
        raise InputError("Say what is to be learned: --mode single, class or cpm.")
    if config.resume is not None and config.name is not None:
        raise InputError("--name goes with a new run: one that is resumed keeps its own.")
    earlier = None if config.resume is None else resume_run(config.resume)
    place = config.store or (DEFAULT_STORE if earlier is None else earlier.store)
    store = open_store(parse_location(place))
    if earlier is not None and earlier.identity != identity(store.header):
        raise InputError(f"{config.resume} was not trained on {store.path}: name its own store with --store.")
    if earlier is not None:
        begun: dict[str, Any] = {"dtype": config.dtype or earlier.settings.dtype, "dino": config.dino or earlier.dino}
        config = replace(config, **begun)
    dataset, model, size = dataset_of(store, config.root), model_of(store), store.header.image_size
    pairs = choose_pairs(dataset, "trn", ())
    compute = _compute(config)
    if earlier is None:
        settings = settings_of(config, dataset.name, len(pairs), model, size, compute.dtype_name)
    else:
        settings = resumed(earlier.settings, config, compute.dtype_name, earlier.path)
    model.schedule.check_timesteps([*settings.timesteps, *settings.validation_timesteps])
    held_out = choose_some(dataset.pairs("val") if "val" in dataset.splits else (), settings.validation_pairs)
    processes = join_processes(compute.device.type)
    if progress is None or not processes.is_main:
        progress = Silent()
    images = images_of([*pairs, *held_out])
    check_unchanged(store, dataset, images, progress)
    splits = ["trn", *(["val"] if held_out else [])]
    note_oddities(dataset, splits, images, store.images.known_keys, progress)
    framed, framed_held_out = (
        in_resized_frame(dataset, part, store.images.size, size, progress) for part in (pairs, held_out)
    )
    with processes.main_first():  # one makes what all read
        fill_caches(store, dataset, framed, framed_held_out, settings, config.dino, compute, progress)
    problem = prepare(store, framed, framed_held_out, settings, config, compute)
    listed = describe_list("trn", framed)
    if earlier is None:
        about = {
            "dino": config.dino,
            "processes": processes.count,
            "command": command,
            **listed,
            "config": to_json(settled(config, settings)),
        }
        run = _shared(processes, config, store, settings, about)
    else:
        run = earlier
    tell_shapes(progress, (model.shape(layer, size) for layer in settings.layers))
    progress.tell(f"model {store.header.model_id}, images of {size} pixels")
    progress.tell(_described(settings, spell_list("trn", framed), len(framed_held_out), run.path))
    return TrainResult(run, learn(problem, run, processes, progress), settings, store.path, listed)


def _compute(config: TrainConfig) -> Compute:
    """Where networks run: in float32 on a CPU, in bfloat16 on GPUs that have it, in float16 on others, unless another
    precision was asked for. Raises `InputError` for one that cannot train here."""
    dtype = config.dtype or "auto"
    if dtype == "auto":
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        dtype = "float32" if on_cpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    compute = choose_compute(config.device, dtype, config.batch_size)
    if compute.device.type == "cpu" and compute.dtype is torch.float16:
        raise InputError("float16 cannot train on a CPU: take --dtype bfloat16 or float32.")
    return compute


def _shared(
    processes: Processes, config: TrainConfig, store: Store, settings: TuningSettings, about: dict[str, Any]
) -> RunFolder:
    """A new run's folder: the main process makes it, all open it."""
    made = str(create_run(config.runs, config.name, store, settings, about).path) if processes.is_main else ""
    return RunFolder.open(Path(processes.gather(made)[0]))


def _described(settings: TuningSettings, pairs: str, held_out: int, run: Path) -> str:
    """What is learned, from what, with which settings."""
    layers = " + ".join(
        f"layer {layer} at t = {timestep}" for layer, timestep in zip(settings.layers, settings.timesteps, strict=True)
    )
    return (
        f"{settings.mode.value} prompts of {settings.length} vectors for {layers}; {pairs}, "
        f"{settings.batch} pairs per step, {settings.steps} steps, kernel {settings.kernel} cells, "
        f"noise {settings.noise.value}; {held_out} pairs of val every {settings.validate_every} steps; {run}"
    )


def fill_caches(
    store: Store,
    dataset: Dataset,
    pairs: Sequence[MatchingPair],
    validation: Sequence[MatchingPair],
    settings: TuningSettings,
    dino: str | None,
    compute: Compute,
    progress: Progress,
) -> None:
    """Make the latents, noisy latents and (cpm) patch tokens that training and validation read; one process does.

    Raises:
        ImageError: Of the first image that cannot be read.
        DiskFullError: The disk fills up.
    """
    model, work = model_of(store), Work(store, dataset, compute, progress)
    rows, validation_rows = _rows_of(store, pairs), _rows_of(store, validation)
    everyone = sorted({*rows, *validation_rows})
    noisy: list[NoisyRows] = [(validation_rows, step, 1) for step in settings.validation_timesteps]
    if settings.noise is Noise.CACHED:
        noisy += [(rows, step, settings.draws) for step in settings.timesteps]
    found = locate_dino(dino, model.location) if settings.mode.rules.of_pairs else None
    bad = fill(work, model, noisy, everyone)[2]
    if bad:
        raise bad[0]
    if found is not None:
        cache_patch_tokens(work, *found, everyone)


def prepare(
    store: Store,
    pairs: Sequence[MatchingPair],
    validation: Sequence[MatchingPair],
    settings: TuningSettings,
    config: TrainConfig,
    compute: Compute,
) -> Problem:
    """Load the networks and open the caches.

    Args:
        store: With all that training reads.
        pairs: To learn from, in the resized frame.
        validation: To validate on.
        settings: All that decides what it ends in.
        config: Says how memory and time are traded, and which DINOv2 a cpm takes.
        compute: Where networks run.

    Raises:
        ModelError: N vectors do not fit the text encoder.
        TuningError: The store lacks what training reads.
    """
    location = model_of(store).location
    networks = open_networks(location, settings, compute, config.gradient_checkpointing, config.compile)
    dino = tokens = None
    if settings.mode.rules.of_pairs:
        dino = locate_dino(config.dino, location)[0]
        tokens = store.patch_tokens(dino)
        if tokens is None:
            raise TuningError(f"{store.path} has no DINOv2 tokens.")
    start = Start(
        sorted({pair.category for pair in pairs}),
        settings.length,
        networks.text_encoder,
        networks.vocabulary,
        None if tokens is None else (tokens.row_shape[0] - 1, tokens.row_shape[1]),  # without the class token
        no_patches if tokens is None else patch_tokens_of(store, tokens),
    )
    noisy: NoisySource = FreshNoise(store)
    if settings.noise is Noise.CACHED:
        noisy = CachedNoise(store, settings.timesteps, settings.draws, settings.seed)
    if not isinstance(store.path, Path):
        noisy = NoiseAhead(noisy, settings.timesteps)
    header = store.header
    description = LearnedPrompts(
        mode=settings.mode,
        layers=settings.layers,
        timesteps=settings.timesteps,
        length=settings.length,
        tensors={},
        model_id=header.model_id,
        model_fingerprint=header.model_fingerprint,
        dino=dino,
        training={"dataset": header.dataset, "image_size": header.image_size, "settings": settings.to_json()},
    )
    return Problem(
        settings,
        pairs,
        validation,
        networks,
        [settings.mode.rules.start(start, f"prompts|{settings.seed}|{layer}") for layer in settings.layers],
        noisy,
        _validation_noise(store),
        description,
        compute.batch_size,
    )


def _rows_of(store: Store, pairs: Sequence[MatchingPair]) -> list[int]:
    """The store's rows of all images of some pairs, sorted."""
    return sorted({store.images.row(image) for pair in pairs for image in (pair.source, pair.target)})


def _validation_noise(store: Store) -> LoadNoisy:
    def load(image: str, timestep: int) -> Tensor:
        array = store.noisy(timestep)
        assert array is not None, "made before training"
        return torch.from_numpy(array.read((store.images.row(image), 0)))

    # a validation reads what the last one read: from far away once is enough
    return load if isinstance(store.path, Path) else lru_cache(KEPT_VALIDATION_LATENTS)(load)
