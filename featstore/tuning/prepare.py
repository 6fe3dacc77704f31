"""From a store and settings to everything that the training loop needs: caches filled, networks loaded and frozen."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featstore.backbones.dino_location import locate_dino
from featstore.backbones.load import load_text_encoder, load_tokenizer, load_unet
from featstore.backbones.location import ModelLocation
from featstore.backbones.unet import CutUNet
from featstore.datasets.records import Dataset
from featstore.errors import TuningError
from featstore.pipeline.compute import Compute
from featstore.pipeline.latents import encode_images
from featstore.pipeline.noisy import add_noise, check_noise
from featstore.pipeline.patch_tokens import cache_patch_tokens
from featstore.progress import Progress
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import ConditionalModule
from featstore.prompts.text import frame
from featstore.store.keys import LATENTS, PATCH_TOKENS, noisy_path
from featstore.store.store import Store, no_patches, patch_tokens_of
from featstore.store.sweep import folders_of, sweep_partial
from featstore.tuning.data import CachedNoise, FreshNoise, NoiseAhead, NoisySource
from featstore.tuning.prompt_sets import initial_module, open_prompt_set, wide
from featstore.tuning.settings import Noise, TuningSettings
from featstore.tuning.step import Autocast, LoadNoisy, Networks
from featstore.tuning.train import Problem
from matcher.pairs import MatchingPair

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


KEPT_VALIDATION_LATENTS = 2048
"""Kept in memory where the store is on object storage: 150 MB of SD 2-1's."""


@dataclass(frozen=True, slots=True)
class Sparing:
    """How memory and time are traded. gradient_checkpointing: activations are computed again for the gradient instead
    of being kept. compiled: networks go through `torch.compile`."""

    gradient_checkpointing: bool
    compiled: bool


def fill_caches(
    store: Store,
    dataset: Dataset,
    location: ModelLocation,
    pairs: Sequence[MatchingPair],
    validation: Sequence[MatchingPair],
    settings: TuningSettings,
    dino: str | None,
    compute: Compute,
    progress: Progress,
) -> None:
    """Make the latents, noisy latents and (cpm) patch tokens that training and validation read; one process does.

    Raises what making them raises, the first `ImageError` of an image that cannot be read, and `DiskFullError` where
    the disk fills up.
    """
    rows, validation_rows = rows_of(store, pairs), rows_of(store, validation)
    everyone = sorted({*rows, *validation_rows})
    noisy = [(validation_rows, step, 1) for step in settings.validation_timesteps]
    if settings.noise is Noise.CACHED:
        noisy = [*((rows, step, settings.draws) for step in settings.timesteps), *noisy]
    for part, timestep, _ in noisy:
        check_noise(store, part, [timestep])
    found = locate_dino(dino, location) if settings.mode is Mode.CPM else None
    sweep_partial(folders_of(store.path, [LATENTS, *(noisy_path(step) for _, step, _ in noisy), PATCH_TOKENS]))
    _, bad = encode_images(store, dataset, location, everyone, compute, progress)
    if bad:
        raise bad[0]
    for part, timestep, draws in noisy:
        add_noise(store, part, [timestep], draws, progress)
    if found is not None:
        cache_patch_tokens(store, dataset, *found, everyone, compute, progress)


def prepare(
    store: Store,
    location: ModelLocation,
    pairs: Sequence[MatchingPair],
    validation: Sequence[MatchingPair],
    settings: TuningSettings,
    dino: str | None,
    compute: Compute,
    sparing: Sparing,
    autocast: Autocast,
) -> Problem:
    """Load the networks and open the caches. Raises `ModelError` where N vectors do not fit the text encoder."""
    tokenizer = load_tokenizer(location)
    text_encoder = load_text_encoder(location, compute.device, compute.dtype)
    networks = _networks(location, tokenizer, text_encoder, settings, compute, sparing, autocast)
    dino_name = locate_dino(dino, location)[0] if settings.mode is Mode.CPM else None
    tokens = None if dino_name is None else store.patch_tokens(dino_name)
    if settings.mode is Mode.CPM and tokens is None:
        raise TuningError(f"{store.path} has no DINOv2 tokens.")
    width = int(text_encoder.config.hidden_size)

    def module(key: str) -> ConditionalModule:
        assert tokens is not None, "checked above"
        patches, dino_width = tokens.row_shape
        return initial_module(dino_width, patches - 1, width, key).to(compute.device, wide(compute.dtype))

    categories = sorted({pair.category for pair in pairs})
    patches = no_patches if tokens is None else patch_tokens_of(store, tokens)
    prompts = [
        open_prompt_set(
            settings.mode,
            layer,
            categories,
            settings.length,
            settings.seed,
            text_encoder,
            len(tokenizer),
            module,
            patches,
        )
        for layer in settings.layers
    ]
    noisy: NoisySource = (
        CachedNoise(store, settings.timesteps, settings.draws, settings.seed)
        if settings.noise is Noise.CACHED
        else FreshNoise(store)
    )
    if not isinstance(store.path, Path):
        noisy = NoiseAhead(noisy, settings.timesteps)
    description = LearnedPrompts(
        mode=settings.mode,
        layers=settings.layers,
        timesteps=settings.timesteps,
        length=settings.length,
        tensors={},
        model_id=store.header.model_id,
        model_fingerprint=store.header.model_fingerprint,
        dino=dino_name,
        training={
            "dataset": store.header.dataset,
            "image_size": store.header.image_size,
            "settings": settings.to_json(),
        },
    )
    return Problem(
        pairs, validation, networks, prompts, noisy, _validation_noise(store), description, compute.batch_size
    )


def rows_of(store: Store, pairs: Sequence[MatchingPair]) -> list[int]:
    """The store's rows of all images of some pairs, sorted."""
    return sorted({store.images.row(image) for pair in pairs for image in (pair.source, pair.target)})


def _networks(
    location: ModelLocation,
    tokenizer: "CLIPTokenizer",
    text_encoder: "CLIPTextModel",
    settings: TuningSettings,
    compute: Compute,
    sparing: Sparing,
    autocast: Autocast,
) -> Networks:
    unet = load_unet(location, compute.device, compute.dtype)
    if sparing.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    whole = CutUNet(unet, max(settings.layers))
    unets = [whole.until(layer) for layer in settings.layers]
    framed = frame(text_encoder, tokenizer.bos_token_id, tokenizer.eos_token_id, settings.length)
    return Networks(
        text_encoder,
        tuple(torch.compile(one) if sparing.compiled else one for one in unets),
        framed,
        compute.device,
        compute.dtype,
        autocast,
    )


def _validation_noise(store: Store) -> LoadNoisy:
    def load(image: str, timestep: int) -> Tensor:
        array = store.noisy(timestep)
        assert array is not None, "made before training"
        return torch.from_numpy(array.read((store.images.row(image), 0)))

    # a validation reads what the last one read: from far away once is enough
    return load if isinstance(store.path, Path) else lru_cache(KEPT_VALIDATION_LATENTS)(load)
