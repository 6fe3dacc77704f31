"""Recipes against the paper's settings, and how they are read and shown."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cli.show_recipes import commands
from featstore.backbones.dino import HUB_NAME
from featstore.config import EvalConfig, TrainConfig
from featstore.parsing import from_file, from_json
from featstore.prompts.text import DEFAULT_TEMPLATE
from featstore.recipes import FOLDER, load_recipes, load_sources, parse_recipe
from matcher.configuration import BETA, frame_of
from matcher.errors import InputError
from tests.cli.conftest import Run

# DESIGN, section 4, and, for sd4match-*, SD4Match's README. Layers, timesteps of training, of inference,
# weights, factor of upsampling, prompts, epochs on SPair-71k and PF-Pascal.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "dift": (("2",), None, (261,), (1.0,), 1, "text", None),
    "dift-50": (("2",), None, (50,), (1.0,), 1, "text", None),
    "dift-bicubic": (("2",), None, (261,), (1.0,), 2, "text", None),
    "dift-dual": (("2", "3"), None, (261, 200), (0.8, 0.6), 1, "text", None),
    "dift-pixel": (("2",), None, (261,), (1.0,), 1, "text", None),
    "dino": (("dino",), None, None, (1.0,), 1, None, None),
    "geoaware-zero-shot": (("2", "dino"), None, (50,), (0.5, 0.5), 1, "text", None),
    "sd-dino": (("2", "dino"), None, (261,), (0.5, 0.5), 1, "text", None),
    # the report's own rows of SD4Match, with the report's lengths
    "sd4match-single": (("2",), (261,), (50,), (1.0,), 1, "single", (5, 50)),
    "sd4match-class": (("2",), (261,), (50,), (1.0,), 1, "class", (5, 50)),
    "sd4match-cpm": (("2",), (261,), (50,), (1.0,), 1, "cpm", (2, 50)),
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
    assert recipe.build.latents == (None if name == "dino" else "sample")
    assert own.prompt == ("a photo of a {category}" if train is None and name != "dino" else None)
    assert own.average == "image"
    if name == "geoaware-zero-shot":  # GeoAware-SC's configs/eval_zero_shot_spair.yaml, pck_train.py and README
        assert (recipe.build.model, recipe.build.size, own.dino_size) == ("sd1-5", 960, 840)
        assert (own.readouts, own.window, own.beta, own.alphas) == (("window",), 5, 0.02, (0.1, 0.05, 0.01))
        assert (own.geometry, own.upsample_align, own.ensemble) == ("half-pixel", "half-pixel", 1)
        return
    assert (recipe.build.model, recipe.build.size) == ("sd2-1", 768)
    assert own.ensemble == (None if name == "dino" else 8)
    expected = (("pixel",), "original") if name == "dift-pixel" else (("nn", "kernelsoftmax"), "resized")
    assert (own.readouts, recipe.defaults.frame) == expected
    assert (own.beta, own.sigma) == ((None, None) if name == "dift-pixel" else (0.04, 7))
    assert (own.geometry, own.upsample_align) == ("corners", "corners")
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
    assert train.unused_categories == ("keep" if name.endswith("class") else None)
    assert defaults.selection == "nn PCK@0.1, image average, on val"
    assert train.steps == recipe.steps_for("spair", 53_340)


def test_lengths_of_training() -> None:
    """DESIGN, section 4; batches of 9 of 53,340 and 2,941 pairs."""
    steps = {
        (name, dataset): RECIPES[name].steps_for(dataset, pairs)
        for name in TRAINED
        for dataset, pairs in (("spair", 53_340), ("pf-pascal", 2_941))
    }
    for method in ("dual", "sd4match"):
        assert steps[f"{method}-single", "spair"] == steps[f"{method}-class", "spair"] == 29_633
        assert steps[f"{method}-cpm", "spair"] == 11_853
        assert steps[f"{method}-single", "pf-pascal"] == 16_339
    for name, dataset in (("dift", "spair"), ("dual-single", "pf-willow")):
        with pytest.raises(InputError, match=f"{name} is not trained on '{dataset}'"):
            RECIPES[name].steps_for(dataset, 900)


SENTENCES = tomllib.loads((Path(__file__).parents[1] / "fixtures" / "report-sentences.toml").read_text("utf-8"))
"""What the report states of each setting, word for word; what has no entry there it does not state."""

# which settings of a recipe a sentence of the report may be quoted for, and what they may then be
OF_REPORT: dict[str, dict[tuple[str, str], Any]] = {
    "model": {("build", "model"): ["sd2-1"]},
    "image size": {("build", "size"): [768]},
    "layers and timesteps, training": {("train", "layers"): [["2", "3"]], ("train", "timesteps"): [[261, 350]]},
    "layers and timesteps, inference with learned prompts": {
        ("eval", "layers"): [["2", "3"]],
        ("eval", "timesteps"): [[50, 200]],
    },
    "layers and timesteps, text prompt": {("eval", "layers"): [["2", "3"]], ("eval", "timesteps"): [[261, 200]]},
    "weights": {("eval", "weights"): [[0.8, 0.6]], ("train", "weights"): [[0.8, 0.6]]},
    "text prompt": {("eval", "prompt"): ["a photo of a {category}"]},
    "upsampling": {("eval", "upsample"): [1]},
    "epochs, SPair-71k, single and class": {
        ("epochs", "spair"): [5],
        ("train", "steps"): [29_633],
        ("train", "mode"): ["single", "class"],
    },
    "epochs, SPair-71k, cpm": {
        ("epochs", "spair"): [2],
        ("train", "steps"): [11_853],
        ("train", "mode"): ["cpm"],
    },
    "epochs, PF-Pascal, single": {("epochs", "pf-pascal"): [50]},
    "batch": {("train", "batch"): [9]},
    "optimiser": {("defaults", "optimiser"): ["adam"]},
    "learning rate": {("train", "rate"): [0.01], ("train", "network_rate"): [0.001]},
    "prompt length, single and class": {("train", "length"): [75]},
    "prompt length, cpm": {("train", "length"): [75]},
    "cpm's feature extractor": {("defaults", "dino"): ["facebook/dinov2-base"]},
    "beta and kernel, training": {("train", "kernel"): [7], ("defaults", "beta"): [0.04]},
}


def test_every_sentence_of_the_report_is_in_the_report() -> None:
    stated = {one["setting"]: (one["text"], f"section {one['section']}", one["value"]) for one in SENTENCES["sentence"]}
    quoted = {setting: (own.text, own.where, own.value) for setting, own in load_sources()["report"].says.items()}
    assert quoted.keys() == OF_REPORT.keys()
    assert quoted.items() <= stated.items()


SHARED = Path(__file__).parents[3] / "shared" / "reference" / "report-sentences.toml"


@pytest.mark.skipif(not SHARED.is_file(), reason="the project's reference files do not come with it")
def test_the_sentences_are_those_of_the_projects_reference() -> None:
    assert tomllib.loads(SHARED.read_text("utf-8")) == SENTENCES


@pytest.mark.parametrize("name", SETTINGS)
def test_the_report_is_quoted_for_what_it_says_alone(name: str) -> None:
    for setting, stated in RECIPES[name].stated.items():
        author, _, about = stated.source.partition(": ")
        if author == "report":
            assert stated.value in OF_REPORT[about][setting], (setting, stated)


def test_every_source_says_where_and_none_is_idle() -> None:
    """Code: the repository and the whole commit, a file each. What is open or ours: why, and what else to type."""
    cited = {stated.source for recipe in RECIPES.values() for stated in recipe.stated.values()}
    for name, source in load_sources().items():
        assert {f"{name}: {setting}" for setting in source.says} <= cited
        for said in source.says.values():
            if name in ("open", "dualsd"):
                assert said.where is None
                assert len(said.text.split()) > 5
            elif name == "report":
                assert re.fullmatch(r"section \d\.\d", said.where or "")
            else:
                assert re.fullmatch(r"[\w-]+/[\w-]+ at [0-9a-f]{40}", source.of)
                assert re.match(r"[\w/]+\.(py|md|yaml|sh)\b", said.where or "")
    assert "--readouts" in load_sources()["open"].says["readout"].text


def test_what_is_easily_taken_for_the_reports_is_not() -> None:
    """Its sentences do not name the readout, an ensemble, how its best prompts are chosen, or a layer's alignment."""
    for name in ("dift", "dift-bicubic", "dift-dual", "dual-single", "dual-class", "dual-cpm"):
        stated = RECIPES[name].stated
        assert stated["eval", "readouts"].by.name == "open"
        assert stated["eval", "ensemble"].by.name == "SD4Match"
    for name in ("dift-bicubic", "dift-dual", "dual-single", "dual-class", "dual-cpm"):
        assert RECIPES[name].stated["eval", "upsample_align"].by.name == "open"
    for name in TRAINED:
        stated = RECIPES[name].stated
        assert {stated["defaults", own].by.name for own in ("selection", "draws_per_step")} == {"SD4Match"}
    assert RECIPES["dual-cpm"].stated["epochs", "pf-pascal"].by.name == "open"
    assert RECIPES["sd4match-cpm"].stated["train", "steps"].by.name == "the report"


