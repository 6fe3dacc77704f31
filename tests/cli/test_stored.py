"""`--encoding`: rounded maps on less of the disk, wherever maps are made, and nothing else changed."""

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


def arrays(store: Path, keepbits: int | None = None) -> list[zarr.Array[Any]]:
    """The store's arrays of maps that keep so many bits, as plain zarr opens them."""
    found = [zarr.open_array(folder, mode="r") for folder in sorted(store.glob("maps/*/*/*/"))]
    return [array for array in found if array.attrs.get("keepbits") == keepbits]


def test_maps_lie_beside_the_others_on_less_of_the_disk(run: Run, store: Path) -> None:
    _, small = done(run, "cache", "maps", *MAPS, "--encoding", "bitround4")
    _, large = done(run, "cache", "maps", *MAPS)
    assert small["extractor"] != large["extractor"]
    assert small["passes"] == large["passes"] == 6
    bytes_of = {
        key: sum(file.stat().st_size for file in store.glob(f"maps/{key}/*/*/c.*"))
        for key in (small["extractor"], large["extractor"])
    }
    assert bytes_of[large["extractor"]] == 6 * (128 * 8 * 8 * 2 + 4)
    assert bytes_of[small["extractor"]] < 0.75 * bytes_of[large["extractor"]]
    output, info = done(run, "cache", "info")
    assert info["version"] == 3
    sizes = {entry["path"].split("/")[1]: entry["bytes"] for entry in info["arrays"] if "maps/" in entry["path"]}
    assert sizes == bytes_of
    assert "bitround4" in output
    assert run("cache", "verify").exit_code == 0


def test_eval_scores_the_maps_that_are_kept(run: Run, store: Path, photographs: Path) -> None:
    """As it does when anybody reads them with zarr, and hands them in as features of their own."""
    _, out = done(run, "eval", *MAPS, *SCORED, "--encoding", "bitround3")
    assert out["features"]["encoding"] == "bitround3"
    (array,) = arrays(store, 3)
    ids = [str(name) for name in np.asarray(zarr.open_array(store / "images/id", mode="r")[:])]
    save_file({f"{image}|2": np.asarray(array[row]) for row, image in enumerate(ids)}, "maps.safetensors")
    of_file = ("--features", "maps.safetensors", "--dataset", "folder", "--root", str(photographs), "--size", "64")
    _, same = done(run, "eval", *of_file, "--layers", "2", *SCORED)
    assert same["results"] == out["results"]
    _, plain = done(run, "eval", *MAPS, *SCORED)
    assert "encoding" not in plain["features"]
    assert plain["features"]["extractor"] != out["features"]["extractor"]


def test_the_layer_dino_too(run: Run, store: Path) -> None:
    _, out = done(run, "eval", "--layers", "2,dino", *MAPS[2:], *SCORED, "--encoding", "bitround4")
    assert out["features"]["encoding"] == "bitround4"
    assert [array.shape for array in arrays(store, 4)] == [(6, 96, 16, 16), (6, 128, 8, 8)]
    assert arrays(store) == []


@pytest.mark.parametrize("how", [(), ("--stream",)])
def test_a_grid_and_the_evaluation_that_it_recommends(run: Run, store: Path, how: tuple[str, ...]) -> None:
    output, out = done(run, "grid", *MAPS, "--t", "50,261", "--encoding", "bitround4", *how)
    (again,) = {line.strip() for line in output.splitlines() if line.strip().startswith("dualsd eval")}
    assert "--encoding bitround4" in again
    assert (len(arrays(store, 4)), arrays(store)) == (0 if how else 2, [])
    _, scored = done(run, *shlex.split(again)[1:], "--batch-size", "4")
    assert scored["features"]["extractor"] == out["features"]["extractor"]
    assert scored["features"]["encoding"] == "bitround4"


def test_streaming_gives_the_same(run: Run, store: Path) -> None:
    grid = ("grid", *MAPS, "--encoding", "bitround4", "--readouts", "nn,kernelsoftmax")
    _, streamed = done(run, *grid, "--stream")
    _, kept = done(run, *grid)
    assert streamed == kept


def test_an_export_is_of_the_maps_that_are_kept(run: Run, store: Path) -> None:
    import torch

    _, out = done(run, "cache", "export", *MAPS, "--encoding", "bitround4", "--layout", "sd4match", "--out", "maps.pt")
    assert out["encoding"] == "bitround4"
    found = torch.load("maps.pt", weights_only=True)
    (array,) = arrays(store, 4)
    ids = np.asarray(zarr.open_array(store / "images/id", mode="r")[:])
    np.testing.assert_array_equal(found[str(ids[0]).replace("/", "-")].numpy(), np.asarray(array[:1]))


def test_maps_of_8_bits_are_named_and_how_they_go(run: Run, store: Path) -> None:
    """As versions before wrote them; everything else of the store is used as ever."""
    _, before = done(run, "cache", "info")
    old = store / "maps" / "0123456789abcdef"
    description = {"prompt": {"kind": "text", "template": "a {category}"}, "ensemble": 1, "dtype": "float32", "seed": 0}
    group = zarr.open_group(store, mode="r+").require_group("maps/0123456789abcdef")
    group.attrs.update({**description, "model_fingerprint": "ab" * 16, "stored": "int8"})
    group.create_array("layer2/t0261", shape=(6, 128, 68), chunks=(1, 128, 68), dtype="int8")[:] = 1
    output, info = done(run, "cache", "info")
    assert info["arrays"] == before["arrays"]
    assert "0123456789abcdef" in output
    assert "cache prune --extractor 0123456789abcdef" in " ".join(output.split())
    assert run("cache", "verify").exit_code == 0
    done(run, "eval", *MAPS, *SCORED)
    assert old.is_dir()
    assert run("cache", "prune", "--extractor", "0123456789abcdef").exit_code == 0
    assert not old.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cache", "maps", *MAPS, "--encoding", "int4"), "--encoding is "),
        (("eval", *MAPS, "--encoding", "bfloat16"), "--encoding is "),
        (("grid", *MAPS, "--encoding", ""), "--encoding is "),
        (("cache", "export", *MAPS, "--out", "x", "--encoding", "x"), "--encoding is "),
        (
            ("eval", "--features", "f", "--dataset", "demo", "--size", "9", "--layers", "a", "--encoding", "bitround4"),
            "--encoding is for maps that are kept, which those of features from a file are not",
        ),
    ],
)
def test_one_sentence_and_exit_code_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())
