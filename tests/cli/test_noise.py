"""Noise that is not by the betas is found in a store, said, and made anew; timesteps that a model lacks are refused."""

import json
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.backbones.noise import noise
from featstore.store.store import Store, open_store
from tests.cli.conftest import Run
from tests.featstore.trainable import write_trainable

CASES = Path(__file__).parents[1] / "cases"
EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4", "--readouts", "nn")
REFUSED = (
    "dualsd: The noisy latents of dualsd.zarr at t = {} are not noise by its betas (scaled_linear betas 0.00085 to "
    "0.012, 1000 timesteps, v_prediction): run `dualsd cache verify --drop --store dualsd.zarr`, which deletes them "
    "and their maps, and says how they are made again."
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A small SPair-71k of 8 images, which can be trained on."""
    write_trainable(tmp_path / "spair")
    return tmp_path / "spair"


@pytest.fixture
def store(run: Run, pictures: Path, small_model: Path) -> Path:
    """A store of it, 64 pixels a side."""
    arguments = ("--dataset", "spair", "--root", str(pictures), "--model", str(small_model), "--size", "64")
    result = run("cache", "build", *arguments, "--t", "50,261", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    return Path("dualsd.zarr")


def said(text: str) -> str:
    return " ".join(text.split())  # a narrow terminal folds it


def _with_scheduler(small_model: Path, folder: Path, change: dict[str, Any]) -> Path:
    shutil.copytree(small_model, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


def _euler(clean: NDArray[Any], drawn: NDArray[Any], store: Store, timestep: int) -> NDArray[Any]:
    """What Euler's `add_noise` gives: noise that is added to the unscaled image."""
    abar = float(store.header.schedule.alphas_cumprod[timestep])
    return np.asarray(clean + math.sqrt((1 - abar) / abar) * drawn)


def _mirrored(clean: NDArray[Any], drawn: NDArray[Any], store: Store, timestep: int) -> NDArray[Any]:
    """What DPMSolver's `add_noise` gives: the noise of 999 - t."""
    return store.header.schedule.mix(clean, drawn, 999 - timestep)


def _spoil(path: Path, timestep: int, make: Any, rows: range = range(8)) -> None:
    """Write noisy latents as a dualsd did that called `add_noise` of the class which the folder names; maps that were
    made from them are others than those of today."""
    store = open_store(path)
    array = store.noisy(timestep)
    assert array is not None
    for row in rows:
        clean = store.latents().read((row,)).astype(np.float32)
        array.write((row, 0), make(clean, noise(0, store.images.keys[row], timestep, 0, clean.shape), store, timestep))
    for name, maps in store.arrays().items():
        if name.startswith("maps/") and name.endswith(f"/t{timestep:04d}"):
            for row in rows:
                maps.write((row,), maps.read((row,))[:, ::-1])


def _drop_and_make_again(run: Run) -> None:
    assert run("cache", "verify", "--drop", "--json", "d.json").exit_code == 0
    commands = json.loads(Path("d.json").read_text())["commands"]
    assert commands
    for command in commands.values():
        made = run(*shlex.split(command)[1:], "--batch-size", "4")
        assert made.exit_code == 0, made.output


def _scores(run: Run) -> Any:
    result = run(*EVAL, "--json", "out.json")
    assert result.exit_code == 0, result.output
    return json.loads(Path("out.json").read_text())["results"]


@pytest.mark.parametrize(("case", "make"), [("01", _euler), ("02", _mirrored)])
def test_a_store_of_other_noise_is_refused_and_made_anew(run: Run, store: Path, case: str, make: Any) -> None:
    expected = _scores(run)
    _spoil(store, 261, make)
    for command in (
        EVAL,
        ("cache", "maps", "--layers", "3", "--t", "261", "--ensemble", "1"),
        ("cache", "build", "--t", "261", "--ensemble", "2"),
        ("grid", "--layers", "2", "--t", "261", "--ensemble", "1"),
        ("train", "--mode", "single", "--layers", "2", "--t", "261", "--steps", "1"),
        ("cache", "export", "--layers", "2", "--t", "261", "--ensemble", "1", "--out", "x"),
    ):
        refusal = run(*command)
        assert (refusal.exit_code, said(REFUSED.format(261)) in said(refusal.stderr)) == (2, True), refusal.output
    found = run("cache", "verify", "--json", "v.json")
    assert (found.exit_code, "16 damaged row(s)" in said(found.stderr)) == (2, True)
    bad = json.loads(Path("v.json").read_text())["bad"]
    assert {(one["array"].split("/")[0], one["why"]) for one in bad} == {
        ("noisy", "it is not noise by the store's betas"),
        ("maps", "it was made from noise that is not by the store's betas"),
    }
    _drop_and_make_again(run)
    assert run("cache", "verify").exit_code == 0
    assert _scores(run) == expected


COMPARED = (
    ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "3", "--batch-size", "4", "--json", "out.json"),
    ("grid", "--layers", "2,3", "--t", "50,261", "--ensemble", "2", "--batch-size", "4", "--json", "out.json"),
    (
        *(
            "train",
            "--mode",
            "class",
            "--layers",
            "2,3",
            "--t",
            "261,50",
            "--length",
            "4",
            "--steps",
            "3",
            "--batch",
            "2",
        ),
        *("--draws", "2", "--val-every", "2", "--val-pairs", "4", "--name", "r", "--json", "out.json"),
    ),
)


