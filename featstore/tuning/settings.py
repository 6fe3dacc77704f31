"""Everything that decides what a training run ends in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

from featstore.errors import TuningError
from featstore.prompts.conditional import CONDITIONAL_LENGTH, GLOBAL_LENGTH
from featstore.prompts.learned import Mode
from featstore.tuning.loss import gaussian
from matcher.geometry import Geometry
from matcher.match import MatchSettings


class Sampling(Enum):
    """PAIRS: pairs drawn at random, as published. CLIQUES: k images of a category and all listed pairs among them."""

    PAIRS = "pairs"
    CLIQUES = "cliques"


class Noise(Enum):
    """CACHED: one of the store's draws, picked anew each step. FRESH: drawn each step, as SD4Match does."""

    CACHED = "cached"
    FRESH = "fresh"


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
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        matching = dict(values["matching"])
        for name in ("geometry", "upsample_align"):
            matching[name] = Geometry(matching[name])
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        enums = {
            "mode": Mode(values["mode"]),
            "sampling": Sampling(values["sampling"]),
            "noise": Noise(values["noise"]),
        }
        return cls(**{**values, **lists, **enums, "matching": MatchSettings(**matching)})
