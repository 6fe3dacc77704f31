"""Everything that decides what a training of an adapter ends in: what is said, and the usual settings for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import gcd
from pathlib import Path
from typing import Any, Literal, Self

from featstore.adapters.base import AdapterSpec, Kind
from featstore.adapters.lists import APART, HELD_OUT, VALIDATION_PAIRS
from featstore.adapters.material import Material
from featstore.backbones.base import MapKey
from featstore.config import AdaptConfig, AdapterLoss, Positive, Rate
from featstore.errors import TuningError
from featstore.parsing import parse, to_json
from featstore.tuning.loss import default_kernel, gaussian
from matcher.configuration import MatchSettings

STEPS: Mapping[Kind, int] = {"residual": 600, "aggregate": 600, "weights": 200}
RATES: Mapping[Kind, float] = {"residual": 2e-3, "aggregate": 1.25e-3, "weights": 2e-2}
DECAYS: Mapping[Kind, float] = {"residual": 1e-3, "aggregate": 1e-3, "weights": 0.0}
BATCH, WIDTH, PROJECTION, GROUPS, VALIDATIONS = 12, 16, 768, 32, 10


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """As `featstore.config.AdaptConfig` has them, every one decided."""

    mode: Kind
    inputs: tuple[MapKey, ...]
    channels: tuple[Positive, ...]
    weights: tuple[float, ...]
    width: int
    projection: int
    blocks: Positive
    groups: Positive
    steps: Positive
    batch: Positive
    rate: Rate
    decay: Rate
    loss: AdapterLoss
    kernel: int
    dropout: float
    flip: bool
    matching: MatchSettings
    validate_every: Positive
    validation_pairs: Positive
    hold_out: float | None
    hold_by: Literal["image", "category"] | None
    checkpoint_every: Positive
    seed: int

    def spec(self, about: Mapping[str, Any]) -> AdapterSpec:
        """The adapter to learn. about: for its card."""
        weights = (1.0,) if self.mode == "aggregate" else self.weights
        network = self.width, weights, self.projection, self.blocks, self.groups
        return AdapterSpec(self.mode, self.inputs, self.channels, *network, about=about)

    def to_json(self) -> dict[str, Any]:
        """As a run's `run.json` has it."""
        return to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises ValueError naming the field, or `InputError` for values that cannot be."""
        found: Self = parse(cls, values, "settings")
        return found


def settings_of(material: Material, shapes: Mapping[MapKey, tuple[int, ...]]) -> AdapterSettings:
    """What is said, and the usual settings for all that is left open.

    Args:
        material: With the config.
        shapes: (C, h, w) of the maps.

    Raises:
        TuningError: The settings cannot be.
    """
    config = material.config
    mode: Kind = config.mode or "residual"
    network, aggregate = mode != "weights", mode == "aggregate"
    projection = (config.projection or PROJECTION) if aggregate else 0
    width = config.width or (max(projection // 4, 1) if aggregate else WIDTH)
    side = max(max(own[1:]) for own in shapes.values())
    kernel = default_kernel(side) if config.kernel is None else config.kernel
    gaussian(kernel)  # raises for a kernel that cannot be
    steps = config.steps or STEPS[mode]
    apart = material.on == APART
    return AdapterSettings(
        mode=mode,
        inputs=tuple(shapes),
        channels=tuple(own[0] for own in shapes.values()),
        weights=tuple(layer.weight for layer in material.layers),
        width=width if network else 0,
        projection=projection,
        blocks=config.blocks or 1,
        groups=gcd(GROUPS, projection, width) if aggregate else GROUPS,
        steps=steps,
        batch=config.batch or BATCH,
        rate=RATES[mode] if config.rate is None else config.rate,
        decay=DECAYS[mode] if config.decay is None else config.decay,
        loss=config.loss or "prompt",
        kernel=kernel,
        dropout=config.dropout or 0.0,
        flip=bool(config.flip),
        matching=material.matching,
        validate_every=config.validate_every or max(steps // VALIDATIONS, 1),
        validation_pairs=config.validation_pairs or VALIDATION_PAIRS,
        hold_out=(HELD_OUT if config.hold_out is None else config.hold_out) if apart else None,
        hold_by=(config.hold_by or "image") if apart else None,
        checkpoint_every=config.checkpoint_every or 100,
        seed=config.seed or 0,
    )


def settled(config: AdaptConfig, settings: AdapterSettings) -> AdaptConfig:
    """A config with all that it leaves open as it is used: it begins the same training anew."""
    names = {field.name for field in fields(AdapterSettings)} - {"inputs", "channels", "weights", "groups", "matching"}
    said = {name: getattr(settings, name) for name in names if hasattr(config, name)}
    if settings.mode != "aggregate":
        said |= {"projection": None, "blocks": None}
    if settings.mode == "weights":
        said |= {"width": None, "dropout": None}
    if settings.loss != "prompt":
        said["kernel"] = None
    geometry = settings.matching
    said |= {"geometry": geometry.geometry.value, "upsample_align": geometry.upsample_align.value}
    return replace(config, **said, name=None, resume=None)


PLACES = ("store", "root", "features", "annotations")
COMPUTING = ("device", "batch_size", "sync")
FREE = (*PLACES, *COMPUTING, "encoding", "runs", "resume", "name")
"""Of a run that goes on: where things lie and how they are computed."""


def resumed(kept: AdaptConfig, config: AdaptConfig, run: Path) -> AdaptConfig:
    """The config of a run that goes on: as it began, but that its steps may grow, and data may lie elsewhere.

    Args:
        kept: That which it was begun with.
        config: What is said now; what is left open is as it was.
        run: The run's folder.

    Raises:
        TuningError: Another setting is said now; the sentence names both.
    """
    usual = AdaptConfig()
    for field in fields(AdaptConfig):
        was, now = getattr(kept, field.name), getattr(config, field.name)
        if field.name in FREE or now == getattr(usual, field.name) or now == was:
            continue
        if not (field.name == "steps" and was is not None and now > was):
            spelled = (",".join(map(str, own)) if isinstance(own, tuple) else own for own in (was, now))
            raise TuningError(
                f"{run} was begun with {field.name.replace('_', ' ')} {{}}, not {{}}: leave the option out, or start a "
                "new run.".format(*spelled)
            )
    places = {name: own for name in PLACES if (own := getattr(config, name))}
    ours = {name: getattr(config, name) for name in COMPUTING}
    return replace(kept, steps=config.steps or kept.steps, **places, **ours)
