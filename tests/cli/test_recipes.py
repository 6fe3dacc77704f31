"""Recipes against the paper's settings, and how they are read and shown."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.recipe import FOLDER, Recipe, load_recipe, load_recipes, parse_recipe
from cli.recipe_options import TRAINING_PAIRS, steps_for
from cli.show_recipes import commands
from featstore.backbones.dino_location import HUB_NAME
from featstore.prompts.text import DEFAULT_TEMPLATE
from matcher.configuration import BETA
from matcher.errors import InputError
from matcher.registry import frame_of
from tests.cli.conftest import Run

# DESIGN, section 4, and, for sd4match-*, SD4Match's scripts and README. Layers, timesteps of training, of inference,
# weights, factor of upsampling, prompts, epochs on SPair-71k and PF-Pascal.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "dift": (("2",), None, (261,), (1.0,), 1, "text", None),
    "dift-bicubic": (("2",), None, (261,), (1.0,), 2, "text", None),
    "dift-dual": (("2", "3"), None, (261, 200), (0.8, 0.6), 1, "text", None),
    "dift-pixel": (("2",), None, (261,), (1.0,), 1, "text", None),
    "dino": (("dino",), None, None, (1.0,), 1, None, None),
    "sd-dino": (("2", "dino"), None, (261,), (0.5, 0.5), 1, "text", None),
    "sd4match-single": (("2",), (261,), (50,), (1.0,), 1, "single", (5, 90)),
    "sd4match-class": (("2",), (261,), (50,), (1.0,), 1, "class", (5, 90)),
    "sd4match-cpm": (("2",), (261,), (50,), (1.0,), 1, "cpm", (5, 90)),
    "dual-single": (("2", "3"), (261, 350), (50, 200), (0.8, 0.6), 1, "single", (5, 50)),
    "dual-class": (("2", "3"), (261, 350), (50, 200), (0.8, 0.6), 1, "class", (5, 50)),
    "dual-cpm": (("2", "3"), (261, 350), (50, 200), (0.8, 0.6), 1, "cpm", (2, 50)),
}
TRAINED = [name for name, settings in SETTINGS.items() if settings[-1] is not None]


def value(stated: Any) -> Any:
    return None if stated is None else stated.value


def test_these_recipes_there_are() -> None:
    assert set(load_recipes()) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    own, training = recipe.inference, recipe.training
    found = (
        own.layers.value,
        None if training is None else training.timesteps.value,
        value(own.timesteps),
        own.weights.value,
        own.upsample.value,
        value(own.prompt),
        None if training is None else (training.epochs["spair"].value, training.epochs["pf-pascal"].value),
    )
    assert found == SETTINGS[name]
    assert (own.model.value, own.image_size.value) == ("sd2-1", 768)
    assert value(own.ensemble) == (None if name == "dino" else 8)
    assert value(own.latents) == (None if name == "dino" else "sample")
    assert value(own.template) == ("a photo of a {category}" if value(own.prompt) == "text" else None)
    expected = ("pixel", "original") if name == "dift-pixel" else ("nn", "resized")
    assert (own.readout.value, own.frame.value) == expected
    assert (own.average.value, own.geometry.value, own.upsample_align.value) == ("image", "corners", "corners")
    assert own.alphas.value == (0.05, 0.1, 0.15)
    assert value(own.dino_size) == (672 if "dino" in own.layers.value else None)


@pytest.mark.parametrize("name", TRAINED)
def test_settings_of_training_are_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    training = recipe.training
    assert training is not None
    assert (training.batch.value, training.ensemble.value, training.length.value) == (9, 1, 75)
    assert (training.optimiser.value, training.rate.value) == ("adam", 0.01)
    assert value(training.network_rate) == (0.001 if name.endswith("cpm") else None)
    assert (training.kernel.value, training.beta.value) == (7, 0.04)
    assert training.selection.value == "nn PCK@0.1, image average, on val"


def test_lengths_of_training() -> None:
    """DESIGN, section 4; batches of 9 of 53,340 and 2,941 pairs."""
    steps = {
        (name, dataset): steps_for(load_recipe(name), dataset, TRAINING_PAIRS[dataset])
        for name in ("dual-single", "dual-class", "dual-cpm")
        for dataset in ("spair", "pf-pascal")
    }
    assert steps["dual-single", "spair"] == steps["dual-class", "spair"] == 29_633
    assert steps["dual-cpm", "spair"] == 11_853
    assert steps["dual-single", "pf-pascal"] == 16_339


def test_sources_of_what_is_easily_taken_for_the_reports() -> None:
    """The readout and the upsampling's alignment are not stated; the weights and timesteps of two layers are."""
    for name in ("dift-bicubic", "dift-dual", "dual-single", "dual-class", "dual-cpm"):
        own = load_recipe(name).inference
        assert own.readout.source.value == own.upsample_align.source.value == "dualsd"
        assert own.layers.source.value == "report"
    dual = load_recipe("dual-single")
    assert dual.inference.weights.source.value == "report"
    assert dual.training is not None
    assert dual.training.timesteps.source.value == "report"
    assert load_recipe("sd4match-single").inference.timesteps.source.value == "sd4match"  # type: ignore[union-attr]


