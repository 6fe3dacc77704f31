"""`--stored int8`: maps on half the disk, wherever maps are made, and nothing else changed."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from tests.cli.conftest import Run

MAPS = ("--layers", "2", "--t", "261", "--ensemble", "1", "--batch-size", "4")
SCORED = ("--readouts", "nn,softmax")


def done(run: Run, *arguments: str) -> tuple[str, Any]:
    result = run(*arguments, "--json", "out.json")
    assert result.exit_code == 0, result.output
    return result.output, json.loads(Path("out.json").read_text())


def arrays(store: Path, dtype: str) -> list[zarr.Array[Any]]:
    """The store's arrays of maps of a dtype."""
    found = [zarr.open_array(folder, mode="r") for folder in sorted(store.glob("maps/*/*/*/"))]
    return [array for array in found if array.dtype == np.dtype(dtype)]


def test_maps_lie_beside_the_others_on_half_the_disk(run: Run, store: Path) -> None:
    _, cost = done(run, "cache", "maps", *MAPS, "--stored", "int8", "--dry-run")
    _, small = done(run, "cache", "maps", *MAPS, "--stored", "int8")
    _, large = done(run, "cache", "maps", *MAPS)
    assert small["extractor"] != large["extractor"]
    assert small["passes"] == large["passes"] == 6
    bytes_of = {
        key: sum(file.stat().st_size for file in store.glob(f"maps/{key}/*/*/c.*"))
        for key in (small["extractor"], large["extractor"])
    }
    assert bytes_of[small["extractor"]] == 6 * (128 * (8 * 8 + 4) + 4)
    assert bytes_of[large["extractor"]] == 6 * (128 * 8 * 8 * 2 + 4)
    assert cost["bytes_to_write"] == bytes_of[small["extractor"]]
    output, info = done(run, "cache", "info")
    assert info["version"] == 2
    shapes = {entry["path"]: entry["row_shape"] for entry in info["arrays"] if entry["path"].startswith("maps/")}
    assert list(shapes.values()) == [[128, 8, 8]] * 2
    assert "int8" in output
    assert run("cache", "verify").exit_code == 0


def test_eval_scores_the_maps_that_are_kept(run: Run, store: Path, photographs: Path) -> None:
    """As it does when anybody reads them with zarr and numpy, and hands them in as features of their own."""
    _, out = done(run, "eval", *MAPS, *SCORED, "--stored", "int8")
    assert out["features"]["stored"] == "int8"
    (array,) = arrays(store, "int8")
    ids = [str(name) for name in np.asarray(zarr.open_array(store / "images/id", mode="r")[:])]
    features = {}
    for index, image in enumerate(ids):
        row = np.asarray(array[index])
        scales = np.ascontiguousarray(row[:, -4:]).view("<f4")
        features[f"{image}|2"] = (row[:, :-4] * scales).reshape(len(row), 8, 8)
    save_file(features, "maps.safetensors")
    of_file = ("--features", "maps.safetensors", "--dataset", "folder", "--root", str(photographs), "--size", "64")
    _, same = done(run, "eval", *of_file, "--layers", "2", *SCORED)
    assert same["results"] == out["results"]
    _, plain = done(run, "eval", *MAPS, *SCORED)
    assert "stored" not in plain["features"]
    assert plain["features"]["extractor"] != out["features"]["extractor"]


def test_the_layer_dino_too(run: Run, store: Path) -> None:
    _, out = done(run, "eval", "--layers", "2,dino", *MAPS[2:], *SCORED, "--stored", "int8")
    assert out["features"]["stored"] == "int8"
    assert [array.shape for array in arrays(store, "int8")] == [(6, 96, 16 * 16 + 4), (6, 128, 8 * 8 + 4)]
    assert arrays(store) == []


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_a_grid_and_the_evaluation_that_it_recommends(run: Run, store: Path, how: tuple[str, ...]) -> None:
    output, out = done(run, "grid", *MAPS, "--t", "50,261", "--stored", "int8", *how)
    (again,) = {line.strip() for line in output.splitlines() if line.strip().startswith("dualsd eval")}
    assert "--stored int8" in again
    assert (len(arrays(store, "int8")), arrays(store)) == (0 if how else 2, [])
    _, scored = done(run, *shlex.split(again)[1:], "--batch-size", "4")
    assert scored["features"]["extractor"] == out["features"]["extractor"]
    assert scored["features"]["stored"] == "int8"


def test_streaming_gives_the_same(run: Run, store: Path) -> None:
    grid = ("grid", *MAPS, "--stored", "int8", "--readouts", "nn,kernelsoftmax")
    _, streamed = done(run, *grid, "--stream")
    _, kept = done(run, *grid)
    assert streamed == kept


def test_an_export_is_of_the_maps_that_are_kept(run: Run, store: Path) -> None:
    import torch

    _, out = done(run, "cache", "export", *MAPS, "--stored", "int8", "--layout", "sd4match", "--out", "maps.pt")
    assert out["stored"] == "int8"
    found = torch.load("maps.pt", weights_only=True)
    (array,) = arrays(store, "int8")
    row = np.asarray(array[0])
    ids = np.asarray(zarr.open_array(store / "images/id", mode="r")[:])
    expected = (row[:, :-4] * np.ascontiguousarray(row[:, -4:]).view("<f4")).reshape(1, 128, 8, 8)
    np.testing.assert_array_equal(found[str(ids[0]).replace("/", "-")].numpy(), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cache", "maps", *MAPS, "--stored", "int4"), "--stored is "),
        (("eval", *MAPS, "--stored", "bfloat16"), "--stored is "),
        (("grid", *MAPS, "--stored", ""), "--stored is "),
        (("cache", "export", *MAPS, "--out", "x", "--stored", "x"), "--stored is "),
        (
            ("eval", "--features", "f", "--dataset", "demo", "--size", "9", "--layers", "a", "--stored", "int8"),
            "--stored is for maps that are kept, which those of features from a file are not",
        ),
    ],
)
def test_one_sentence_and_exit_code_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
