"""Recipes: a method's full setting of training and of inference, every value with where it comes from, as the TOML
files in `cli/recipes` say it. Nothing heavy is imported."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

from cli.recipe_values import READERS, Reader
from featstore.backbones.registry import is_other
from matcher.errors import InputError

FOLDER = Path(__file__).with_name("recipes")
LEARNED = ("single", "class", "cpm")
"""The prompt modes that are trained."""

Value = TypeVar("Value")
Section = TypeVar("Section", "Inference", "Training")


class Source(Enum):
    """Where a value comes from: REPORT states it; SD4MATCH, DIFT: taken from that code; DUALSD: chosen by us."""

    REPORT = "report"
    SD4MATCH = "sd4match"
    DIFT = "dift"
    DUALSD = "dualsd"


@dataclass(frozen=True, slots=True)
class Stated(Generic[Value]):
    """A value and who states it."""

    value: Value
    source: Source


@dataclass(frozen=True, slots=True)
class Inference:
    """model: SD 2-1, whose image_size is S in pixels; on another model its own. layers: names, `2` or `dino`.
    timesteps: one a layer of the UNet. weights: one a layer. upsample: factor on the finest map. prompt: `text`, or a
    learned mode. template: of a text. ensemble: noise draws averaged. average: image or point. alphas: of theta.
    dino: whose patch tokens a cpm or whose patch maps the layer `dino` takes; dino_size: side in pixels of the images
    of those maps. None for what a recipe has no use for."""

    model: Stated[str]
    image_size: Stated[int]
    layers: Stated[tuple[str, ...]]
    weights: Stated[tuple[float, ...]]
    upsample: Stated[int]
    upsample_align: Stated[str]
    readout: Stated[str]
    average: Stated[str]
    geometry: Stated[str]
    frame: Stated[str]
    alphas: Stated[tuple[float, ...]]
    timesteps: Stated[tuple[int, ...]] | None = None
    prompt: Stated[str] | None = None
    template: Stated[str] | None = None
    ensemble: Stated[int] | None = None
    latents: Stated[str] | None = None
    dino: Stated[str] | None = None
    dino_size: Stated[int] | None = None

    @property
    def has_learned_prompts(self) -> bool:
        """Whether its prompts are trained."""
        return self.prompt is not None and self.prompt.value in LEARNED


@dataclass(frozen=True, slots=True)
class Training:
    """The mode, layers, weights and geometry are those of inference. timesteps: one a layer. ensemble: noise draws an
    image and step. batch: pairs a step. rate: of the vectors, network_rate: of a cpm's linear maps. length: vectors a
    prompt. kernel: of the loss, in cells of SD 2-1's map. beta: the softmax's temperature. draws: cached noise draws.
    selection: by what the best prompts are kept. epochs: by training set."""

    timesteps: Stated[tuple[int, ...]]
    ensemble: Stated[int]
    batch: Stated[int]
    optimiser: Stated[str]
    rate: Stated[float]
    length: Stated[int]
    kernel: Stated[int]
    beta: Stated[float]
    noise: Stated[str]
    draws: Stated[int]
    selection: Stated[str]
    validation_pairs: Stated[int]
    epochs: Mapping[str, Stated[int]]
    network_rate: Stated[float] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """name: of its file. title: one line. notes: what a reader should know of its values. training: None for methods
    that are not trained."""

    name: str
    title: str
    notes: tuple[str, ...]
    inference: Inference
    training: Training | None

    @property
    def timestep_of(self) -> dict[int, int]:
        """Inference's timestep of each layer of the UNet."""
        steps = () if self.inference.timesteps is None else self.inference.timesteps.value
        return dict(zip(unet_layers(self.inference.layers.value), steps, strict=True))

    def stated(self) -> list[tuple[str, str, Stated[Any]]]:
        """(section, name, what is stated) of every value, in the order of the classes."""
        found = [("inference", field.name, getattr(self.inference, field.name)) for field in fields(Inference)]
        if self.training is not None:
            found += [("training", field.name, getattr(self.training, field.name)) for field in fields(Training)]
        return [
            (section, name, stated)
            for section, field, entry in found
            for name, stated in (
                {f"{field} {key}": own for key, own in entry.items()} if field == "epochs" else {field: entry}
            ).items()
            if stated is not None
        ]


