"""SD 3.5's and FLUX's small models through every command, against passes by hand; and what they are refused."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featstore.pipeline.match import Featurizer
from featstore.store.store import open_store
from tests.cli.conftest import Run
from tests.cli.test_score import ok, refused
from tests.featstore.backbones.small_transformers import NAMES, written

KINDS = ("sd3", "flux")
LAYERS = {"sd3": ("block:1", "block:3.adaln-3-17"), "flux": ("block:2", "single:3.adaln-3-17")}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    return {kind: written(root / kind, kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def built(run: Run, photographs: Path, models: Mapping[str, Path], kind: str) -> Path:
    """A store of the small photographs, 96 pixels a side."""
    typed = ("--dataset", "folder", "--root", str(photographs), "--model", str(models[kind]), "--size", "96")
    result = ok(run("cache", "build", *typed, "--t", "260,500", "--ensemble", "2"))
    assert "noise: flow matching, x (1 - s) + noise s with s = t / 1000" in " ".join(result.output.split())
    return Path("dualsd.zarr")


def test_every_command(run: Run, built: Path, photographs: Path, models: Mapping[str, Path], kind: str) -> None:
    first, second = LAYERS[kind]
    typed = ("--layers", f"{first},{second}", "--t", "260,500", "--ensemble", "2")
    ok(run("cache", "maps", *typed, "--json", "maps.json"))
    assert json.loads(Path("maps.json").read_text())["passes"] == 2 * 2 * 6
    said = ok(run("eval", *typed, "--weights", "0.5,0.5", "--readouts", "nn", "--json", "eval.json")).output
    assert "prompt: none, the transformer is told zeros in place of a text" in said
    recorded = json.loads(Path("eval.json").read_text())
    assert (recorded["layers"], recorded["t"]) == ([first, second], [260, 500])
    assert '"prompt": "zeros"' in json.dumps(recorded)
    ok(run("grid", "--split", "test", "--layers", f"{first},{second}", "--t", "260,500", "--ensemble", "1"))
    assert Path("grid/report.html").exists()
    streamed = ("--t", "260", "--ensemble", "1", "--stream", "--out", "streamed")
    ok(run("grid", "--split", "test", "--layers", first, *streamed))
    ok(run("cache", "export", *typed, "--out", "maps.safetensors"))
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    ok(run("match", a, b, "--points", "10,10", *typed, "--weights", "1,1", "--model", str(models[kind])))
    ok(run("match", a, b, "--points", "10,10", *typed, "--weights", "1,1", "--store", str(built)))
    verified = ok(run("cache", "verify", "--recompute", "all", "--json", "verify.json")).output
    assert "0 of them damaged" in " ".join(verified.split())
    assert "flow matching" in ok(run("cache", "info")).output


def test_stored_maps_are_passes_by_hand(run: Run, built: Path, photographs: Path, kind: str) -> None:
    """From the store's latents and noise, mixed in float64 and rounded as stores do; draws are averaged before a map is
    normalised. Python gives the same of the photograph."""
    layer = LAYERS[kind][1]
    ok(run("cache", "maps", "--layers", layer, "--t", "500", "--ensemble", "2"))
    store = open_store(built)
    (extractor,) = store.extractors()
    assert extractor.prompt == {"kind": "zeros"}
    maps, noisy = store.maps(extractor, layer, 500), store.noisy(500)
    assert maps is not None
    assert noisy is not None
    featurizer = Featurizer(store.header.model_id, size=96, device="cpu")
    row = store.images.row("cat/0")
    draws = torch.from_numpy(np.stack([noisy.read((row, draw)) for draw in range(2)])).float()
    networks = featurizer.networks
    with torch.no_grad():
        mean = networks.features(draws, 500, None, [layer])[layer].mean(dim=0, keepdim=True)
        expected = networks.finished(layer, 500, mean)[0].numpy()
    np.testing.assert_allclose(maps.read((row,)).astype(np.float32), expected, rtol=2e-3, atol=2e-3)
    own = featurizer(photographs / "cat" / "0.png", layers=[layer], timesteps=[500], ensemble=2)
    # of latents that no store rounded
    np.testing.assert_allclose(own.maps[layer, 500].numpy(), expected, rtol=2e-2, atol=2e-2)


def test_what_is_refused(run: Run, built: Path, models: Mapping[str, Path], kind: str, photographs: Path) -> None:
    layer, model = LAYERS[kind][0], str(models[kind])
    typed = ("--layers", layer, "--t", "260")
    zeros = (
        "is a transformer, which is told zeros here in place of a text: prompts can be neither given to it nor learned"
    )
    refused(run("train", "--mode", "single"), zeros)
    refused(run("eval", *typed, "--prompt", "a cat"), zeros)
    refused(run("eval", *typed, "--prompts", "newest"), zeros)
    refused(run("eval", *typed, "--fallback", "text"), zeros)
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    refused(run("match", a, b, "--points", "1,1", *typed, "--prompt", "a cat", "--model", model), zeros)
    refused(run("eval", "--layers", "2", "--t", "260"), f"There is no layer 2 in {model}: its layers are blocks")
    refused(
        run("eval", "--layers", "block:7", "--t", "260"), f"There is no layer block:7 in {model}: it has block:1 to"
    )
    refused(run("eval", "--layers", layer, "--t", "clean"), "--t clean is for a UNet that was trained without noise")
    refused(run("eval", "--layers", layer, "--t", "1000"), "timestep")
    refused(run("eval"), "There are no default layers for this model: name them with --layers")
    refused(run("eval", "--layers", layer), f"There is no default timestep for layer {layer}")
    refused(run("cache", "build", "--model", model, "--unet", "x.safetensors", "--store", "s.zarr"), "a transformer")
    with pytest.raises(Exception, match="told zeros"):
        Featurizer(model)(Image.new("RGB", (96, 96)), "a cat", layers=[NAMES[kind][0]], timesteps=[260])


def test_a_unet_has_no_blocks(run: Run, store: Path, photographs: Path, small_model: Path) -> None:
    words = f"There is no layer block:2 in {small_model}: its layers are a UNet's up blocks, e.g. 2"
    refused(run("eval", "--layers", "block:2", "--t", "261"), words)
    refused(
        run("cache", "maps", "--layers", "2,single:2.adaln", "--t", "261,261"), "There is no layer single:2.adaln in"
    )
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    typed = ("--layers", "block:2", "--t", "261", "--model", str(small_model))
    refused(run("match", a, b, "--points", "1,1", *typed), words)


def test_noise_of_the_other_process_is_found(run: Run, built: Path) -> None:
    """Noisy latents that are not by flow matching: a damaged row says so, and no map is made of it."""
    noisy, latents = open_store(built).noisy(260), open_store(built).latents()
    assert noisy is not None
    for row in range(6):
        for draw in range(2):
            noisy.write((row, draw), latents.read((row,)))
    result = run("cache", "verify")
    assert result.exit_code != 0
    assert "it is not noise by the store's" in " ".join(result.output.split())
    refused(run("cache", "maps", "--layers", "block:1", "--t", "260"), "are not noise by")
