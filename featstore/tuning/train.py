"""`train`: prompts learned from a store, and nothing else. Latents and (cpm) patch tokens that lack are made first; no
step calls the VAE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.backbones.base import Compute, Condition, NetworkName, spell_timestep
from featstore.backbones.dino import locate_dino
from featstore.backbones.models import Model
from featstore.backbones.noise import generator
from featstore.backbones.registry import check_takes_prompts
from featstore.config import DEFAULT_STORE, TrainConfig
from featstore.errors import DiskFullError
from featstore.parsing import to_json
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.defaults import choose_compute, dataset_of
from featstore.pipeline.distributed import join_processes
from featstore.pipeline.features import cache_patch_tokens
from featstore.pipeline.needed import make_latents, model_of
from featstore.pipeline.pairs import (
    choose_held_out,
    choose_pairs,
    describe_list,
    images_of,
    in_resized_frame,
    note_oddities,
    spell_list,
)
from featstore.pipeline.plan import Noisy, Work, noisy_latent, noisy_latents
from featstore.progress import Progress, Silent, tell_shapes
from featstore.prompts.base import LearnedPrompts, PromptSet, Start
from featstore.prompts.text import TextPrompt
from featstore.store.keys import StoreLocation, parse_location
from featstore.store.rows import RowArray
from featstore.store.store import Store, open_store, patch_tokens_of
from featstore.tuning.loop import Outcome, learn
from featstore.tuning.run_folder import RunFolder, create_run, identity
from featstore.tuning.runs import resume_run
from featstore.tuning.settings import Noise, TuningSettings, resumed, settings_of, settled
from featstore.tuning.step import LoadNoisy, Networks, NoiseAhead, Prompted
from featstore.tuning.trainer import Problem
from matcher.errors import InputError
from matcher.pairs import MatchingPair

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks

KEPT_VALIDATION_LATENTS = 2048
"""Noisy ones that are kept in memory, as every validation takes the same: 150 MB of SD 2-1's."""


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
    run = None if config.resume is None else resume_run(RunFolder, config.resume)
    store = open_store(parse_location(config.store or (DEFAULT_STORE if run is None else run.store)))
    if run is not None:
        if run.identity != identity(store.header):
            raise InputError(f"{config.resume} was not trained on {store.path}: name its own store with --store.")
        begun: dict[str, Any] = {"dtype": config.dtype or run.settings.dtype, "dino": config.dino or run.dino}
        config = replace(config, **begun)
    check_takes_prompts(store.header.model_structure, store.header.model_id)
    dataset, model, size = dataset_of(store, config.root), model_of(store), store.header.image_size
    pairs = choose_pairs(dataset, "trn", ())
    compute = _compute(config)
    if run is None:
        settings = settings_of(config, dataset.name, len(pairs), model, size, compute.dtype_name)
    else:
        settings = resumed(run.settings, config, compute.dtype_name, run.path)
    timesteps = {*settings.timesteps, *settings.validation_timesteps}
    if (None in timesteps) != (model.clean is not None):
        raise InputError("--t and --val-t are clean for a UNet that was trained without noise, and for no other.")
    model.schedule.check_timesteps([step for step in timesteps if step is not None])
    held_out = choose_held_out(dataset, settings.validation_pairs)
    processes = join_processes(compute.device.type)
    if progress is None or not processes.is_main:
        progress = Silent()
    images = images_of(pairs, held_out)
    check_unchanged(store, dataset, images, progress)
    splits = ["trn", "val"] if held_out else ["trn"]
    notes = note_oddities(dataset, splits, images, store.images.known_keys, progress)
    pad = store.header.pad
    framed, framed_held_out = (
        in_resized_frame(dataset, part, store.images.size, size, progress, pad) for part in (pairs, held_out)
    )
    progress.wait("loading the model")
    dino = locate_dino(config.dino, model.location) if settings.mode.rules.of_pairs else None
    cached = settings.timesteps if settings.noise is Noise.CACHED else ()
    noisy = noisy_latents(store, {*settings.validation_timesteps, *cached})
    with processes.main_first():  # one makes what all read
        tokens = _fill_caches(Work(store, dataset, compute, progress), model, [*framed, *framed_held_out], dino)
    loaded = model.load(compute, [*map(str, settings.layers)])
    networks = _open_networks(loaded, settings, config, compute)
    header = store.header
    training = {"dataset": header.dataset, "image_size": size, "settings": settings.to_json()}
    trained = settings.mode, settings.layers, settings.timesteps, settings.length
    made_for = NetworkName(header.model_id, header.model_fingerprint)
    problem = Problem(
        settings,
        networks,
        _first_prompts(settings, framed, networks, store, tokens),
        _training_noise(store, settings, noisy),
        framed,
        framed_held_out,
        lru_cache(KEPT_VALIDATION_LATENTS)(_cached_noise(store, noisy, 1, 0)),
        _text_prompt(networks),
        LearnedPrompts(*trained, made_for, None if dino is None else dino[0], training, {}),
    )
    listed = describe_list("trn", framed)
    if run is None:
        about = {"dino": config.dino, "processes": processes.count, "command": command, **listed}
        about |= {"notes": list(notes), "config": to_json(settled(config, settings))}
        # the main process makes it, all open it
        made = create_run(config.runs, config.name, store, settings, about).path if processes.is_main else None
        run = RunFolder.open(Path(str(processes.gather(made)[0])))
    tell_shapes(progress, (model.shape(layer, size) for layer in settings.layers))
    progress.tell(f"model {header.model_id}, images of {size} pixels")
    progress.tell(_described(settings, spell_list("trn", framed), len(framed_held_out), run.path))
    try:
        return TrainResult(run, learn(problem, run, processes, progress), settings, store.path, listed)
    except DiskFullError as error:
        raise DiskFullError(error.fault, f"go on with `dualsd train --resume {run.path}`") from error


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


