"""The commands as a user types them, on a small model and small photographs."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import Run

EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")


def test_build_maps_info_and_eval_share_one_store(run: Run, store: Path, small_model: Path) -> None:
    again = run("cache", "build", "--t", "50,261", "--json", "build.json")
    assert again.exit_code == 0, again.output
    report = json.loads(Path("build.json").read_text())
    assert (report["images"], report["encoded"], report["skipped"], report["bytes"]) == (6, 0, 6, 0)
    maps = ("cache", "maps", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")
    dry = run(*maps, "--dry-run")
    assert "6 images: 0 to encode (VAE passes), 12 UNet passes" in dry.output
    assert "12 files" in dry.output
    made = run(*maps)
    assert made.exit_code == 0, made.output
    assert "layer 2: 128 channels, 8x8 cells of 8 pixels" in made.output
    assert "layer 3: 64 channels, 16x16 cells of 4 pixels" in made.output
    info = run("cache", "info", "--json", "info.json")
    assert "64 pixels a side" in info.output
    arrays = {array["path"]: array for array in json.loads(Path("info.json").read_text())["arrays"]}
    assert [array["present"] for array in arrays.values()] == [6] * 5
    shutil.rmtree(small_model.parent / "aside", ignore_errors=True)
    # everything is cached: the model is not even looked for
    small_model.rename(small_model.parent / "aside")
    try:
        result = run(*EVAL)
    finally:
        (small_model.parent / "aside").rename(small_model)
    assert result.exit_code == 0, result.output


def test_the_vae_sees_every_image_once(
    run: Run, photographs: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the build, maps of two kinds and three evaluations, one of them with more noise."""
    from featstore.backbones import diffusion_networks as latents

    plain, seen = latents.encode, []

    def counting(vae: object, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        seen.extend(image for image in images if image.any())  # the padding of a batch is zeros
        return plain(vae, images, noise)

    monkeypatch.setattr(latents, "encode", counting)
    model = ("--model", str(small_model), "--size", "64", "--batch-size", "4")
    commands = [
        ("cache", "build", "--dataset", "folder", "--root", str(photographs), *model),
        ("cache", "build", "--batch-size", "4"),
        ("cache", "maps", "--layers", "2", "--t", "100", "--ensemble", "1"),
        EVAL,
        EVAL,
        ("eval", "--ensemble", "3", "--prompt", "something else"),
    ]
    for command in commands:
        result = run(*command)
        assert result.exit_code == 0, result.output
    assert len(seen) == 6


def test_the_estimate_of_maps_is_what_is_written(run: Run, store: Path) -> None:
    """Also where latents have to be made on the way."""
    (store / "latents" / "c.2.0.0.0").unlink()
    before = {file: file.stat().st_size for file in store.rglob("c.*")}
    maps = ("cache", "maps", "--layers", "2,3", "--t", "261,70", "--ensemble", "2", "--batch-size", "4")
    assert run(*maps, "--dry-run", "--json", "cost.json").exit_code == 0
    assert run(*maps).exit_code == 0
    made = {file: file.stat().st_size for file in store.rglob("c.*") if file not in before}
    cost = json.loads(Path("cost.json").read_text())
    assert (cost["encode"], cost["passes"]) == (1, 24)
    assert (cost["files_to_write"], cost["bytes_to_write"]) == (len(made), sum(made.values()))
    assert run(*maps, "--dry-run", "--json", "cost.json").exit_code == 0
    assert set(json.loads(Path("cost.json").read_text()).values()) == {0}


def test_a_moved_dataset_and_model_are_remembered(
    run: Run, store: Path, photographs: Path, small_model: Path, tmp_path: Path
) -> None:
    moved, model = tmp_path / "moved", tmp_path / "model copy"
    photographs.rename(moved)
    shutil.copytree(small_model, model)
    assert run("eval", "--ensemble", "1").exit_code == 2
    assert run("cache", "build", "--root", str(moved), "--model", str(model), "--t", "70").exit_code == 0
    result = run(*EVAL)
    assert result.exit_code == 0, result.output
    info = run("cache", "info")
    assert "moved" in info.output
    assert "model copy" in info.output


def test_names_in_brackets_are_no_markup(run: Run, store: Path) -> None:
    assert run(*EVAL, "--prompt", "a photo [/x] of [red]{category}").exit_code == 0
    info = run("cache", "info")
    assert info.exit_code == 0
    assert "[/x] of [red]" in info.output


def test_a_store_of_means_needs_not_be_told_again(run: Run, photographs: Path, small_model: Path) -> None:
    build = ("cache", "build", "--dataset", "folder", "--root", str(photographs), "--model", str(small_model))
    assert run(*build, "--size", "64", "--latents", "mean", "--seed", "4", "--t", "50").exit_code == 0
    again = run("cache", "build", "--dataset", "folder", "--t", "60")
    assert again.exit_code == 0, again.output
    assert "6 skipped" in again.output


def test_eval_writes_what_the_contract_says(run: Run, store: Path) -> None:
    result = run(*EVAL, "--weights", "0.8,0.6", "--json", "out.json", "--csv", "out.csv", "--alphas", "0.1,0.5")
    assert result.exit_code == 0, result.output
    out = json.loads(Path("out.json").read_text())
    assert (out["dataset"], out["split"], out["n_pairs"], out["n_points"]) == ("folder", "test", 12, 48)
    assert (out["layers"], out["t"], out["weights"]) == ([2, 3], [261, 50], [0.8, 0.6])
    assert (out["geometry"], out["frame"], out["upsample_align"]) == ("corners", "resized", "corners")
    assert list(out["results"]) == ["nn", "bilinear", "softmax", "kernelsoftmax"]
    for average in ("image", "point"):
        row = out["results"]["nn"][average]["0.5"]
        assert set(row) == {"all", "cat", "dog"}
        # 6 pairs of 4 points a category: both averages of all are the mean of the categories
        assert row["all"] == pytest.approx((row["cat"] + row["dog"]) / 2)
        assert 0 <= row["all"] <= 1
        assert row["all"] >= out["results"]["nn"][average]["0.1"]["all"]
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3 * 2 * 3
    assert {(row["layers"], row["t"], row["weights"], row["geometry"]) for row in rows} == {
        ("2+3", "261+50", "0.8+0.6", "corners")
    }
    assert out["features"]["prompt"] == "a photo of a {category}"
    chosen = [
        row
        for row in rows
        if (row["readout"], row["average"], row["alpha"], row["category"]) == ("nn", "image", "0.5", "cat")
    ]
    assert float(chosen[0]["pck_percent"]) == pytest.approx(100 * out["results"]["nn"]["image"]["0.5"]["cat"], abs=1e-3)


def test_a_photograph_matched_with_its_copy_is_found(run: Run, photographs: Path, store: Path) -> None:
    """Identical maps: every query's nearest cell is the one it lies in, within a cell of 4 pixels of 64."""
    shutil.copy(photographs / "cat" / "0.png", photographs / "cat" / "1.png")
    (photographs / "pairs.csv").write_text("source,target\ncat/0,cat/1\n")
    marks = [row for row in (photographs / "keypoints.csv").read_text().splitlines() if not row.startswith("cat/1")]
    copied = [row.replace("cat/0", "cat/1") for row in marks if row.startswith("cat/0")]
    (photographs / "keypoints.csv").write_text("\n".join([*marks, *copied]) + "\n")
    said = "1 of 6 images of folder are the same files as others under another name, e.g. cat/1 as cat/0"
    assert said in run("cache", "build", "--t", "50,261").stderr
    result = run(*EVAL, "--json", "out.json", "--alphas", "0.1", "--readouts", "nn")
    assert result.exit_code == 0, result.output
    assert "1 of 2 images of folder are the same files" in result.stderr
    assert json.loads(Path("out.json").read_text())["results"]["nn"]["point"]["0.1"]["all"] == 1.0


def test_categories_and_a_single_layer(run: Run, store: Path) -> None:
    result = run(
        "eval", "--layers", "2", "--upsample", "2x", "--ensemble", "1", "--categories", "dog", "--json", "o.json"
    )
    assert result.exit_code == 0, result.output
    out = json.loads(Path("o.json").read_text())
    assert (out["n_pairs"], out["t"], out["weights"], out["upsample"]) == (6, [261], [1.0], 2)


def test_an_image_that_broke_is_left_out_on_request(run: Run, photographs: Path, store: Path) -> None:
    (photographs / "cat" / "1.png").write_bytes(b"")
    build = ("cache", "build", "--t", "50,261")
    refused = run(*build)
    assert (refused.exit_code, "cat/1" in refused.output) == (2, True)
    skipped = run(*build, "--skip-bad")
    assert skipped.exit_code == 0
    assert "1 image(s) could not be read" in skipped.output
    assert run(*EVAL).exit_code == 2
    result = run(*EVAL, "--skip-bad", "--json", "out.json")
    assert result.exit_code == 0, result.output
    assert "4 of 12 pairs are left out" in result.output
    assert json.loads(Path("out.json").read_text())["n_pairs"] == 8


def test_match_two_files(run: Run, photographs: Path, small_model: Path) -> None:
    first, second = photographs / "cat" / "0.png", photographs / "cat" / "1.png"
    arguments = ("--model", str(small_model), "--ensemble", "1", "--size", "64")
    result = run(
        *("match", str(first), str(second), "--points", "5,5;30.5,20", "--out", "m.png", "--heatmap"),
        *("--category", "cat", "--json", "m.json", *arguments),
    )
    assert result.exit_code == 0, result.output
    out = json.loads(Path("m.json").read_text())
    assert out["prompt"] == "a photo of a cat"
    found = np.array(out["target_points"])
    assert found.shape == (2, 2)
    assert (found >= 0).all()
    assert (found <= [70, 46]).all()
    for name in ("m.png", "m-heatmap.png"):
        assert Image.open(name).size > (200, 200)
    itself = run("match", str(first), str(first), "--points", "30,20", "--json", "s.json", *arguments)
    assert itself.exit_code == 0, itself.output
    assert np.abs(np.array(json.loads(Path("s.json").read_text())["target_points"]) - [30, 20]).max() <= 2


def test_match_takes_model_and_size_from_a_store(run: Run, photographs: Path, store: Path) -> None:
    first, second = photographs / "cat" / "0.png", photographs / "dog" / "1.png"
    result = run(
        "match",
        str(first),
        str(second),
        "--points",
        "5,5",
        "--store",
        str(store),
        "--ensemble",
        "1",
        "--json",
        "m.json",
    )
    assert result.exit_code == 0, result.output
    assert json.loads(Path("m.json").read_text())["image_size"] == 64


def test_doctor_tells_what_is_here(run: Run, small_model: Path) -> None:
    result = run("doctor", "--model", str(small_model))
    assert result.exit_code == 0, result.output
    for word in ("torch", "zarr", "device:", "16x16", "not made yet", "free"):
        assert word in result.output
    missing = run("doctor", "--model", "nobody/nothing", "--offline")
    assert missing.exit_code == 2
    assert "local folder" in missing.output
