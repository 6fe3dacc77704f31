"""What nobody types is the recommendation for the store's model: the demo's own, SD 2-1's for models without one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.backbones.models import open_model
from featstore.backbones.registry import profile_of
from featstore.config import TrainConfig
from featstore.pipeline.match import Featurizer, match
from featstore.tuning.settings import TuningSettings, settings_of
from matcher.errors import InputError
from tests.cli.conftest import Run
from tests.cli.test_score import ok

DEMO, OTHERS = profile_of("demo"), profile_of("sd2-1")


@pytest.fixture
def demo_store(run: Run, photographs: Path) -> Path:
    """A store of the small photographs, made with the demo model."""
    ok(run("cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", "demo", "--t", "50"))
    return Path("dualsd.zarr")


def test_the_demo_has_settings_of_its_own() -> None:
    assert DEMO.text_timesteps != OTHERS.text_timesteps
    assert DEMO.weights != OTHERS.weights
    assert (OTHERS.text_timesteps, OTHERS.weights) == ({"2": 261, "3": 200}, {"2": 0.8, "3": 0.6})


def test_eval_takes_those_of_the_stores_model(run: Run, demo_store: Path) -> None:
    ok(run("eval", "--ensemble", "1", "--readouts", "nn", "--json", "demo.json"))
    found = json.loads(Path("demo.json").read_text())
    steps, weights = ([own[layer] for layer in ("2", "3")] for own in (DEMO.text_timesteps, DEMO.weights))
    assert (found["layers"], found["t"], found["weights"]) == ([2, 3], steps, weights)


def test_eval_of_another_model_is_as_it_was(run: Run, store: Path) -> None:
    ok(run("eval", "--ensemble", "1", "--readouts", "nn", "--json", "other.json"))
    found = json.loads(Path("other.json").read_text())
    assert (found["layers"], found["t"], found["weights"]) == ([2, 3], [261, 200], [0.8, 0.6])


def test_maps_and_match_take_them_too(run: Run, demo_store: Path, photographs: Path) -> None:
    ok(run("cache", "maps", "--ensemble", "1"))
    for layer, step in DEMO.text_timesteps.items():
        assert [*demo_store.glob(f"maps/*/layer{layer}/t{step:04d}")]
    files = sorted((photographs / "cat").glob("*.png"))[:2] or sorted(photographs.rglob("*.*"))[:2]
    ok(
        run(
            "match",
            *map(str, files),
            "--points",
            "3,3",
            "--store",
            str(demo_store),
            "--json",
            "m.json",
            "--out",
            "m.png",
        )
    )
    found = json.loads(Path("m.json").read_text())
    assert (found["t"], found["weights"]) == ([*DEMO.text_timesteps.values()], [*DEMO.weights.values()])


def test_match_in_python_weighs_as_the_command_does() -> None:
    featurizer = Featurizer("demo")
    picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    maps = featurizer(picture, ensemble=1)
    assert [*maps.maps] == [*DEMO.text_timesteps.items()]
    usual = match(maps, maps, [(40, 60)])
    typed = match(maps, maps, [(40, 60)], weights=[*DEMO.weights.values()])
    np.testing.assert_array_equal(usual.correlations, typed.correlations)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["eval"], ["no default layers", "--layers", "dualsd grid"]),
        (["cache", "maps"], ["no default layers", "--layers", "dualsd grid"]),
        (["eval", "--layers", "2,3"], ["no default timestep for layer 2", "--t", "dualsd grid --layers 2,3 --t"]),
        (["eval", "--layers", "2,3", "--t", "50,261"], ["no default weights", "--weights", "dualsd grid --layers 2,3"]),
    ],
)
def test_what_nobody_has_published_is_to_be_said(
    run: Run, store: Path, unknown: None, typed: list[str], words: list[str]
) -> None:
    result = run(*typed)
    assert result.exit_code == 2
    for word in words:
        assert word in " ".join(result.stderr.split())


def test_training_asks_for_it_too(unknown: None, small_model: Path) -> None:
    model = open_model(str(small_model))

    def settings(**said: Any) -> TuningSettings:
        return settings_of(TrainConfig(mode="single", **said), "spair", 9, model, 64, "float32")

    for said, words in (
        ({}, "no default layers for this model: name them with --layers"),
        ({"layers": ("2",)}, "no default timestep for layer 2: give one per layer with --t"),
        ({"layers": ("2", "3"), "timesteps": (50, 50)}, "no default weights for layers 2,3"),
        ({"layers": ("2",), "timesteps": (50,)}, "no default kernel for this model: say with --kernel"),
    ):
        with pytest.raises(InputError, match=words):
            settings(**said)
    assert settings(layers=("2",), timesteps=(50,), kernel=5).kernel == 5


def test_what_is_said_needs_no_profile(run: Run, store: Path, unknown: None) -> None:
    ok(run("eval", "--ensemble", "1", "--layers", "2,3", "--t", "50,261", "--weights", "1,2", "--json", "own.json"))
    assert json.loads(Path("own.json").read_text())["weights"] == [1.0, 2.0]
    ok(run("grid", "--ensemble", "1", "--layers", "2,3", "--t", "50,261"))
    with pytest.raises(InputError, match="no default layers"):
        Featurizer(json.loads((store / "zarr.json").read_text())["attributes"]["model"]["id"])("cat/0.png")
