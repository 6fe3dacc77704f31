"""`dualsd recipes`: what the methods of the report's tables are, value by value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import command_of
from cli.output import print_table, say
from featstore.recipes import FOLDER, Recipe, Stated, load_recipes
from matcher.errors import InputError

EXAMPLES = "Examples:\n\ndualsd recipes\n\ndualsd recipes dual-single"


def show_recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Every value of this recipe.")] = None,
) -> None:
    """List the recipes; with a NAME every value, where it comes from, and the commands that run it."""
    recipes = load_recipes()
    if name is None:
        _print_list(recipes)
    elif name in recipes:
        _print_recipe(recipes[name])
    else:
        raise InputError(f"There is no recipe {name!r}: choose from {', '.join(recipes)}.")


def _print_list(recipes: dict[str, Recipe]) -> None:
    rows = [
        [
            recipe.name,
            recipe.title,
            "+".join(recipe.eval.layers or ()),
            "" if recipe.train is None else _spell(recipe.train.timesteps),
            _spell(recipe.eval.timesteps or ()),
            ("text" if recipe.eval.prompt else "") if recipe.train is None else str(recipe.train.mode),
            f"{recipe.eval.upsample}x",
            _spell(recipe.eval.readouts),
        ]
        for recipe in recipes.values()
    ]
    header = ["recipe", "what", "layers", "t, training", "t", "prompt", "upsampled", "readout"]
    print_table("Recipes", header, rows, left_columns=2)
    say("`dualsd recipes NAME` shows every value and where it comes from; `dualsd reproduce table5` runs them.")


def _print_recipe(recipe: Recipe) -> None:
    named = [(section, name.replace("_", " "), stated) for (section, name), stated in recipe.stated.items()]
    rows = [(section, name, _spell(stated.value), stated.place) for section, name, stated in named]
    print_table(f"{recipe.name}: {recipe.title}", ["", "setting", "value", "source"], rows, left_columns=4)
    for author, of_author in _grouped(named, lambda stated: stated.by.name).items():
        say(f"{author} ({of_author[0][-1].by.of}):")
        for own in _grouped(of_author, lambda stated: stated.source).values():
            say(f"  {', '.join(dict.fromkeys(name for _, name, _ in own))}: {own[0][-1].statement.line}")
    for note in recipe.notes:
        say(f"- {note}")
    say(f"As a file, which --config of eval and train takes: {FOLDER / recipe.name}.toml")
    say("As commands, on a store of SPair-71k:", *(f"  {command}" for command in commands(recipe)))


_Named = list[tuple[str, str, Stated]]
"""Section, name, and what is stated."""


def _grouped(named: _Named, key: Callable[[Stated], str]) -> dict[str, _Named]:
    groups: dict[str, _Named] = {}
    for own in named:
        groups.setdefault(key(own[-1]), []).append(own)
    return groups


def commands(recipe: Recipe) -> list[str]:
    """What runs a recipe on a store `spair.zarr`, made by the first command."""
    store, prompts = "spair.zarr", None
    build = replace(recipe.build, dataset="spair", root=Path("SPair-71k"), store=store)
    found = [command_of(build, "cache", "build")]
    if recipe.train is not None:
        found.append(command_of(replace(recipe.train, store=store, name=recipe.name), "train"))
        prompts = Path("runs", recipe.name)
    return [*found, command_of(replace(recipe.eval, store=store, prompts=prompts), "eval")]


def _spell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
