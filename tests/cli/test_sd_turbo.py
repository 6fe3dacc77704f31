"""SD-Turbo's kind in every command: epsilon prediction, a folder that names Euler's sampler, its own size."""

import json
from pathlib import Path

import pytest

import dualsd
from tests.cli.conftest import Run
from tests.featstore.backbones.small_families import write_small_sd
from tests.featstore.backbones.test_sd_family import SCHEDULERS
from tests.featstore.trainable import write_trainable


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turbo") / "small"
    write_small_sd(folder, SCHEDULERS["sd-turbo"])
    return folder


@pytest.mark.slow
def test_every_command(run: Run, tmp_path: Path, model: Path) -> None:
    def done(*arguments: str) -> str:
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    write_trainable(tmp_path / "spair")
    root = tmp_path / "spair"
    told = done("cache", "build", "--dataset", "spair", "--root", str(root), "--model", str(model), "--t", "261")
    assert "images of 128 pixels; noise: scaled_linear betas 0.00085 to 0.012, 1000 timesteps, epsilon" in told
    one = ("--layers", "2,3", "--t", "261,200", "--split", "val")
    assert "layer 2: 128 channels, 16x16 cells" in done("cache", "maps", *one, "--ensemble", "1")
    done("eval", *one, "--readouts", "nn", "--ensemble", "1", "--json", "out.json")
    assert json.loads(Path("out.json").read_text())["t"] == [261, 200]
    assert "layer 3" in done("grid", "--layers", "2,3", "--t", "100,200", "--ensemble", "1", "--split", "val")
    few = ("--steps", "1", "--batch", "2", "--val-every", "1", "--length", "4", "--kernel", "3")
    done("train", "--mode", "single", "--layers", "2,3", "--t", "261,200", *few, "--name", "r")
    a, b = (str(root / "JPEGImages" / "cat" / f"{index}.jpg") for index in (0, 1))
    done("match", a, b, "--points", "10,10", "--model", str(model), "--layers", "2", "--t", "261", "--ensemble", "1")
    maps = dualsd.Featurizer(str(model))(a, layers=("2", "4.1"), timesteps=(261, 100), ensemble=1).maps
    assert [tuple(own.shape) for own in maps.values()] == [(128, 16, 16), (32, 32, 32)]
