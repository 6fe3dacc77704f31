"""Recipes: a method's full setting, every value with where it comes from, as the TOML files in `featstore/recipes` say
it; what their sources say, word for word, is in `featstore/recipe_sources.toml`. `--config` takes a recipe's file, too.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from featstore.config import BuildConfig, EvalConfig, TrainConfig
from featstore.parsing import AnyConfig, Config, from_json, parse
from matcher.errors import InputError

FOLDER = Path(__file__).with_suffix("")

SOURCES = FOLDER.with_name("recipe_sources.toml")


class Statement(Config):
    """What a source says of a setting. text: its very words; of what is open, our choice and what others give. where:
    a section of the report, or a file of code. value: what the words are of, where a formula says it."""

    text: str
    where: str | None = None
    value: str | None = None

    @property
    def line(self) -> str:
        """All of it."""
        said = self.text if self.where is None else f"{self.where}: {self.text!r}"
        return said if self.value is None else f"{said} ({self.value})"


class Source(Config):
    """Who states values. name: in short. of: which report, or which commit of which repository. says: by setting."""

    name: str
    of: str
    says: dict[str, Statement]


@cache
def load_sources() -> Mapping[str, Source]:
    """All by the word that recipes have for them: `report`, code's, `open` where none says it, and `dualsd`."""
    found: dict[str, Source] = parse(dict[str, Source], tomllib.loads(SOURCES.read_text(encoding="utf-8")), "")
    return found


def _check_source(source: str) -> str:
    name, _, setting = source.partition(": ")
    known = load_sources()
    if name not in known:
        raise InputError(f"source is {name!r}, not one of {', '.join(map(repr, known))}.")
    if setting not in known[name].says:
        raise InputError(f"{SOURCES.name} has no {setting!r} of {name}.")
    return source


class Stated(Config):
    """A value as JSON has it, and who states it, where: `report: batch`."""

    value: Any
    source: Annotated[str, AfterValidator(_check_source)]

    @property
    def by(self) -> Source:
        """Who states it."""
        return load_sources()[self.source.partition(": ")[0]]

    @property
    def place(self) -> str:
        """`the report, section 3.1`."""
        where = self.statement.where
        return self.by.name if where is None else f"{self.by.name}, {where}"

    @property
    def statement(self) -> Statement:
        """What is said of it."""
        return self.by.says[self.source.partition(": ")[2]]


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
    """A method, on SPair-71k.

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