@pytest.mark.parametrize("command", COMPARED, ids=lambda command: command[0])
def test_the_same_comes_out_with_and_without_kept_noise(run: Run, store: Path, command: tuple[str, ...]) -> None:
    """All that is needed, some of it, and none; and no command keeps noise but `cache build`."""
    assert run("cache", "build", "--t", "50,261", "--ensemble", "3", "--batch-size", "4").exit_code == 0
    some, found = {"c.1.0.0.0.0", "c.2.1.0.0.0", "c.6.2.0.0.0"}, list[Any]()
    for left in (None, some, set[str]()):
        shutil.copytree(store, "kept.zarr")
        for file in (store / "noisy").glob("t*/c.*"):
            if left is not None and file.name not in left:
                file.unlink()
        before = sorted((store / "noisy").rglob("c.*"))
        result = run(*command)
        assert result.exit_code == 0, result.output
        assert sorted((store / "noisy").rglob("c.*")) == before
        own = json.loads(Path("out.json").read_text())
        found.append({name: value for name, value in own.items() if name not in ("created", "seconds")})
        if command[0] == "train":
            found[-1] |= {"prompts": Path("runs/r/prompts.safetensors").read_bytes()}
        shutil.rmtree("runs", ignore_errors=True)
        shutil.rmtree(store)
        Path("kept.zarr").rename(store)
    assert found[0] == found[1] == found[2]


def test_one_row_of_other_noise_is_found_by_verify(run: Run, store: Path) -> None:
    before = (store / "noisy" / "t0050" / "c.3.0.0.0.0").read_bytes()
    _spoil(store, 50, _euler, range(3, 4))
    assert "1 damaged row(s)" in said(run("cache", "verify").stderr)
    _drop_and_make_again(run)
    assert (store / "noisy" / "t0050" / "c.3.0.0.0.0").read_bytes() == before


def test_latents_of_another_image_do_not_become_what_noisy_ones_are_made_of(run: Run, store: Path) -> None:
    """Nothing tells which of the two is wrong but that no noisy latent fits: both are made anew."""
    expected = _scores(run)
    one, other = (store / "latents" / f"c.{row}.0.0.0" for row in (2, 5))
    before = one.read_bytes()
    other.rename(one.with_suffix(".kept"))
    one.rename(other)
    one.with_suffix(".kept").rename(one)
    found = run("cache", "verify", "--json", "v.json")
    assert found.exit_code == 2
    bad = json.loads(Path("v.json").read_text())["bad"]
    assert {(one["array"].split("/")[0], one["row"][0]) for one in bad} == {
        (array, row) for array in ("latents", "noisy", "maps") for row in (2, 5)
    }
    _drop_and_make_again(run)
    assert one.read_bytes() == before
    assert _scores(run) == expected


def test_several_timesteps_are_said_at_once(run: Run, store: Path) -> None:
    for timestep in (50, 261):
        _spoil(store, timestep, _mirrored)
    assert said(REFUSED.format("50, 261")) in said(run(*EVAL).stderr)


@pytest.mark.parametrize("case", ["01-sigma-scheduler", "02-mirrored-timestep-scheduler"])
def test_a_folder_that_names_another_sampler_makes_the_same_store(
    run: Run, store: Path, pictures: Path, small_model: Path, tmp_path: Path, case: str
) -> None:
    folder = _with_scheduler(small_model, tmp_path / "model", {})
    shutil.copy(CASES / case / "scheduler" / "scheduler_config.json", folder / "scheduler")
    arguments = ("--dataset", "spair", "--root", str(pictures), "--size", "64", "--t", "50,261")
    made = run("cache", "build", *arguments, "--model", str(folder), "--store", "other.zarr", "--batch-size", "4")
    assert made.exit_code == 0, made.output
    for name in ("latents/c.0.0.0.0", "noisy/t0050/c.5.0.0.0.0", "noisy/t0261/c.0.0.0.0.0"):
        assert (Path("other.zarr") / name).read_bytes() == (store / name).read_bytes()


