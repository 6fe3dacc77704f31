"""Recipes against the paper's settings, and how they are read and shown."""

import re
import shlex
from typing import Any

import pytest

from cli.show_recipes import commands
from featstore.backbones.dino import HUB_NAME
from featstore.config import EvalConfig, TrainConfig
from featstore.parsing import from_file, from_json
from featstore.prompts.text import DEFAULT_TEMPLATE
from featstore.recipes import FOLDER, load_recipes, parse_recipe
from matcher.configuration import BETA, frame_of
from matcher.errors import InputError
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


RECIPES = load_recipes()


def test_these_recipes_there_are() -> None:
    assert set(RECIPES) == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_papers(name: str) -> None:
    recipe = RECIPES[name]
    own, train = recipe.eval, recipe.train
    found = (
        own.layers,
        None if train is None else train.timesteps,
        own.timesteps,
        own.weights,
        own.upsample,
        ("text" if own.prompt else None) if train is None else train.mode,
        None if train is None else (recipe.epochs["spair"], recipe.epochs["pf-pascal"]),
    )
    assert found == SETTINGS[name]
    assert (recipe.build.model, recipe.build.size) == ("sd2-1", 768)
    assert recipe.build.latents == (None if name == "dino" else "sample")
    assert own.ensemble == (None if name == "dino" else 8)
    assert own.prompt == ("a photo of a {category}" if train is None and name != "dino" else None)
    expected = (("pixel",), "original") if name == "dift-pixel" else (("nn",), "resized")
    assert (own.readouts, recipe.defaults.frame) == expected
    assert (own.average, own.geometry, own.upsample_align) == ("image", "corners", "corners")
    assert own.alphas == (0.05, 0.1, 0.15)
    assert own.dino_size == (672 if "dino" in name else None)


@pytest.mark.parametrize("name", TRAINED)
def test_settings_of_training_are_the_papers(name: str) -> None:
    recipe = RECIPES[name]
    train, defaults = recipe.train, recipe.defaults
    assert train is not None
    # what is trained is what is tested, but for the timesteps
    own = recipe.eval
    assert (train.layers, train.weights, train.geometry) == (own.layers, own.weights, own.geometry)
    assert train.upsample_align == own.upsample_align
    assert (train.batch, defaults.draws_per_step, train.length) == (9, 1, 75)
    assert (defaults.optimiser, train.rate) == ("adam", 0.01)
    assert train.network_rate == (0.001 if name.endswith("cpm") else None)
    assert (train.kernel, defaults.beta) == (7, 0.04)
    assert (train.noise, train.draws, train.validation_pairs) == ("cached", 4, 500)
    assert defaults.selection == "nn PCK@0.1, image average, on val"
    assert train.steps == recipe.steps_for("spair", 53_340)


def test_lengths_of_training() -> None:
    """DESIGN, section 4; batches of 9 of 53,340 and 2,941 pairs."""
    steps = {
        (name, dataset): RECIPES[name].steps_for(dataset, pairs)
        for name in ("dual-single", "dual-class", "dual-cpm")
        for dataset, pairs in (("spair", 53_340), ("pf-pascal", 2_941))
    }
    assert steps["dual-single", "spair"] == steps["dual-class", "spair"] == 29_633
    assert steps["dual-cpm", "spair"] == 11_853
    assert steps["dual-single", "pf-pascal"] == 16_339
    for name, dataset in (("dift", "spair"), ("dual-single", "pf-willow")):
        with pytest.raises(InputError, match=f"{name} is not trained on '{dataset}'"):
            RECIPES[name].steps_for(dataset, 900)


def test_sources_of_what_is_easily_taken_for_the_reports() -> None:
    """The readout and the upsampling's alignment are not stated; the weights and timesteps of two layers are."""
    for name in ("dift-bicubic", "dift-dual", "dual-single", "dual-class", "dual-cpm"):
        stated = RECIPES[name].stated
        assert stated["eval", "readouts"].source == stated["eval", "upsample_align"].source == "dualsd"
        assert stated["eval", "layers"].source == "report"
    dual = RECIPES["dual-single"].stated
    assert dual["eval", "weights"].source == dual["train", "weights"].source == "report"
    assert dual["train", "timesteps"].source == "report"
    assert RECIPES["sd4match-single"].stated["eval", "timesteps"].source == "sd4match"


