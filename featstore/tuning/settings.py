"""Everything that decides what a training run ends in: the published settings, what is said over them, and what a run
that goes on may change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Self

from featstore.backbones.layers import check_names, layers_for, timesteps_for, unet_layers, weights_for
from featstore.backbones.models import Model
from featstore.backbones.registry import Profile, is_other, profile_of
from featstore.backbones.stable_diffusion import check_layers, check_timesteps
from featstore.config import Positive, Rate, TrainConfig
from featstore.errors import TuningError
from featstore.parsing import parse, to_json
from featstore.prompts.base import Mode
from featstore.tuning.loss import default_kernel, gaussian
from matcher.configuration import Geometry, MatchSettings, check_weights
from matcher.errors import InputError


class Noise(Enum):
    """CACHED: one of the store's draws, picked anew each step. FRESH: drawn each step, as SD4Match does."""

    CACHED = "cached"
    FRESH = "fresh"


class UnusedCategories(Enum):
    """What a category's prompt does in a batch without its category. KEEP: stays as it is. DRIFT: Adam's momentum moves
    it on, as in SD4Match's runs, whose gradients were zero there, not absent."""

    KEEP = "keep"
    DRIFT = "drift"


_OF_SAMPLERS = ("sampling", "clique")
"""What runs of dualsd 0.1 say besides: how batches were drawn, which is always at random now."""


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """As `featstore.config.TrainConfig` has them, every one decided. matching: geometry, upsampling and temperature."""

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int | None, ...]
    weights: tuple[float, ...]
    length: Positive
    steps: Positive
    batch: Positive
    accumulate: Positive
    noise: Noise
    draws: Positive
    rate: Rate
    network_rate: Rate
    kernel: int
    matching: MatchSettings
    validate_every: Positive
    validation_pairs: Positive
    validation_timesteps: tuple[int | None, ...]
    checkpoint_every: Positive
    seed: int
    dtype: Literal["float32", "float16", "bfloat16", "float64"]
    unused_categories: UnusedCategories = UnusedCategories.KEEP  # older runs have none

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise TuningError(f"layers is {list(self.layers)}: name at least one, and each once.")
        for name, flag in (("timesteps", "--t"), ("validation_timesteps", "--val-t"), ("weights", "--weights")):
            count, what = len(getattr(self, name)), name.rpartition("_")[2].removesuffix("s")
            if count != len(self.layers):
                raise TuningError(
                    f"{len(self.layers)} layer(s) but {count} {what}(s) ({name}): give one per layer with {flag}."
                )
        check_timesteps([step for step in (*self.timesteps, *self.validation_timesteps) if step is not None])
        check_weights(len(self.layers), self.weights)
        gaussian(self.kernel)  # raises for a kernel that cannot be
        self.mode.rules.check_length(self.length)
        if self.unused_categories is UnusedCategories.DRIFT and self.mode is not Mode.CLASS:
            raise TuningError(
                f"--unused-categories drift goes with --mode class: every batch uses all of a {self.mode.value}'s "
                "vectors."
            )

    def to_json(self) -> dict[str, Any]:
        """As a run's `run.json` has it."""
        return to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError naming the field, or `InputError` for values that cannot be."""
        if values.get("sampling", "pairs") != "pairs":
            raise ValueError("it trains on cliques, which dualsd 0.1 alone does; its prompts file can be used")
        own = {name: value for name, value in values.items() if name not in _OF_SAMPLERS}
        found: Self = parse(cls, own, "settings")
        return found


USUAL = {"length": 75, "accumulate": 1, "draws": 4, "rate": 1e-2, "network_rate": 1e-3, "checkpoint_every": 100}
"""What no data set and no mode changes."""

BATCH, PF_PASCAL_EPOCHS = 9, 50
VALIDATIONS = 10
DEMO, DEMO_STEPS, DEMO_BATCH = "demo", 600, 3
DEMO_PAIRWISE_PAIRS = 100
"""Of val on the demo where every pair takes passes of its own: 500 would take longer than the training."""


def settings_of(
    config: TrainConfig, dataset: str, pairs: int, model: Model, image_size: int, dtype: str
) -> TuningSettings:
    """What a config says, and the published settings (docs/method.md, Settings) for all that it leaves open; on the
    demo fewer steps of fewer pairs.

    Args:
        config: With a mode.
        dataset: The data set's name.
        pairs: How many its training split has.
        model: Whose layers prompts are learned for.
        image_size: Side of the images, pixels.
        dtype: Precision of the networks.

    Raises:
        InputError: A layer is none, or something is left open of which nothing is known for this model.
        TuningError: The settings cannot be.
    """
    demo, profile = dataset == DEMO, profile_of(model.location.id, model.structure)
    names = layers_for(config.layers, profile.layers)
    said = _said(replace(config, layers=names), image_size, dtype)
    rules = said["mode"].rules
    epochs = PF_PASCAL_EPOCHS if dataset == "pf-pascal" else rules.epochs
    steps = config.steps or (DEMO_STEPS if demo else max(round(epochs * pairs / BATCH), 1))
    usual = profile.training_timesteps if model.clean is None else None
    timesteps = timesteps_for(names, config.timesteps, usual)
    published: dict[str, Any] = {
        "timesteps": timesteps,
        "weights": weights_for(names, config.weights, profile),
        "steps": steps,
        "batch": DEMO_BATCH if demo else BATCH,
        "noise": Noise.CACHED,
        "kernel": _kernel(config, profile, max(model.shape(layer, image_size).side for layer in said["layers"])),
        "matching": MatchSettings(image_size),
        "validate_every": max(steps // VALIDATIONS, 1),
        "validation_pairs": DEMO_PAIRWISE_PAIRS if demo and rules.of_pairs else 500,
        "validation_timesteps": timesteps,
        "seed": 0,
    }
    return TuningSettings(**(USUAL | published | said))


def _kernel(config: TrainConfig, profile: Profile, side: int) -> int:
    """The loss's, for maps of up to `side` cells. Raises `InputError` where none is known and none was asked for."""
    if config.kernel is not None:
        return config.kernel
    if profile.kernel is None:
        raise InputError("There is no default kernel for this model: say with --kernel; SD4Match takes 7 for SD 2-1.")
    return default_kernel(side, profile.kernel)