def _described(settings: TuningSettings, pairs: str, held_out: int, run: Path) -> str:
    """What is learned, from what, with which settings."""
    layers = " + ".join(
        f"layer {layer} at t = {spell_timestep(timestep)}"
        for layer, timestep in zip(settings.layers, settings.timesteps, strict=True)
    )
    return (
        f"{settings.mode.value} prompts of {settings.length} vectors for {layers}; {pairs}, "
        f"{settings.batch} pairs per step, {settings.steps} steps, kernel {settings.kernel} cells, "
        f"noise {settings.noise.value}; {held_out} pairs of val every {settings.validate_every} steps; {run}"
    )


def _fill_caches(
    work: Work, model: Model, pairs: Sequence[MatchingPair], dino: tuple[NetworkName, Path] | None
) -> RowArray | None:
    """Make the latents and (cpm) patch tokens that training on pairs and validation read; one process does.

    Returns:
        The patch tokens.

    Raises:
        ImageError: Of the first image that cannot be read.
        DiskFullError: The disk fills up.
    """
    rows = sorted({work.store.images.row(image) for pair in pairs for image in (pair.source, pair.target)})
    bad = make_latents(work, rows, model)[1]
    if bad:
        raise bad[0]
    return None if dino is None else cache_patch_tokens(work, *dino, rows)


def _open_networks(
    loaded: "DiffusionNetworks", settings: TuningSettings, config: TrainConfig, compute: Compute
) -> Networks:
    """Make a model's networks ready, frozen. Raises `ModelError` where they cannot be loaded, or prompts do not fit
    the text encoder."""
    framed = loaded.text.frame(settings.length)
    if config.gradient_checkpointing:
        loaded.unet.unet.enable_gradient_checkpointing()
    cut = [loaded.unet.until(layer) for layer in settings.layers]
    unets = [torch.compile(unet) for unet in cut] if config.compile else cut
    return Networks(loaded.text, framed, unets, compute, loaded.told, loaded.added)


def _text_prompt(networks: Networks) -> Prompted:
    prompt = TextPrompt()

    @cache
    def condition(text: str) -> Condition:
        return networks.condition_of_text(text)

    return Prompted(False, lambda _, pair: condition(prompt.text(pair.category)))


def _first_prompts(
    settings: TuningSettings, pairs: Sequence[MatchingPair], networks: Networks, store: Store, tokens: RowArray | None
) -> list[PromptSet]:
    """What each layer's prompts start from. tokens: DINOv2's, None where prompts are made from none."""
    patches = None if tokens is None else patch_tokens_of(store, tokens)
    start = Start(pairs, settings.length, networks.text, patches)
    return [settings.mode.rules.start(start, f"prompts|{settings.seed}|{layer}") for layer in settings.layers]


FRESH = 1_000_000
"""Draws from this number on are never cached: `--noise fresh` takes one per step."""


def _training_noise(store: Store, settings: TuningSettings, noisy: Noisy[int]) -> NoiseAhead:
    cached = settings.noise is Noise.CACHED
    load = _cached_noise(store, noisy, settings.draws, settings.seed) if cached else _fresh_noise(store)
    return NoiseAhead(load, settings.timesteps)


def _fresh_noise(store: Store) -> LoadNoisy:
    """Noise of its own for each image, timestep and step."""
    latents = store.latents()

    def load(image: str, timestep: int | None, step: int) -> NDArray[Any]:
        row = store.images.row(image)
        clean = latents.read((row,)).astype(np.float32)
        return clean if timestep is None else noisy_latent(store, clean, row, timestep, FRESH + step)

    return load


def _cached_noise(store: Store, noisy: Noisy[int], draws: int, seed: int) -> LoadNoisy:
    """One of so many draws for each image and step, of those that a store keeps."""

    def load(image: str, timestep: int | None, step: int) -> NDArray[Any]:
        draw = int(generator(f"draw|{seed}|{image}|{step}").integers(draws))
        found: NDArray[Any] = noisy(store.images.row(image), timestep, [draw])[0]
        return found

    return load
