"""`dualsd recipes`: what the methods of the report's tables are, value by value."""

from typing import Annotated, Any

import typer

from cli.recipe import Recipe, load_recipe, load_recipes

EXAMPLES = "Examples:\n\ndualsd recipes\n\ndualsd recipes dual-single"

SOURCES = {
    "report": "stated by the report",
    "sd4match": "taken from SD4Match's code",
    "dift": "taken from DIFT's code",
    "dualsd": "chosen by us",
}


def show_recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Every value of this one.")] = None,
) -> None:
    """List the recipes; with a NAME every value, where it comes from, and the commands that run it."""
    if name is None:
        _print_list()
        return
    _print_recipe(load_recipe(name))


def _print_list() -> None:
    from cli.output import print_table, say

    rows = []
    for recipe in load_recipes().values():
        own, training = recipe.inference, recipe.training
        rows.append(
            [
                recipe.name,
                recipe.title,
                "+".join(own.layers.value),
                "" if training is None else _spell(training.timesteps.value),
                "" if own.timesteps is None else _spell(own.timesteps.value),
                "" if own.prompt is None else own.prompt.value,
                f"{own.upsample.value}x",
                own.readout.value,
            ]
        )
    header = ["recipe", "what", "layers", "t, training", "t", "prompt", "upsampled", "readout"]
    print_table("Recipes", header, rows, left_columns=2)
    say("`dualsd recipes NAME` shows every value and where it comes from; `dualsd reproduce table5` runs them.")


def _print_recipe(recipe: Recipe) -> None:
    from cli.output import print_table, say

    rows = [
        [section, name.replace("_", " "), _spell(stated.value), SOURCES[stated.source.value]]
        for section, name, stated in recipe.stated()
    ]
    print_table(f"{recipe.name}: {recipe.title}", ["", "setting", "value", "source"], rows, left_columns=4)
    for note in recipe.notes:
        say(f"- {note}")
    say("As commands, on a store of SPair-71k and SD 2-1:")
    for command in commands(recipe):
        say(f"  {command}")


def commands(recipe: Recipe) -> list[str]:
    """What runs a recipe on a store `spair.zarr`, made by the first command."""
    from cli.recipe_options import TRAINING_PAIRS, eval_options, steps_for, to_command, train_options

    own, training = recipe.inference, recipe.training
    build: dict[str, Any] = {"dataset": "spair", "root": "SPair-71k", "model": own.model.value, "store": "spair.zarr"}
    found = [to_command("cache build", build)]
    prompts = {}
    if training is not None:
        steps = steps_for(recipe, "spair", TRAINING_PAIRS["spair"])
        trained = {"store": "spair.zarr", **train_options(recipe, steps), "name": recipe.name}
        found.append(to_command("train", trained))
        prompts = {"prompts": f"runs/{recipe.name}"}
    scored = {"store": "spair.zarr", **eval_options(recipe, own.image_size.value), **prompts}
    return [*found, to_command("eval", scored)]


def _spell(value: Any) -> str:
    return (
        ", ".join(map(_spell, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
