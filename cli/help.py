"""Help pages: what a command is for, its arguments and options in groups, and examples, as wide as the terminal."""

import re
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from itertools import chain
from typing import Any

from rich.console import Console, RenderableType
from rich.console import Group as Together
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from cli.output import broken

GROUPS = {
    "Data": "store dataset root annotations split categories max_pairs pad model revision unet size latents seed",
    "Features": "features layers timesteps weights weightings ensemble upsample upsamples upsample_align dino "
    "dino_size dino_debias",
    "Prompts": "mode prompt prompts fallback category length",
    "Matching": "geometry geometries readout readouts beta sigma window alphas average frame theta strict",
    "Learning": "steps batch accumulate rate network_rate kernel noise draws validate_every validation_pairs "
    "validation_timesteps checkpoint_every train_steps unused_categories",
    "Server": "host port open memory",
    "Running": "device dtype batch_size gradient_checkpointing compile part stream skip_bad encoding sync resume",
    "Files": "out name runs work config_file json csv dry_run",
}
"""Options by the title that they stand under; others stand above them."""

_USUAL = re.compile(r"(?<=\[default: )\((.*)\)(?=\]$)")
"""A default in words, which typer puts in brackets."""

WIDEST, NAMES = 110, 28
"""Columns of a page, and of what options are called."""


class Command(TyperCommand):
    """A command with such a page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print it."""
        print_help(self, ctx)


class Group(TyperGroup):
    """Commands with such a page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Print it."""
        print_help(self, ctx)


def print_help(command: Any, context: Any) -> None:
    """Print the page of a command of typer's."""
    console = Console(highlight=False)
    width = min(console.width, WIDEST)
    about = re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(command.help or ""))
    groups = (_group(title, rows, width) for title, rows in _rows(command, context).items())
    for part in (command.get_usage(context), about, *groups, *_epilog(command.epilog or "", width)):
        console.print(part, width=width, markup=False)
        console.print()


def _rows(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """By the titles of groups: what is typed, and what it means."""
    found: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], **{title: [] for title in GROUPS}}
    titles = {name: title for title, names in GROUPS.items() for name in names.split()}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            usual = "Options" if parameter.param_type_name == "option" else "Arguments"
            found[titles.get(parameter.name, usual) if usual == "Options" else usual].append(record)
    if isinstance(command, Group):
        own: dict[str, Any] = {name: command.get_command(context, name) for name in command.list_commands(context)}
        found["Commands"] = [(name, cleandoc(one.help or "").split("\n\n")[0]) for name, one in own.items()]
    return {title: rows for title, rows in found.items() if rows}


def _group(title: str, rows: Sequence[tuple[str, str]], width: int) -> RenderableType:
    names = min(max(len(name) for name, _ in rows), NAMES)
    beside = names <= 0.35 * width
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, meaning in rows:
        called, means = Text(name, style="cyan"), Text(_USUAL.sub(r"\1", " ".join(meaning.split())))
        means.highlight_regex(r"\[(default: .*|required)\]$", "dim")
        for cells in [(called, means)] if beside else [(called,), (Padding(means, (0, 0, 0, 4)),)]:
            table.add_row(*cells)
    if beside:
        table.columns[0].width = names
    return Together(Text(title, style="bold"), Padding(table, (0, 0, 0, 2)))


def _epilog(text: str, width: int) -> Iterator[RenderableType]:
    """Examples, which may be pasted, and what is said of some behind many blanks."""
    if text:
        lines = (re.split(" {3,}", line) if len(line) > width else [line] for line in text.split("\n\n"))
        yield Text("\n".join(own for line in chain(*lines) for own in broken(line, width)))