def test_what_is_used_stands_in_the_header_and_in_info(
    run: Run, pictures: Path, small_model: Path, tmp_path: Path
) -> None:
    change = {"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True, "num_train_timesteps": 400}
    folder = _with_scheduler(small_model, tmp_path / "model", change)
    vae = folder / "vae" / "config.json"
    vae.write_text(json.dumps(json.loads(vae.read_text()) | {"shift_factor": 0.25}))
    arguments = ("--dataset", "spair", "--root", str(pictures), "--model", str(folder), "--size", "64")
    assert run("cache", "build", *arguments, "--t", "50").exit_code == 0
    shown = run("cache", "info", "--json", "i.json").stdout
    assert (
        "noise: scaled_linear betas 0.00085 to 0.012, rescaled to zero terminal SNR, 400 timesteps, v_prediction; "
        "latents shifted by 0.25" in shown
    )
    header = json.loads(Path("i.json").read_text())
    assert header["latent_shift"] == 0.25
    assert header["scheduler"] == {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 400,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    }


def test_timesteps_that_the_model_lacks_are_refused_before_anything_is_encoded(
    run: Run, pictures: Path, small_model: Path, tmp_path: Path
) -> None:
    folder = _with_scheduler(small_model, tmp_path / "model", {"num_train_timesteps": 200})
    own = ("--dataset", "spair", "--root", str(pictures), "--model", str(folder), "--size", "64")
    picture = str(pictures / "JPEGImages" / "cat" / "0.jpg")
    refused = "There is no timestep 200: this model's timesteps run from 0 to 199."
    result = run("cache", "build", *own, "--t", "50,200")
    assert (result.exit_code, refused in said(result.stderr), Path("dualsd.zarr").exists()) == (2, True, False)
    assert run("cache", "build", *own, "--t", "199").exit_code == 0
    for command in (
        ("cache", "build", "--t", "200", "--dry-run"),
        ("cache", "maps", "--layers", "2", "--t", "200"),
        ("cache", "maps", "--layers", "2", "--t", "200", "--dry-run"),
        ("cache", "export", "--layers", "2", "--t", "200", "--out", "x"),
        ("eval", "--layers", "2", "--t", "200"),
        ("grid", "--layers", "2", "--t", "150,200"),
        ("grid", "--layers", "2", "--t", "150,200", "--stream"),
        ("train", "--mode", "single", "--layers", "2", "--t", "200", "--steps", "1"),
        ("train", "--mode", "single", "--layers", "2", "--t", "50", "--val-t", "200", "--steps", "1"),
        ("match", picture, picture, "--points", "5,5", "--layers", "2", "--t", "200", "--store", "dualsd.zarr"),
        ("match", picture, picture, "--points", "5,5", "--layers", "2", "--t", "200", "--model", str(folder)),
    ):
        result = run(*command)
        assert (result.exit_code, refused in said(result.stderr)) == (2, True), (command, result.output)


def test_an_edited_header_is_told_from_the_models_schedule(run: Run, store: Path) -> None:
    root = store / "zarr.json"
    root.write_text(root.read_text().replace("0.00085", "0.0001"))
    result = run("match", "a", "b", "--points", "1,1", "--store", str(store))
    assert result.exit_code == 2
    for command in (("cache", "build"), ("cache", "maps", "--layers", "2", "--t", "100")):
        result = run(*command)
        assert (result.exit_code, "0.0001" in result.stderr) == (2, True), result.output


def test_a_store_of_an_earlier_version_goes_on(run: Run, store: Path, small_model: Path) -> None:
    """Whose header holds the whole configuration of the scheduler."""
    root = store / "zarr.json"
    content = json.loads(root.read_text())
    config = json.loads((small_model / "scheduler" / "scheduler_config.json").read_text())
    content["attributes"]["scheduler"] = {key: value for key, value in config.items() if not key.startswith("_")}
    root.write_text(json.dumps(content))
    for command in (("cache", "build", "--t", "100"), EVAL, ("cache", "verify")):
        result = run(*command)
        assert result.exit_code == 0, result.output
