"""What `dualsd train` does where nothing is typed (the published settings), and what is typed over it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from cli import option_values
from featstore.backbones.model import Model
from featstore.errors import TuningError
from featstore.prompts.base import Mode
from featstore.tuning.loss import default_kernel
from featstore.tuning.settings import Noise, TuningSettings
from matcher.configuration import MatchSettings
from matcher.errors import InputError

TIMESTEPS = {2: 261, 3: 350}
"""The report's for training, by layer."""

EPOCHS = {Mode.SINGLE: 5, Mode.CLASS: 5, Mode.CPM: 2}
PF_PASCAL_EPOCHS = 50
"""The published lengths (docs/method.md, Settings)."""

Kind = TypeVar("Kind", bound=Enum)

LAYERS = (2, 3)
BATCH = 9
LENGTH = 75
RATE, NETWORK_RATE = 1e-2, 1e-3
DRAWS = 4
VALIDATIONS = 10
VALIDATION_PAIRS = 500
CHECKPOINT_EVERY = 100
DEMO, DEMO_STEPS, DEMO_BATCH = "demo", 300, 3
DEMO_CPM_PAIRS = 100
"""Of val on the demo for a cpm, whose every pair takes passes of its own: 500 would take longer than the training."""


def published(typed: Mapping[str, Any], dataset: str, pairs: int, model: Model, image_size: int) -> TuningSettings:
    """The published settings for the mode and layers that were typed; on the demo fewer steps of fewer pairs.
    pairs: of the training split."""
    mode, layers = typed["mode"], typed["layers"] or LAYERS
    batch = DEMO_BATCH if dataset == DEMO else BATCH
    epochs = PF_PASCAL_EPOCHS if dataset == "pf-pascal" else EPOCHS[mode]
    steps = DEMO_STEPS if dataset == DEMO else max(round(epochs * pairs / batch), 1)
    timesteps = typed["timesteps"] or tuple(TIMESTEPS.get(layer, -1) for layer in layers)
    if -1 in timesteps:
        missing = layers[timesteps.index(-1)]
        raise InputError(f"There is no default timestep for layer {missing}: give one a layer with --t.")
    side = max(model.shape(layer, image_size).side for layer in layers)
    return TuningSettings(
        mode=mode,
        layers=layers,
        timesteps=timesteps,
        weights=typed["weights"] or option_values.weights_for(tuple(map(str, layers)), None),
        length=LENGTH,
        steps=steps,
        batch=batch,
        accumulate=1,
        noise=Noise.CACHED,
        draws=DRAWS,
        rate=RATE,
        network_rate=NETWORK_RATE,
        kernel=default_kernel(side),
        matching=MatchSettings(image_size),
        validate_every=max(steps // VALIDATIONS, 1),
        validation_pairs=DEMO_CPM_PAIRS if dataset == DEMO and mode is Mode.CPM else VALIDATION_PAIRS,
        validation_timesteps=timesteps,
        checkpoint_every=CHECKPOINT_EVERY,
        seed=0,
        dtype="float32",
    )


def typed_settings(
    image_size: int,
    mode: str | None,
    layers: str | None,
    t: str | None,
    val_t: str | None,
    weights: str | None,
    noise: str | None,
    geometry: str | None,
    upsample_align: str | None,
    numbers: Mapping[str, float | None],
) -> dict[str, Any]:
    """What was typed, by the names of `TuningSettings`; None where nothing was. Raises `InputError` for what cannot
    be read."""
    typed: dict[str, Any] = {
        "mode": _choice(mode, Mode, "--mode"),
        "layers": None if layers is None else option_values.parse_layers(layers),
        "timesteps": None if t is None else option_values.parse_timesteps(t),
        "validation_timesteps": None if val_t is None else option_values.parse_timesteps(val_t),
        "weights": None if weights is None else option_values.parse_numbers(weights, "--weights"),
        "noise": _choice(noise, Noise, "--noise"),
        **numbers,
    }
    if geometry is not None or upsample_align is not None:
        shape = option_values.parse_geometry(geometry or "corners", "--geometry")
        align = shape if upsample_align is None else option_values.parse_geometry(upsample_align, "--upsample-align")
        typed["matching"] = MatchSettings(image_size, shape, 1, align)
    return typed


def _choice(text: str | None, kind: type[Kind], option: str) -> Kind | None:
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{option} is {', '.join(member.value for member in kind)}, not {text!r}.") from None


def with_typed(base: TuningSettings, typed: Mapping[str, Any]) -> TuningSettings:
    """The settings with what was typed over them; None was not. A step count alone moves the validations with it."""
    given = {name: value for name, value in typed.items() if value is not None}
    if "timesteps" in given:
        given.setdefault("validation_timesteps", given["timesteps"])
    layers = base.layers
    for name, what, option in (
        ("timesteps", "timestep(s)", "--t"),
        ("validation_timesteps", "timestep(s)", "--val-t"),
        ("weights", "weight(s)", "--weights"),
    ):
        if name in given and len(given[name]) != len(layers):
            raise InputError(f"{len(layers)} layer(s) but {len(given[name])} {what}: give one a layer with {option}.")
    if "steps" in given:
        given.setdefault("validate_every", max(given["steps"] // VALIDATIONS, 1))
    return replace(base, **given)


def check_resumed(saved: TuningSettings, typed: Mapping[str, Any], run: Path) -> TuningSettings:
    """A run goes on as it began; only `--steps` may grow. Raises `TuningError`, naming both, where another setting was
    typed."""
    given = {name: value for name, value in typed.items() if value is not None}
    for field in fields(saved):
        was, now = getattr(saved, field.name), given.get(field.name)
        if now is None or now == was or (field.name == "steps" and now > was):
            continue
        raise TuningError(
            f"{run} was begun with {field.name.replace('_', ' ')} {_spell(was)}, not {_spell(now)}: leave the option "
            "out, or start a new run."
        )
    return replace(saved, steps=given.get("steps", saved.steps))


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(getattr(value, "value", value))