def recipe_names() -> tuple[str, ...]:
    """All there are, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """A recipe by name. Raises `InputError` for one that does not exist, or whose file is not as it should be."""
    if name not in recipe_names():
        raise InputError(f"There is no recipe {name!r}: choose from {', '.join(recipe_names())}.")
    return parse_recipe((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), name)


def load_recipes() -> dict[str, Recipe]:
    """All by name."""
    return {name: load_recipe(name) for name in recipe_names()}


def unet_layers(layers: tuple[str, ...]) -> tuple[int, ...]:
    """The layers of the UNet among some, in their order."""
    return tuple(int(layer) for layer in layers if not is_other(layer))


def parse_recipe(text: str, name: str) -> Recipe:
    """Read a recipe. Raises `InputError` in one sentence for unknown, missing, wrong or contradictory values."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {name} is no TOML: {error}.") from error
    _check_keys(table, {"title", "notes", "inference", "training"}, {"title", "notes", "inference"}, name)
    title, notes = table["title"], table["notes"]
    if not isinstance(title, str) or not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise InputError(f"The recipe {name} needs a title, a text, and notes, a list of texts.")
    recipe = Recipe(
        name=name,
        title=title,
        notes=tuple(notes),
        inference=_section(table["inference"], Inference, f"{name}, [inference]"),
        training=_section(table["training"], Training, f"{name}, [training]") if "training" in table else None,
    )
    _check_agreement(recipe)
    return recipe


def _section(table: Any, kind: type[Section], where: str) -> Section:
    if not isinstance(table, dict):
        raise InputError(f"The recipe {where} is {table!r} where a table is known.")
    known = {field.name for field in fields(kind)}
    optional = {field.name for field in fields(kind) if field.default is None}
    _check_keys(table, known, known - optional, where)
    read: dict[str, Any] = {}
    for key, entry in table.items():
        reader = READERS[key]
        if key != "epochs":
            read[key] = _stated(entry, reader, f"{where}, {key}")
        elif isinstance(entry, dict) and entry:
            read[key] = {name: _stated(own, reader, f"{where}, epochs of {name}") for name, own in entry.items()}
        else:
            raise InputError(f"The recipe {where}, epochs is {entry!r} where a table by training set is known.")
    return kind(**read)


def _stated(entry: Any, reader: Reader, where: str) -> Stated[Any]:
    if not isinstance(entry, dict):
        raise InputError(f"The recipe {where} is {entry!r} where {{ value = ..., source = ... }} is known.")
    _check_keys(entry, {"value", "source"}, {"value", "source"}, where)
    try:
        source = Source(entry["source"])
    except ValueError:
        names = ", ".join(own.value for own in Source)
        raise InputError(f"The recipe {where} has the source {entry['source']!r} where {names} are known.") from None
    try:
        return Stated(reader(entry["value"]), source)
    except ValueError as error:
        raise InputError(f"The recipe {where} is {entry['value']!r} where {error} is known.") from None


def _check_keys(table: Mapping[str, Any], known: set[str], needed: set[str], where: str) -> None:
    unknown, missing = sorted(table.keys() - known), sorted(needed - table.keys())
    if unknown:
        raise InputError(f"The recipe {where} has {unknown[0]!r}, which is not known there.")
    if missing:
        raise InputError(f"The recipe {where} lacks {missing[0]!r}.")


def _check_agreement(recipe: Recipe) -> None:
    """Raise `InputError` where values contradict each other, are missing for what others ask for, or are of no use."""
    own, training = recipe.inference, recipe.training
    prompt = None if own.prompt is None else own.prompt.value
    numbers = unet_layers(own.layers.value)
    has_dino = any(map(is_other, own.layers.value))
    needs: list[tuple[str, object, bool]] = [
        ("[inference] timesteps", own.timesteps, bool(numbers)),
        ("[inference] prompt", own.prompt, bool(numbers)),
        ("[inference] ensemble", own.ensemble, bool(numbers)),
        ("[inference] latents", own.latents, bool(numbers)),
        ("[inference] template", own.template, prompt == "text"),
        ("[inference] dino", own.dino, has_dino or prompt == "cpm"),
        ("[inference] dino_size", own.dino_size, has_dino),
        ("[training]", training, own.has_learned_prompts),
        ("[training] network_rate", None if training is None else training.network_rate, prompt == "cpm"),
    ]
    for what, value, needed in needs:
        if needed and value is None:
            raise InputError(f"The recipe {recipe.name} lacks {what}, which its other values ask for.")
        if value is not None and not needed:
            raise InputError(f"The recipe {recipe.name} has {what}, for which its other values have no use.")
    counts = [("weights", len(own.weights.value), len(own.layers.value))]
    if own.timesteps is not None:
        counts.append(("timesteps", len(own.timesteps.value), len(numbers)))
    if training is not None:
        counts.append(("timesteps of training", len(training.timesteps.value), len(numbers)))
    for what, count, expected in counts:
        if count != expected:
            raise InputError(f"The recipe {recipe.name} has {count} {what} for {expected} layer(s).")
    if len(set(own.layers.value)) != len(own.layers.value):
        raise InputError(f"The recipe {recipe.name} names a layer twice.")
    if training is not None and training.ensemble.value != 1:
        raise InputError(f"The recipe {recipe.name} trains on {training.ensemble.value} noise draws where 1 is known.")
    if (own.readout.value == "pixel") != (own.frame.value == "original"):
        raise InputError(
            f"The recipe {recipe.name} reads out {own.readout.value} in the {own.frame.value} frame: pixel is scored "
            "in the original frame, every other readout in the resized one."
        )
