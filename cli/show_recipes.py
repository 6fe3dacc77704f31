"""`dualsd recipes`: what the methods of the report's tables are, value by value."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import command_of
from cli.output import print_table, say
from featstore.recipes import FOLDER, SOURCES, Recipe, load_recipes
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
    rows = [
        [section, name.replace("_", " "), _spell(stated.value), SOURCES[stated.source]]
        for (section, name), stated in recipe.stated.items()
    ]
    print_table(f"{recipe.name}: {recipe.title}", ["", "setting", "value", "source"], rows, left_columns=4)
    for note in recipe.notes:
        say(f"- {note}")
    say(f"As a file, which --config of eval and train takes: {FOLDER / recipe.name}.toml")
    say("As commands, on a store of SPair-71k and SD 2-1:", *(f"  {command}" for command in commands(recipe)))


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
