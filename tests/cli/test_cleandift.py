"""A UNet that was trained without noise, in every command: CleanDIFT's way, on the small model."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

import dualsd
from tests.cli.conftest import Run
from tests.featstore.trainable import write_trainable

LAYERS = ("--layers", "2,3", "--readouts", "nn")


@pytest.fixture
def unet(small_model: Path, tmp_path: Path) -> Path:
    """Like a published file: diffusers' names, and a timestep that was learned."""
    own = load_file(small_model / "unet" / "diffusion_pytorch_model.safetensors")
    tensors = {f"unet_feature_extractor_cleandift.{name}": tensor * 1.25 for name, tensor in own.items()}
    path = tmp_path / "cleandift.safetensors"
    save_file({**tensors, "timestep": torch.tensor(257.5)}, path)
    return path


@pytest.fixture
def clean(run: Run, photographs: Path, small_model: Path, unet: Path) -> Path:
    """A store of it."""
    output = done(
        run,
        *("cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(small_model)),
        *("--size", "64", "--unet", str(unet)),
    )
    assert "told t = 257.5, without noise" in output
    return Path("dualsd.zarr")


def done(run: Run, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(run: Run, *arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def results(run: Run, *arguments: str) -> dict[str, Any]:
    done(run, *arguments, "--json", "out.json")
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def test_maps_are_of_clean_latents_in_one_pass(run: Run, clean: Path, small_model: Path, unet: Path) -> None:
    """Layer 2 against diffusers' UNet with those weights, by a hook."""
    output = done(run, "cache", "maps", "--layers", "2,3", "--prompt", "a photo")
    assert "6 images: 6 UNet passes made" in output  # of both layers
    assert sorted(path.name for path in (clean / "maps").glob("*/*/*/")) == ["clean", "clean"]
    assert not (clean / "noisy").exists()
    group = zarr.open_group(clean, mode="r")
    latents = torch.from_numpy(np.asarray(group["latents"][:], dtype=np.float32))  # type: ignore[index]
    network = UNet2DConditionModel.from_pretrained(small_model / "unet", torch_dtype=torch.float32).eval()
    weights = load_file(unet)
    network.load_state_dict({name.split(".", 1)[1]: own.float() for name, own in weights.items() if name != "timestep"})
    found: list[torch.Tensor] = []
    network.up_blocks[1].register_forward_hook(lambda *given: found.append(given[2]))
    from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
    from featstore.backbones.locate import locate

    location = locate(str(small_model))
    tokens = load_tokenizer(location)("a photo", padding="max_length", return_tensors="pt").input_ids
    encoder = load_text_encoder(location, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        told = encoder(tokens).last_hidden_state.expand(len(latents), -1, -1)
        network(latents, 257.5, told)
    (array,) = (clean / "maps").glob("*/layer2/clean")
    stored = np.asarray(zarr.open_array(array, mode="r")[:], dtype=np.float32)
    np.testing.assert_allclose(stored, found[0].numpy(), atol=5e-3, rtol=5e-3)


def test_every_command(run: Run, clean: Path, photographs: Path, small_model: Path, unet: Path) -> None:
    typed = results(run, "eval", *LAYERS, "--t", "clean")
    out = results(run, "eval", *LAYERS)
    assert typed["results"] == out["results"]
    assert (out["t"], out["features"]["ensemble"], out["features"]["unet"]) == ([None, None], 1, str(unet))
    parts = results(run, "eval", "--layers", "2.1,2", "--weights", "1,1", "--readouts", "nn")
    assert parts["layers"] == ["2.1", "2"]
    grid = done(run, "grid", "--layers", "2,3", "--split", "test")
    assert "layer 2" in grid
    again = done(run, "cache", "build")  # finds its UNet by itself
    assert "0 encoded, 6 skipped" in again
    a, b = (str(photographs / "cat" / f"{index}.png") for index in (0, 1))
    match = ("match", a, b, "--points", "10,10;30,20", "--layers", "2,3", "--category", "cat")
    done(run, *match, "--store", str(clean), "--json", "stored.json")
    done(run, *match, "--model", str(small_model), "--unet", str(unet), "--size", "64", "--json", "named.json")
    stored, named = (json.loads(Path(name).read_text()) for name in ("stored.json", "named.json"))
    assert stored["target_points"] == named["target_points"]
    featurizer = dualsd.Featurizer(str(small_model), unet=str(unet), size=64)
    maps = [featurizer(one, prompt="a photo of a cat", layers=("2", "3")) for one in (a, b)]
    assert [key for key, _ in maps[0].maps.items()] == [("2", None), ("3", None)]
    found = dualsd.match(*maps, points=[(10, 10), (30, 20)], weights=(0.8, 0.6))
    np.testing.assert_allclose(found.points, named["target_points"], atol=1e-3)


def test_prompts_are_learned_without_noise(run: Run, tmp_path: Path, small_model: Path, unet: Path) -> None:
    write_trainable(tmp_path / "spair")
    build = ("cache", "build", "--dataset", "spair", "--root", str(tmp_path / "spair"), "--model", str(small_model))
    done(run, *build, "--size", "64", "--unet", str(unet))
    few = ("--steps", "2", "--batch", "2", "--val-every", "1", "--length", "4")
    words = refused(run, "train", "--mode", "single", *few, "--t", "261,350")
    assert "trained on latents without noise: leave --t out, or say --t clean" in words
    output = done(run, "train", "--mode", "class", *few, "--name", "r")
    assert "layer 2 at t = clean" in output
    assert json.loads(Path("runs/r/run.json").read_text())["settings"]["timesteps"] == [None, None]
    out = results(run, "eval", *LAYERS, "--prompts", "runs/r")
    assert out["t"] == [None, None]
    done(run, "train", "--resume", "runs/r", "--steps", "3")
    done(run, "prompts", "info", "runs/r")


def test_a_damaged_row_is_made_again_by_the_command_that_verify_names(run: Run, clean: Path) -> None:
    done(run, "cache", "maps", "--layers", "2")
    (row,) = clean.glob("maps/*/layer2/clean/c.1.0.0.0")
    before = row.read_bytes()
    row.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    result = run("cache", "verify", "--drop")
    (line,) = [line for line in result.output.splitlines() if "dualsd cache maps" in line]
    done(run, *shlex.split(line[line.index("dualsd cache maps") :])[1:])
    assert row.read_bytes() == before
    pruned = done(run, "cache", "prune", "--t", "clean")
    assert "layer2/clean" in pruned
    assert not row.exists()


def test_noise_where_there_is_none_and_none_where_there_is(run: Run, clean: Path) -> None:
    for command in (("eval", "--t", "261,200"), ("grid", "--t", "50..400")):
        words = refused(run, *command, "--layers", "2,3")
        assert "trained on latents without noise: leave --t out, or say --t clean" in words


def test_clean_and_timesteps_do_not_mix(run: Run, clean: Path) -> None:
    assert "--t clean is of all layers" in refused(run, "eval", "--layers", "2,3", "--t", "clean,261")


def test_clean_is_refused_of_a_model_that_was_trained_on_noise(run: Run, store: Path) -> None:
    for command in ("eval", "grid"):
        words = refused(run, command, "--layers", "2,3", "--t", "clean")
        assert "--t clean is for a UNet that was trained without noise: name one with `cache build --unet`." in words


def test_noise_needs_a_timestep(run: Run, store: Path) -> None:
    assert "no default timestep for layer 4" in refused(run, "eval", "--layers", "4")
    assert "A grid needs timesteps: say which with --t" in refused(run, "grid", "--layers", "2,3")


def test_a_store_names_its_unet(run: Run, clean: Path, unet: Path, tmp_path: Path) -> None:
    unet.rename(tmp_path / "moved.safetensors")
    assert f"There is no UNet {unet}" in refused(run, "cache", "maps", "--layers", "2")
    done(run, "cache", "build", "--unet", str(tmp_path / "moved.safetensors"))
    done(run, "cache", "maps", "--layers", "2")
