"""One new file and one line of the registry: the toy backbone of `tests.featstore.backbones.toy` works everywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from featstore.backbones import registry
from featstore.backbones.base import compute_on
from featstore.config import GridConfig
from featstore.pipeline.grid import grid
from featstore.pipeline.match import Featurizer, match
from featstore.pipeline.sources import StoredMaps
from featstore.store.store import open_store
from matcher.configuration import LayerSpec
from tests.featstore.backbones.toy import ToyBackbone


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.LAYERS, "toy", "tests.featstore.backbones.toy")


@pytest.fixture
def place(small_model: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run("cache", "build", "--dataset", "folder", "--root", photographs, "--model", small_model, "--size", 64, "--t", 50)
    return tmp_path


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def by_hand(file: Path) -> torch.Tensor:
    """The map of a picture, with nothing of the loop."""
    compute = compute_on("cpu", "float32")
    pixels = np.asarray(Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    inputs = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None] / 127.5 - 1
    return ToyBackbone().load(compute, ["toy"]).features(inputs, None, None, ["toy"])["toy"][0]


def test_eval_alone_and_fused(place: Path, photographs: Path) -> None:
    said = run("eval", "--layers", "toy", "--readouts", "nn", "--json", "toy.json")
    assert "layer toy: 8 channels, 8x8 cells of 8 pixels" in said
    found = json.loads((place / "toy.json").read_text())
    assert (found["layers"], found["t"], found["features"]["toy"]) == (["toy"], [None], "toy")
    store = open_store(place / "dualsd.zarr")
    (extractor,) = store.pixel_extractors("toy")
    assert extractor.describe() == {"toy": {"id": "toy", "fingerprint": "0" * 32}, "size": 64, "dtype": "float32"}
    stored = StoredMaps(store, None, {"toy": extractor}).load("cat/1", LayerSpec("toy", None))
    expected = by_hand(photographs / "cat" / "1.png")
    np.testing.assert_allclose(stored.float().numpy(), expected.numpy(), rtol=2e-3, atol=2e-3)
    again = run("eval", "--layers", "2,toy", "--t", 50, "--ensemble", 1, "--readouts", "nn", "--json", "both.json")
    assert "layer toy" not in again.partition("PCK")[0].replace("layer toy x", "")  # its maps were there
    assert json.loads((place / "both.json").read_text())["weights"] == [0.5, 0.5]


def test_grid_from_the_cache_and_streamed(place: Path) -> None:
    def tried(*, stream: bool) -> dict[str, float]:
        config = GridConfig(
            layers=("2", "toy", "dino"),
            timesteps=(50, 100),
            weightings=((0.8, 0.6, 0.5),),
            ensemble=1,
            stream=stream,
            dino_size=56,
        )
        done = grid(config)
        done.forget()
        scores = done.scores
        means = scores.hits.astype(float).sum(axis=-1)[:, 0, -1]
        return {entry.name: float(mean) for entry, mean in zip(scores.configurations, means, strict=True)}

    streamed = tried(stream=True)
    assert not (place / "dualsd.zarr" / "maps").exists()
    assert streamed == tried(stream=False)
    names = ["layer 2 at t = 50", "layer 2 at t = 100", "layer toy", "layer dino"]
    assert list(streamed)[:4] == names
    assert len(streamed) == 6  # each timestep of layer 2 with both others


def test_the_command_grid(place: Path) -> None:
    words = ["--layers", "2,dino", "--t", "50,100", "--weights", "0.5:0.5", "--dino-size", 56, "--ensemble", 1]
    run("grid", *words, "--json", "grid.json")
    found = json.loads((place / "grid.json").read_text())
    assert found["n_pairs"] > 0


def test_match_and_python(place: Path, photographs: Path) -> None:
    first, second = photographs / "cat" / "0.png", photographs / "cat" / "1.png"
    words = [first, second, "--points", "10,10;30,20", "--store", "dualsd.zarr", "--layers", "toy,2", "--t", 50]
    run("match", *words, "--ensemble", 1, "--json", "found.json")
    found = json.loads((place / "found.json").read_text())
    assert (found["layers"], found["t"], found["weights"]) == (["toy", 2], [None, 50], [0.5, 0.5])
    featurizer = Featurizer(open_store(place / "dualsd.zarr").header.model_id, device="cpu", size=64)
    maps = [featurizer(file, layers=("toy", "2"), timesteps=(50,), ensemble=1) for file in (first, second)]
    matches = match(*maps, [(10, 10), (30, 20)])
    np.testing.assert_array_equal(matches.points, np.array(found["target_points"], dtype=np.float32))
    np.testing.assert_allclose(matches.scores, found["scores"], rtol=1e-6)
    np.testing.assert_allclose(matches.margins, found["margins"], rtol=1e-6)
    assert matches.mutual.tolist() == found["mutual"]
    assert (np.abs(matches.scores) <= 1 + 1e-6).all()
    (alone,) = featurizer(np.asarray(Image.open(first)), layers=("toy",)).maps.values()
    np.testing.assert_allclose(alone.numpy(), by_hand(first).numpy(), rtol=1e-5, atol=1e-6)


def test_a_layer_that_there_is_not(place: Path) -> None:
    done = CliRunner().invoke(app, ["eval", "--layers", "toys"])
    assert done.exit_code == 2
    assert "from 1 to 4, or dino or dinov3 or toy, not 'toys'" in done.output
