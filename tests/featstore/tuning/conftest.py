"""A small training problem in double precision, with latents made of noise: no store and no VAE."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featstore.backbones.base import Compute
from featstore.backbones.diffusion_networks import CutUNet, load_text_encoder, load_tokenizer, load_unet
from featstore.backbones.locate import locate
from featstore.backbones.noise import generator
from featstore.backbones.text_encoders import ClipText
from featstore.prompts.base import Mode, PromptSet, Start
from featstore.store.store import PatchTokens
from featstore.tuning.settings import Noise, TuningSettings
from featstore.tuning.step import Learner, Networks
from matcher.configuration import MatchSettings
from matcher.pairs import MatchingPair

SIZE = 64
LATENT_SIDE = 16
LENGTH = 75
PATCHES, DINO_WIDTH = 60, 6

SETTINGS = TuningSettings(
    mode=Mode.CLASS,
    layers=(2, 3),
    timesteps=(261, 350),
    weights=(0.8, 0.6),
    length=LENGTH,
    steps=4,
    batch=3,
    accumulate=1,
    noise=Noise.CACHED,
    draws=2,
    rate=0.01,
    network_rate=0.001,
    kernel=3,
    matching=MatchSettings(SIZE),
    validate_every=2,
    validation_pairs=10,
    validation_timesteps=(261, 350),
    checkpoint_every=2,
    seed=0,
    dtype="float64",
)


class NoiseLatents:
    """Latents that are a function of image, timestep and step."""

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float32]:
        drawn = generator(f"{image}|{timestep}|{step}").standard_normal((4, LATENT_SIDE, LATENT_SIDE))
        return drawn.astype(np.float32)


def patch_tokens(image: str) -> torch.Tensor:
    return torch.from_numpy(generator(f"patches|{image}").standard_normal((PATCHES, DINO_WIDTH)))


def some_pairs() -> list[MatchingPair]:
    """Two categories; images are shared between pairs; 2 to 4 points."""
    random = np.random.default_rng(1)
    ends = [("a", "b", "cat"), ("b", "a", "cat"), ("a", "c", "cat"), ("x", "y", "dog"), ("y", "x", "dog")]
    return [
        MatchingPair(a, b, category, *random.uniform(1, SIZE - 2, (2, 2 + index % 3, 2)).astype(np.float32), theta=30.0)
        for index, (a, b, category) in enumerate(ends)
    ]


@dataclass(frozen=True)
class Setup:
    networks: Networks
    settings: TuningSettings
    open_prompts: Callable[[TuningSettings], list[PromptSet]]
    text_encoder: Any

    def learner(self, prompts: list[PromptSet]) -> Learner:
        return Learner(self.settings, self.networks, prompts, NoiseLatents().load)


@pytest.fixture(scope="session")
def setup(small_model: Path) -> Setup:
    location = locate(str(small_model))
    cpu, double = torch.device("cpu"), torch.float64
    encoder, tokenizer = load_text_encoder(location, cpu, double), load_tokenizer(location)
    whole = CutUNet(load_unet(location, cpu, double), 3)
    text = ClipText(tokenizer, encoder)
    unets = tuple(whole.until(layer) for layer in SETTINGS.layers)
    networks = Networks(text, text.frame(LENGTH), unets, Compute(cpu, double, 1))

    def open_prompts(settings: TuningSettings, patches: PatchTokens = patch_tokens) -> list[PromptSet]:
        start = Start(some_pairs(), LENGTH, text, patches)
        return [settings.mode.rules.start(start, f"prompts|{settings.seed}|{layer}") for layer in settings.layers]

    return Setup(networks, SETTINGS, open_prompts, encoder)


def one_layer(setup: Setup, layer: int) -> tuple[Networks, TuningSettings]:
    """The same problem with one layer alone."""
    index = setup.settings.layers.index(layer)
    settings = replace(
        setup.settings,
        layers=(layer,),
        timesteps=(setup.settings.timesteps[index],),
        weights=(1.0,),
        validation_timesteps=(setup.settings.timesteps[index],),
    )
    return replace(setup.networks, unets=(setup.networks.unets[index],)), settings
