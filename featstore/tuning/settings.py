"""Everything that decides what a training run ends in."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

from featstore.backbone.layers import check_layers, check_timesteps
from featstore.errors import TuningError
from featstore.prompts.conditional import CONDITIONAL_LENGTH, GLOBAL_LENGTH
from featstore.prompts.learned import Mode
from featstore.sealed import parse
from featstore.tuning.loss import gaussian
from matcher.fusion import check_weights
from matcher.match import MatchSettings


class Sampling(Enum):
    """PAIRS: pairs drawn at random, as published. CLIQUES: k images of a category and all listed pairs among them."""

    PAIRS = "pairs"
    CLIQUES = "cliques"


class Noise(Enum):
    """CACHED: one of the store's draws, picked anew each step. FRESH: drawn each step, as SD4Match does."""

    CACHED = "cached"
    FRESH = "fresh"


DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Precisions of the networks."""

_POSITIVE = (
    *("length", "steps", "batch", "clique", "accumulate", "draws", "validate_every", "validation_pairs"),
    "checkpoint_every",
)


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """layers, timesteps, weights: one each a layer. length: learned vectors a prompt. steps: of the optimiser.

    batch: pairs a step; with cliques, cliques a step, each of `clique` images. accumulate: parts that a batch is taken
    in. draws: cached noise draws to pick from. rate: Adam's, network_rate: for the two linear maps of a cpm. kernel: k
    of the loss in cells. matching: geometry, upsampling and temperature. validate_every, checkpoint_every: steps.
    validation_pairs: at most. validation_timesteps: one a layer.
    """

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int, ...]
    weights: tuple[float, ...]
    length: int
    steps: int
    sampling: Sampling
    batch: int
    clique: int
    accumulate: int
    noise: Noise
    draws: int
    rate: float
    network_rate: float
    kernel: int
    matching: MatchSettings
    validate_every: int
    validation_pairs: int
    validation_timesteps: tuple[int, ...]
    checkpoint_every: int
    seed: int
    dtype: str

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise TuningError(f"layers is {list(self.layers)}: name at least one, and each once.")
        for name, what in (("timesteps", "timestep"), ("validation_timesteps", "timestep"), ("weights", "weight")):
            count = len(getattr(self, name))
            if count != len(self.layers):
                raise TuningError(f"{len(self.layers)} layer(s) but {count} {what}(s) ({name}): give one a layer.")
        check_timesteps((*self.timesteps, *self.validation_timesteps))
        check_weights(len(self.layers), self.weights)
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise TuningError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        for name in ("rate", "network_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise TuningError(f"{name} is {getattr(self, name)}: it must be finite and not negative.")
        if self.dtype not in DTYPES:
            raise TuningError(f"dtype is {self.dtype!r}, not one of {', '.join(DTYPES)}.")
        if self.mode is Mode.CPM and self.sampling is Sampling.CLIQUES:
            raise TuningError(
                "A cpm's prompts belong to pairs: every pair of a clique would need passes of its own, which is what "
                "--sampler pairs does."
            )
        gaussian(self.kernel)  # raises for a kernel that cannot be
        if self.mode is Mode.CPM and self.length != GLOBAL_LENGTH + CONDITIONAL_LENGTH:
            raise TuningError(
                f"A cpm makes prompts of {GLOBAL_LENGTH} + {CONDITIONAL_LENGTH} vectors, not of {self.length}: "
                "--length goes with single and class."
            )
        if self.sampling is Sampling.CLIQUES and self.clique < 2:
            raise TuningError("A clique takes at least 2 images: see --clique.")

    def to_json(self) -> dict[str, Any]:
        """As a run's `run.json` has it."""
        matching = {
            name: value.value if isinstance(value, Enum) else value for name, value in asdict(self.matching).items()
        }
        plain = {name: value.value if isinstance(value, Enum) else value for name, value in asdict(self).items()}
        return {**plain, "matching": matching}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError naming the field, or `InputError` for values that cannot be."""
        found: Self = parse(cls, values, "settings")
        return found
