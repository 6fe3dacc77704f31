"""Recipes: a method's full setting, every value with where it comes from, as the TOML files in `featstore/recipes` say
it. `--config` takes such a file, too."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from featstore.config import BuildConfig, EvalConfig, TrainConfig
from featstore.parsing import AnyConfig, Config, from_json
from matcher.errors import InputError

FOLDER = Path(__file__).with_suffix("")

SOURCES = {
    "report": "stated by the report",
    "sd4match": "taken from SD4Match's code",
    "dift": "taken from DIFT's code",
    "dualsd": "chosen by us",
}


class Stated(Config):
    """A value as JSON has it, and who states it: a key of `SOURCES`."""

    value: Any
    source: Literal["report", "sd4match", "dift", "dualsd"]


class Defaults(Config):
    """What holds without an option. frame: in which PCK is measured. dino: the DINOv2 of a cpm or of the layer `dino`.
    draws_per_step: noise draws per image and step of training. beta: the softmax's temperature. selection: by what the
    best prompts are kept."""

    frame: Literal["resized", "original"]
    dino: str | None = None
    optimiser: Literal["adam"] | None = None
    draws_per_step: Literal[1] | None = None
    beta: float | None = None
    selection: Literal["nn PCK@0.1, image average, on val"] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method, on SPair-71k and SD 2-1.

    Args:
        name: Its file's.
        title: One line.
        notes: What a reader should know of its values.
        build: Model, image size and latents.
        eval: All but the store and learned prompts.
        train: All but the store; None for methods that are not trained.
        epochs: Length of the training by training set.
        stated: Every value with its source, by section and name, in the file's order.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    build: BuildConfig
    eval: EvalConfig
    train: TrainConfig | None
    epochs: Mapping[str, int]
    defaults: Defaults
    stated: Mapping[tuple[str, str], Stated]

    def steps_for(self, training_set: str, pairs: int) -> int:
        """Optimiser steps that its epochs are on a training set of so many pairs.

        Raises:
            InputError: Where it is not trained on that set.
        """
        if self.train is None or self.train.batch is None or training_set not in self.epochs:
            sets = ", ".join(self.epochs) or "none"
            raise InputError(f"The recipe {self.name} is not trained on {training_set!r}: choose from {sets}.")
        return max(round(self.epochs[training_set] * pairs / self.train.batch), 1)


class _Page(Config):
    """A recipe's file, whose sections are read once its shape is known."""

    title: str
    notes: Annotated[tuple[str, ...], Field(strict=False)]
    build: dict[str, Any]
    eval: dict[str, Any]
    defaults: dict[str, Any]
    train: dict[str, Any] | None = None
    epochs: dict[str, Any] | None = None


KINDS = {
    "build": BuildConfig,
    "eval": EvalConfig,
    "train": TrainConfig,
    "epochs": dict[str, Annotated[int, Field(ge=1, strict=True)]],
    "defaults": Defaults,
}
"""What the sections of a recipe's file are read as."""


def load_recipes() -> dict[str, Recipe]:
    """All by name, sorted."""
    files = sorted(FOLDER.glob("*.toml"), key=lambda file: file.stem)
    return {file.stem: parse_recipe(file.read_text(encoding="utf-8"), file.stem) for file in files}


def parse_recipe(text: str, name: str) -> Recipe:
    """Read a recipe's TOML.

    Raises:
        InputError: Where a value is not known, is missing, or cannot be.
    """
    whole = f"The recipe {name}"
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{whole} is no TOML: {error}.") from None
    page = _read(_Page, content, whole)
    if (page.train is None) != (page.epochs is None):
        raise InputError(f"{whole} needs [train] and [epochs], or neither.")
    stated: dict[tuple[str, str], Stated] = {}

    def section(kind: type[Any], part: str, entries: Mapping[str, Any]) -> Any:
        where = f"{whole}, [{part}]"
        for key, entry in entries.items():
            sourced = entry if isinstance(entry, dict) else {"value": entry}
            stated[part, key] = _read(Stated, sourced, f"{where} {key}")
        return _read(kind, {key: stated[part, key].value for key in entries}, where)

    given = {part: getattr(page, part) for part in KINDS if getattr(page, part) is not None}
    read: dict[str, Any] = {part: section(KINDS[part], part, entries) for part, entries in given.items()}
    return Recipe(
        name=name, title=page.title, notes=page.notes, stated=stated, **({"train": None, "epochs": {}} | read)
    )


def _read(kind: type[AnyConfig], values: Mapping[str, Any], where: str) -> AnyConfig:
    try:
        return from_json(kind, values, "it", str)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