def test_what_a_recipe_says_is_what_the_code_does() -> None:
    """Values that no option carries."""
    for recipe in RECIPES.values():
        (readout,) = recipe.eval.readouts
        assert frame_of(readout).value == recipe.defaults.frame
        assert recipe.eval.prompt in (None, DEFAULT_TEMPLATE)
        assert recipe.defaults.dino in (None, HUB_NAME)
        assert recipe.train is None or recipe.defaults.beta == BETA


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recipe_is_a_config_file(name: str) -> None:
    """What `--config` reads of a recipe's file is what the recipe holds."""
    file = FOLDER / f"{name}.toml"
    recipe = RECIPES[name]
    assert from_json(EvalConfig, from_file(EvalConfig, file), str(file), str) == recipe.eval
    if recipe.train is not None:
        assert from_json(TrainConfig, from_file(TrainConfig, file), str(file), str) == recipe.train


def test_the_list_and_one_recipe_are_shown(run: Run) -> None:
    shown = run("recipes")
    assert shown.exit_code == 0
    assert all(name in shown.output for name in SETTINGS)
    one = run("recipes", "sd-dino")
    assert one.exit_code == 0
    assert re.search(r"weights +│ 0.5, 0.5 +│ taken from SD4Match's code", one.output)
    assert re.search(r"readouts +│ nn +│ chosen by us", one.output)
    assert "gives DINOv2 images with Stable Diffusion's statistics" in one.output
    unknown = run("recipes", "sd5")
    assert unknown.exit_code == 2
    assert "no recipe 'sd5': choose from dift, " in unknown.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_the_commands_that_are_printed_are_commands(run: Run, name: str) -> None:
    """They are refused for their store alone, which is not there."""
    build, *others = map(shlex.split, commands(RECIPES[name]))
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
        ("title = ", " is no TOML"),
        ("", ": it needs title"),
        (changed("[eval]", "[evaluation]"), "eval"),
        (changed("kernel = {", "kernal = {"), ", [train]: it has 'kernal', which is no setting there"),
        (changed("{ value = 7,", "{ valu = 7,"), ", [train] kernel: it needs value"),
        (changed('value = 7, source = "sd4match"', "value = 7"), ", [train] kernel: it needs source"),
        (
            changed('value = 7, source = "sd4match"', 'value = 7, source = "me"'),
            "source is 'me', not one of 'report', ",
        ),
        (changed('kernel = { value = 7, source = "sd4match" }', "kernel = 7"), ", [train] kernel: it needs source"),
        (changed("{ value = 7,", "{ value = 7.0,"), "kernel is 7.0, not a whole number"),
        (changed("{ value = 7,", "{ value = true,"), "kernel is True, not a whole number"),
        (changed("{ value = 7,", '{ value = "7",'), "kernel is '7', not a whole number"),
        (changed("value = 0.001", "value = -0.001"), "not at least 0"),
        (changed("value = 0.04", "value = inf"), "beta is inf, not a finite number"),
        (changed("value = [50, 200]", "value = [50, 1000]"), "There is no timestep 1000"),
        (changed("value = [50, 200]", "value = []"), "not a list of at least 1"),
        (changed('value = "resized"', 'value = "best"'), "frame is 'best', not one of 'resized', 'original'"),
        (changed("value = 2,", 'value = "2",'), ", [epochs]: spair is '2', not a whole number"),
        (changed("value = 2,", "value = 0,"), ", [epochs]: spair is 0, not at least 1"),
        (TEXT[: TEXT.index("[epochs]")] + TEXT[TEXT.index("[defaults]") :], "needs [train] and [epochs], or neither"),
        (changed("[epochs]", "[epochs.of]"), ", [epochs] of: it "),
        (changed('title = "', 'title = 3 # "'), ": title is 3, not a text"),
        (changed("[defaults]", "[extra]\n[defaults]"), "'extra', which is no setting there"),
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
    for name, recipe in RECIPES.items():
        assert len(recipe.stated) == (FOLDER / f"{name}.toml").read_text(encoding="utf-8").count("source = ")
