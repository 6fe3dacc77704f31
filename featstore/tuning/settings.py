"""Everything that decides what a training run ends in: the published settings, what is said over them, and what a run
that goes on may change."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any, Self

from featstore.backbones.layers import check_layers, check_timesteps
from featstore.errors import TuningError
from featstore.backbones.model import Model
from featstore.config import TrainConfig
from featstore.prompts.base import Mode
from featstore.sealed import parse
from featstore.tuning.loss import default_kernel, gaussian
from matcher.errors import InputError
from matcher.fusion import check_weights
from matcher.geometry import Geometry
from matcher.match import MatchSettings


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
    """As `featstore.config.TrainConfig` has them, every one decided. matching: geometry, upsampling and temperature."""

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
        self.mode.rules.check_length(self.length)

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


TIMESTEPS = {2: 261, 3: 350}
"""The report's for training, by layer."""
WEIGHTS = {(2, 3): (0.8, 0.6), (3, 2): (0.6, 0.8)}
"""The report's."""
PF_PASCAL_EPOCHS = 50
VALIDATIONS = 10
DEMO, DEMO_STEPS, DEMO_BATCH = "demo", 300, 3
DEMO_PAIRWISE_PAIRS = 100
"""Of val on the demo where every pair takes passes of its own: 500 would take longer than the training."""
_PUBLISHED = {
    "length": 75,
    "batch": 9,
    "accumulate": 1,
    "noise": Noise.CACHED,
    "draws": 4,
    "rate": 1e-2,
    "network_rate": 1e-3,
    "validation_pairs": 500,
    "checkpoint_every": 100,
    "seed": 0,
}
"""The published settings (docs/method.md, Settings) that depend on nothing else."""


def settings_of(
    config: TrainConfig, dataset: str, pairs: int, model: Model, image_size: int, dtype: str
) -> TuningSettings:
    """What a config says, and the published settings for all that it leaves open; on the demo fewer steps of fewer
    pairs.

    Args:
        config: With a mode.
        dataset: The data set's name.
        pairs: Of its training split.
        model: Whose layers prompts are learned for.
        image_size: In pixels.
        dtype: Of the networks.

    Raises:
        InputError: A layer has no default timestep or weight.
        TuningError: Settings that cannot be.
    """
    said, demo = _said(config, image_size, dtype), dataset == DEMO
    mode, layers = said["mode"], said.get("layers", (2, 3))
    batch = said.get("batch", DEMO_BATCH if demo else _PUBLISHED["batch"])
    epochs = PF_PASCAL_EPOCHS if dataset == "pf-pascal" else mode.rules.epochs
    published = max(round(epochs * pairs / (DEMO_BATCH if demo else _PUBLISHED["batch"])), 1)
