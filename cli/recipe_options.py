"""A recipe as the options of `dualsd train` and `dualsd eval`, which `dualsd recipes` prints and `dualsd reproduce`
runs."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from cli.recipe import Recipe, Training
from matcher.errors import InputError

Options = dict[str, str | int | float | Path]
"""By the names that the commands' functions give their parameters."""

TRAINING_PAIRS = {"spair": 53_340, "pf-pascal": 2_941}
"""Of the training sets as they are distributed."""


def eval_options(recipe: Recipe, image_size: int) -> Options:
    """Of `dualsd eval`, but for the store and learned prompts. image_size: the store's, in pixels."""
    own = recipe.inference
    found: Options = {"layers": ",".join(own.layers.value)}
    if own.timesteps is not None:
        found["t"] = _joined(own.timesteps.value)
    found |= {
        "weights": _joined(own.weights.value),
        "upsample": f"{own.upsample.value}x",
        "upsample_align": own.upsample_align.value,
        "geometry": own.geometry.value,
        "readouts": own.readout.value,
        "alphas": _joined(own.alphas.value),
        "by": own.average.value,
    }
    if own.template is not None:
        found["prompt"] = own.template.value
    if own.ensemble is not None:
        found["ensemble"] = own.ensemble.value
    if own.dino_size is not None and image_size == own.image_size.value:
        found["dino_size"] = own.dino_size.value
    return found


def train_options(recipe: Recipe, steps: int) -> Options:
    """Of `dualsd train`, but for the store. Raises `InputError` for a recipe that is not trained."""
    own, training = recipe.inference, _training_of(recipe)
    assert own.prompt is not None, "the parser holds what is trained to have a prompt mode"
    found: Options = {
        "mode": own.prompt.value,
        "layers": ",".join(own.layers.value),
        "t": _joined(training.timesteps.value),
        "weights": _joined(own.weights.value),
        "steps": steps,
        "batch": training.batch.value,
        "lr": training.rate.value,
        "length": training.length.value,
        "kernel": training.kernel.value,
        "noise": training.noise.value,
        "draws": training.draws.value,
        "val_pairs": training.validation_pairs.value,
        "geometry": own.geometry.value,
        "upsample_align": own.upsample_align.value,
    }
    if training.network_rate is not None:
        found["network_lr"] = training.network_rate.value
    return found


def steps_for(recipe: Recipe, training_set: str, pairs: int) -> int:
    """Steps of the optimiser that the recipe's epochs are on a training set of so many pairs. Raises `InputError` for a
    recipe that is not trained on that set."""
    training = _training_of(recipe)
    if training_set not in training.epochs:
        raise InputError(
            f"The recipe {recipe.name} is not trained on {training_set!r}: choose from {', '.join(training.epochs)}."
        )
    return max(round(training.epochs[training_set].value * pairs / training.batch.value), 1)


def to_command(name: str, options: Mapping[str, str | int | float | Path | None]) -> str:
    """`dualsd eval --layers 2,3 ...`, fit for a shell; options that are None are left out."""
    spelled = (
        f"--{option.replace('_', '-')} {shlex.quote(str(value))}"
        for option, value in options.items()
        if value is not None
    )
    return " ".join([f"dualsd {name}", *spelled])


def _training_of(recipe: Recipe) -> Training:
    if recipe.training is None:
        raise InputError(f"The recipe {recipe.name} is not trained.")
    return recipe.training


def _joined(values: tuple[int, ...] | tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