def test_what_a_recipe_says_is_what_the_code_does() -> None:
    """Values that no option carries."""
    for recipe in load_recipes().values():
        own = recipe.inference
        assert frame_of(own.readout.value).value == own.frame.value
        assert own.template is None or own.template.value == DEFAULT_TEMPLATE
        assert own.dino is None or own.dino.value == HUB_NAME
        assert recipe.training is None or recipe.training.beta.value == BETA


def test_the_list_and_one_recipe_are_shown(run: Run) -> None:
    shown = run("recipes")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in SETTINGS)
    one = run("recipes", "sd-dino")
    assert one.exit_code == 0
    assert re.search(r"weights +│ 0.5, 0.5 +│ taken from SD4Match's code", one.output)
    assert re.search(r"readout +│ nn +│ chosen by us", one.output)
    assert "gives DINOv2 images with Stable Diffusion's statistics" in one.output
    unknown = run("recipes", "sd5")
    assert unknown.exit_code == 2
    assert "no recipe 'sd5': choose from dift, " in unknown.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_the_commands_that_are_printed_are_commands(run: Run, name: str) -> None:
    """They are refused for their store alone, which is not there."""
    build, *others = map(shlex.split, commands(load_recipe(name)))
    assert build[:3] == ["dualsd", "cache", "build"]
    assert len(others) == (2 if name in TRAINED else 1)
    for command in others:
        result = run(*command[1:])
        assert result.exit_code == 2
        assert "There is no store at spair.zarr" in result.stderr


TEXT = (FOLDER / "dual-cpm.toml").read_text(encoding="utf-8")


def changed(old: str, new: str) -> str:
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "is no TOML"),
        ("", "lacks 'inference'"),
        (changed("[inference]", "[inferrence]"), "has 'inferrence', which is not known there"),
        (changed("kernel = {", "kernal = {"), "[training] has 'kernal'"),
        (changed('kernel = { value = 7, source = "sd4match" }\n', ""), "[training] lacks 'kernel'"),
        (changed("{ value = 7,", "{ valu = 7,"), "kernel has 'valu'"),
        (changed('value = 7, source = "sd4match"', "value = 7"), "kernel lacks 'source'"),
        (changed('value = 7, source = "sd4match"', 'value = 7, source = "me"'), "has the source 'me' where report, "),
        (changed('kernel = { value = 7, source = "sd4match" }', "kernel = 7"), "kernel is 7 where { value = ..., "),
        (changed("{ value = 7,", "{ value = 7.0,"), "kernel is 7.0 where a whole number from 1 on is known"),
        (changed("{ value = 7,", "{ value = true,"), "kernel is True where a whole number"),
        (changed("{ value = 7,", '{ value = "7",'), "kernel is '7' where a whole number"),
        (changed("value = 0.001", "value = -0.001"), "network_rate is -0.001 where a positive number"),
        (changed("value = 0.04", "value = inf"), "beta is inf where a positive number"),
        (changed("value = [50, 200]", "value = [50]"), "has 1 timesteps for 2 layer(s)"),
        (changed("value = [50, 200]", "value = [50, 1000]"), "where a list of timesteps from 0 to 999 is known"),
        (changed("value = [2, 3]", "value = [2, 5]"), "where a list of layers from 1 to 4 or 'dino' is known"),
        (changed("value = [2, 3]", "value = [true, 3]"), "where a list of layers"),
        (changed("value = [2, 3]", "value = [2, 2]"), "names a layer twice"),
        (changed("value = [0.8, 0.6]", "value = [0.8]"), "has 1 weights for 2 layer(s)"),
        (changed("value = [0.8, 0.6]", "value = 0.8"), "weights is 0.8 where a list of weights above 0 is known"),
        (changed("value = [261, 350]", "value = [261]"), "has 1 timesteps of training for 2 layer(s)"),
        (changed('value = "nn"', 'value = "best"'), "readout is 'best' where 'nn' or 'bilinear' or "),
        (changed('value = "nn"', 'value = "pixel"'), "pixel is scored in the original frame"),
        (changed('value = "cpm"', 'value = "single"'), "has [inference] dino, for which its other values have no use"),
        (changed('value = "cpm"', 'value = "text"'), "lacks [inference] template, which its other values ask for"),
        (changed('dino = { value = "facebook/dinov2-base", source = "sd4match" }\n', ""), "lacks [inference] dino"),
        (changed("ensemble = { value = 1,", "ensemble = { value = 2,"), "trains on 2 noise draws where 1 is known"),
        (TEXT[: TEXT.index("[training]")], "lacks [training]"),
        (changed("[training.epochs]", "[training.epochs.of]"), "epochs of of has 'pf-pascal'"),
        (changed('title = "', 'title = 3 # "'), "needs a title, a text"),
    ],
)
def test_a_recipe_that_is_not_as_it_should_be(text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_recipe(text, "mine")
    assert words in str(raised.value)
    assert str(raised.value).startswith("The recipe mine")
    assert len(str(raised.value).splitlines()) == 1


def test_help_needs_no_recipe_to_be_read(run: Run) -> None:
    result = run("reproduce", "--help")
    assert result.exit_code == 0
    assert "table5" in result.output


def test_every_recipe_is_read_as_it_is_written() -> None:
    """No value is lost: as many stated values as the file has sources."""
    for path in sorted(Path(FOLDER).glob("*.toml")):
        recipe: Recipe = load_recipe(path.stem)
        assert len(recipe.stated()) == path.read_text(encoding="utf-8").count("source = ")
