"""Everything that decides what a training run ends in."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

from featstore.backbones.layers import check_layers, check_timesteps
from featstore.errors import TuningError
from featstore.parsing import parse
from featstore.prompts.base import Mode
from featstore.prompts.cpm import CONDITIONAL_LENGTH, GLOBAL_LENGTH
from featstore.tuning.loss import gaussian
from matcher.configuration import MatchSettings
from matcher.fusion import check_weights


class Noise(Enum):
    """CACHED: one of the store's draws, picked anew each step. FRESH: drawn each step, as SD4Match does."""

    CACHED = "cached"
    FRESH = "fresh"


_OF_SAMPLERS = ("sampling", "clique")
"""What runs of dualsd 0.1 say besides: how batches were drawn, which is always at random now."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Precisions of the networks."""

_POSITIVE = (
    "length",
    "steps",
    "batch",
    "accumulate",
    "draws",
    "validate_every",
    "validation_pairs",
    "checkpoint_every",
)


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """layers, timesteps, weights: one each a layer. length: learned vectors a prompt. steps: of the optimiser.

    batch: pairs per step. accumulate: parts that a batch is taken in. draws: cached noise draws to pick from. rate:
    Adam's, network_rate: for the two linear maps of a cpm. kernel: k of the loss in cells. matching: geometry,
    upsampling and temperature. validate_every, checkpoint_every: steps. validation_pairs: at most.
    validation_timesteps: one a layer.
    """

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int, ...]
    weights: tuple[float, ...]
    length: int
    steps: int
    batch: int
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
        gaussian(self.kernel)  # raises for a kernel that cannot be
        if self.mode is Mode.CPM and self.length != GLOBAL_LENGTH + CONDITIONAL_LENGTH:
            raise TuningError(
                f"A cpm makes prompts of {GLOBAL_LENGTH} + {CONDITIONAL_LENGTH} vectors, not of {self.length}: "
                "--length goes with single and class."
            )

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
        if values.get("sampling", "pairs") != "pairs":
            raise ValueError("it trains on cliques, which dualsd 0.1 alone does; its prompts file can be used")
        own = {name: value for name, value in values.items() if name not in _OF_SAMPLERS}
        found: Self = parse(cls, own, "settings")
        return found
