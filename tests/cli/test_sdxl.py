"""SDXL in every command, by the same flags as any model: a small random one in the published layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

import dualsd
from tests.cli.conftest import Run
from tests.featstore.backbones.small_families import FIRST_WIDTH, SECOND_WIDTH, write_small_sdxl
from tests.featstore.trainable import write_trainable

LAYERS = ("--layers", "1,2", "--weights", "0.8,0.6")
AT = ("--t", "261,200")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl") / "small"
    write_small_sdxl(folder)
    return folder


def done(run: Run, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def refused(run: Run, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def results(run: Run, *arguments: str) -> dict[str, Any]:
    done(run, *arguments, "--json", "out.json")
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


@pytest.fixture
def built(run: Run, photographs: Path, model: Path) -> Path:
    """A store of it."""
    told = done(
        run,
        *("cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(model)),
        *("--t", "261"),
    )
    assert "images of 64 pixels; noise: scaled_linear betas 0.00085 to 0.012, 1000 timesteps, epsilon" in told
    return Path("dualsd.zarr")


def test_kept_maps_are_its_pipelines(run: Run, built: Path, model: Path) -> None:
    """Against diffusers' own pipeline (prompt, pooled embedding, time ids, whole UNet) on the store's noisy latents."""
    told = done(run, "cache", "maps", *LAYERS[:2], "--t", "261,261", "--ensemble", "1", "--prompt", "a photo")
    assert "layer 1: 64 channels, 8x8 cells of 8 pixels" in told
    group = zarr.open_group(built, mode="r")
    noisy = torch.from_numpy(np.asarray(group["noisy/t0261"][:, 0], dtype=np.float32))  # type: ignore[index]
    pipeline = StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False, dtype=torch.float32)
    embeddings, _, pooled, _ = pipeline.encode_prompt("a photo", device="cpu", do_classifier_free_guidance=False)
    sizes = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, pooled.shape[-1])
    count = len(noisy)
    found: list[torch.Tensor] = []
    for block in pipeline.unet.up_blocks[:2]:
        block.register_forward_hook(lambda *given: found.append(given[2]))
    with torch.no_grad():
        added = {"text_embeds": pooled.expand(count, -1), "time_ids": sizes.expand(count, -1)}
        pipeline.unet(noisy, 261, encoder_hidden_states=embeddings.expand(count, -1, -1), added_cond_kwargs=added)
    for layer, truth in zip(("1", "2"), found, strict=True):
        (array,) = (built / "maps").glob(f"*/layer{layer}/t0261")
        stored = np.asarray(zarr.open_array(array, mode="r")[:], dtype=np.float32)
        np.testing.assert_allclose(stored, truth.numpy(), atol=5e-3, rtol=5e-3)  # of float16


def test_every_command(run: Run, built: Path, photographs: Path, model: Path) -> None:
    out = results(run, "eval", *LAYERS, *AT, "--readouts", "nn")
    assert (out["layers"], out["t"]) == ([1, 2], [261, 200])
    parts = results(run, "eval", "--layers", "2.1,3.2", "--weights", "1,1", *AT, "--readouts", "nn")
    assert parts["layers"] == ["2.1", "3.2"]
    assert "layer 2" in done(run, "grid", "--layers", "1,2", "--t", "100,200", "--split", "test")
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    match = ("match", a, b, "--points", "10,10;30,20", *LAYERS, *AT, "--category", "cat", "--ensemble", "2")
    done(run, *match, "--store", str(built), "--json", "stored.json")
    done(run, *match, "--model", str(model), "--json", "named.json")
    stored, named = (json.loads(Path(name).read_text()) for name in ("stored.json", "named.json"))
    assert stored["target_points"] == named["target_points"]
    featurizer = dualsd.Featurizer(str(model))
    maps = [featurizer(one, "a photo of a cat", ("1", "2"), (261, 200), ensemble=2) for one in (a, b)]
    found = dualsd.match(*maps, points=[(10, 10), (30, 20)], weights=(0.8, 0.6))
    np.testing.assert_allclose(found.points, named["target_points"], atol=1e-3)


def test_layers_that_it_does_not_have(run: Run, built: Path) -> None:
    words = "no layer 4: this UNet has the layers 1 to 3"
    for command in ("eval", "grid", "cache maps"):
        assert words in refused(run, *command.split(), "--layers", "4", "--t", "261")


@pytest.fixture
def trainable(run: Run, tmp_path: Path, model: Path) -> None:
    write_trainable(tmp_path / "spair")
    done(run, "cache", "build", "--dataset", "spair", "--root", str(tmp_path / "spair"), "--model", str(model))


FEW = ("--batch", "2", "--val-every", "1", "--length", "4", "--kernel", "3")


def test_class_prompts_are_learned_for_both_encoders_and_resumed(run: Run, trainable: None) -> None:
    begun = ("train", "--mode", "class", *LAYERS, *AT, *FEW)
    done(run, *begun, "--steps", "1", "--name", "r")
    done(run, "train", "--resume", "runs/r", "--steps", "2")
    done(run, *begun, "--steps", "2", "--name", "whole")
    resumed, whole = (load_file(f"runs/{name}/prompts.safetensors") for name in ("r", "whole"))
    for name, rows in whole.items():
        assert rows.shape == (77, FIRST_WIDTH + SECOND_WIDTH)
        torch.testing.assert_close(resumed[name], rows, rtol=0, atol=0)
    assert "cat, dog" in done(run, "prompts", "info", "runs/r")


def test_a_single_prompt_is_learned_and_used(run: Run, trainable: None, tmp_path: Path) -> None:
    done(run, "train", "--mode", "single", *LAYERS, *AT, *FEW, "--steps", "1", "--gradient-checkpointing")
    of = ("eval", *LAYERS, *AT, "--readouts", "nn", "--ensemble", "1", "--split", "val")
    assert results(run, *of, "--prompts", "newest")["n_pairs"] > 0
    a, b = (str(tmp_path / "spair" / "JPEGImages" / "cat" / f"{index}.jpg") for index in (0, 1))
    match = ("match", a, b, "--points", "10,10", "--store", "dualsd.zarr", *LAYERS, *AT, "--ensemble", "1")
    assert "the newest finished run on this store" in done(run, *match, "--prompts", "newest")


def test_layer_4_cannot_be_trained(run: Run, trainable: None) -> None:
    words = refused(run, "train", "--mode", "single", "--layers", "3,4", "--weights", "1,1", *AT, *FEW, "--steps", "1")
    assert "no layer 4: this UNet has the layers 1 to 3" in words