def resumed(saved: TuningSettings, config: TrainConfig, dtype: str, run: Path) -> TuningSettings:
    """The settings of a run that goes on: as it began, but that its steps may grow.

    Args:
        saved: Those that it was begun with.
        config: What is said now; what is left open is as it was.
        dtype: Precision of the networks.
        run: The run's folder.

    Raises:
        TuningError: Another setting is said now; the sentence names both.
    """
    said = _said(config, saved.matching.image_size, dtype)
    for name, now in said.items():
        was = getattr(saved, name)
        if now != was and not (name == "steps" and now > was):
            raise TuningError(
                f"{run} was begun with {name.replace('_', ' ')} {_spell(was)}, not {_spell(now)}: leave the option "
                "out, or start a new run."
            )
    return replace(saved, steps=said.get("steps", saved.steps))


def settled(config: TrainConfig, settings: TuningSettings) -> TrainConfig:
    """A config with all that it leaves open as it is used: it begins the same training anew."""
    values = settings.to_json()
    matching = values.pop("matching")
    values |= {name: matching[name] for name in ("geometry", "upsample_align")}
    return replace(config, **values | {"layers": [*map(str, settings.layers)], "name": None, "resume": None})


def _said(config: TrainConfig, image_size: int, dtype: str) -> dict[str, Any]:
    """What a config does not leave open, by the names of `TuningSettings`."""
    names = [field.name for field in fields(TuningSettings)]
    said = {name: value for name in names if (value := getattr(config, name, None)) is not None}
    if config.mode is not None:
        said["mode"] = Mode.named(config.mode)
    if config.layers is not None:
        said["layers"] = _decoder_layers(config.layers)
    if config.noise is not None:
        said["noise"] = Noise(config.noise)
    if config.unused_categories is not None:
        said["unused_categories"] = UnusedCategories(config.unused_categories)
    if config.geometry is not None or config.upsample_align is not None:
        geometry = config.geometry or Geometry.CORNERS.value
        said["matching"] = MatchSettings(image_size, Geometry(geometry), 1, Geometry(config.upsample_align or geometry))
    return said | {"dtype": dtype}


def _decoder_layers(names: Sequence[str]) -> tuple[int, ...]:
    check_names(names)
    if any(map(is_other, names)):
        raise InputError("Prompts are learned for decoder layers, 1 to 4: those of a DINO have none.")
    if parts := [name for name in names if not name.isdecimal()]:
        raise InputError(f"Prompts are learned for whole decoder layers, 1 to 4, not for {parts[0]}.")
    return unet_layers(names)


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(getattr(value, "value", value))
