"""Configs as the options of their commands."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featstore.config import BuildConfig, EvalConfig, GridConfig, TrainConfig, fields_of

COMMANDS: Mapping[Any, str] = {BuildConfig: "cache build", EvalConfig: "eval", GridConfig: "grid", TrainConfig: "train"}


def command_of(config: Any) -> str:
    """`dualsd eval --layers 2,3 ...`, fit for a shell: every setting that is not the default."""
    words = (flag if value is True else f"{flag} {shlex.quote(str(value))}" for flag, value in options_of(config))
    return " ".join([f"dualsd {COMMANDS[type(config)]}", *words])


def options_of(config: Any) -> Iterator[tuple[str, str | int | float | Path]]:
    """Each option and what is typed for it, of the settings that are not the defaults."""
    kind = type(config)
    own = sorted(fields_of(kind), key=lambda field: field.name not in kind.__annotations__)  # inherited ones last
    for field in own:
        value = getattr(config, field.name)
        if value != field.default:
            spelled = ",".join(map(_number, value)) if isinstance(value, tuple) else value
            yield field.flag, f"{value}x" if field.setting.form == "factor" else spelled


def _number(value: Any) -> str:
    return str(value).removesuffix(".0")


def run(config: Any, **beside: Any) -> None:
    """What the command does with a config. beside: options that no config has."""
    from cli import evaluate, grid, train
    from featstore.store.keys import parse_location

    functions: Mapping[Any, Any] = {EvalConfig: evaluate.evaluate, GridConfig: grid.grid, TrainConfig: train.train}
    options: dict[str, Any] = {flag[2:].replace("-", "_"): value for flag, value in options_of(config)}
    functions[type(config)](**options | beside | {"store": parse_location(config.store)})