def test_what_a_recipe_says_is_what_the_code_does() -> None:
    """Values that no option carries."""
    for recipe in RECIPES.values():
        assert {frame_of(readout).value for readout in recipe.eval.readouts} == {recipe.defaults.frame}
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
    assert re.search(r"weights +│ 0.5, 0.5 +│ SD4Match, src/stable_diffusion/sd_feature_extractor.py", one.output)
    assert re.search(r"readouts +│ nn, kernelsoftmax +│ open", one.output)
    assert "SD4Match (ActiveVisionLab/SD4Match at 1da3e2e5041231471414f23b1e4c08ddc8fc1ab8):" in one.output
    assert "weights: src/stable_diffusion/sd_feature_extractor.py: 'featmap = torch.cat([0.5*featmap" in one.output
    size = "  size: section 3.1: 'Finally, we resize all images to' (768 x 768, training and testing)"
    assert size in run("recipes", "dual-cpm").output
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


KERNEL = 'source = "report: beta and kernel, training"'


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
        (changed(f"value = 7, {KERNEL}", "value = 7"), ", [train] kernel: it needs source"),
        (changed(f"value = 7, {KERNEL}", 'value = 7, source = "me"'), "source is 'me', not one of 'report', "),
        (changed(f"value = 7, {KERNEL}", 'value = 7, source = "report"'), "recipe_sources.toml has no '' of report"),
        (changed(f"value = 7, {KERNEL}", 'value = 7, source = "open: x"'), "recipe_sources.toml has no 'x' of open"),
        (changed(f"kernel = {{ value = 7, {KERNEL} }}", "kernel = 7"), ", [train] kernel: it needs source"),
        (changed("{ value = 7,", "{ value = 7.0,"), "kernel is 7.0, not a whole number"),
        (changed("{ value = 7,", "{ value = true,"), "kernel is True, not a whole number"),
        (changed("{ value = 7,", '{ value = "7",'), "kernel is '7', not a whole number"),
        (changed("value = 0.001", "value = -0.001"), "not at least 0"),
        (changed(f"value = 0.04, {KERNEL}", f"value = inf, {KERNEL}"), "beta is inf, not a finite number"),
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
