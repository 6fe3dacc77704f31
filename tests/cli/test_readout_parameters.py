"""`--beta`, `--sigma` and `--window`: what they do, where they are recorded, and where they are refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from typer.testing import Result

from featstore.pipeline.results import EvaluationRun
from tests.cli.conftest import Run

SIDE, CELLS, CHANNELS = 64, 9, 6
BETA, SIGMA, WINDOW = 0.1, 2.0, 1
TYPED = ("--beta", str(BETA), "--sigma", str(SIGMA), "--window", str(WINDOW))
READOUTS = ("nn", "softmax", "kernelsoftmax", "window")


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def write_maps() -> dict[str, NDArray[np.float64]]:
    """Random maps (C, h, w) of the photographs, as a file and in memory."""
    torch.manual_seed(7)
    maps = {
        f"{category}/{index}": torch.randn(CHANNELS, CELLS, CELLS)
        for category, index in itertools.product(("cat", "dog"), range(3))
    }
    save_file({f"{image}|f": own for image, own in maps.items()}, "f.safetensors")
    return {image: own.double().numpy() for image, own in maps.items()}


def plainly(source: NDArray[Any], target: NDArray[Any], point: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A point's match by each readout, in pixels, cell by cell and without anything of ours; geometry corners."""
    x, y = point.astype(np.float64) * (CELLS - 1) / (SIDE - 1)
    left, top = min(int(x), CELLS - 2), min(int(y), CELLS - 2)
    across, down = x - left, y - top
    sample = sum(
        share * source[:, top + j, left + i]
        for i, j, share in (
            (0, 0, (1 - across) * (1 - down)),
            (1, 0, across * (1 - down)),
            (0, 1, (1 - across) * down),
            (1, 1, across * down),
        )
    )
    cells = [(i, j) for j in range(CELLS) for i in range(CELLS)]
    found = np.array(
        [sample @ target[:, j, i] / np.linalg.norm(sample) / np.linalg.norm(target[:, j, i]) for i, j in cells]
    )
    places = np.array(cells, dtype=np.float64)
    off = places - places[found.argmax()]
    changed = {
        "softmax": found,
        "kernelsoftmax": found * np.exp(-(off**2).sum(axis=1) / (2 * SIGMA**2)),
        "window": np.where(np.abs(off).max(axis=1) <= WINDOW, found, 0),
    }
    shares = {name: np.exp(own / BETA) / np.exp(own / BETA).sum() for name, own in changed.items()}
    mean = {name: (own[:, None] * places).sum(axis=0) for name, own in shares.items()}
    return {name: own * (SIDE - 1) / (CELLS - 1) for name, own in {**mean, "nn": places[found.argmax()]}.items()}


def test_what_they_do(run: Run, photographs: Path) -> None:
    maps = write_maps()
    command = ("eval", "--features", "f.safetensors", "--dataset", "folder", "--root", str(photographs))
    command += ("--size", str(SIDE), "--layers", "f", "--readouts", ",".join(READOUTS), "--out", "r")
    result = ok(run(*command, *TYPED))
    matched = EvaluationRun.open(Path("r")).matched
    done = 0
    for pair in matched.pairs:
        for point in pair.source_points:
            for name, own in plainly(maps[pair.source], maps[pair.target], point).items():
                assert matched.predictions[name][done] == pytest.approx(own, abs=2e-3), (pair, name)
            done += 1
    assert done == len(matched.predictions["nn"]) > 20
    assert (
        "softmax with beta 0.1; kernelsoftmax with beta 0.1, sigma 2; window with beta 0.1, window 1; " in result.output
    )
    kept = json.loads(Path("r/run.json").read_text())
    assert {name: kept["scoring"]["settings"][name] for name in ("beta", "sigma", "window", "window_beta")} == {
        **{"beta": BETA, "sigma": SIGMA, "window": WINDOW, "window_beta": BETA}
    }
    ok(run("eval", "--config", "r/run.json", "--out", "again"))
    again = EvaluationRun.open(Path("again")).matched
    assert all(np.array_equal(again.predictions[name], matched.predictions[name]) for name in READOUTS)


def test_a_grid_is_another_with_another_window(run: Run, store: Path) -> None:
    """What it keeps on the way is its own, what it recommends is the same evaluation."""
    grid = ("grid", "--layers", "2", "--t", "261", "--ensemble", "1", "--batch-size", "4", "--alphas", "0.05..1:0.05")
    grid += ("--split", "test", "--readouts", "window")
    cells = {}
    for window in ("0", "7"):
        ok(run(*grid, "--window", window, "--json", f"{window}.json"))
        found = json.loads(Path(f"{window}.json").read_text())
        assert (found["window"], found["window_beta"]) == (int(window), 0.02)
        tried = found["cells"][0]["results"]["window"]["image"]
        cells[window] = {alpha: own["all"] for alpha, own in tried.items()}
        evaluated = ("eval", "--layers", "2", "--t", "261", "--ensemble", "1", "--batch-size", "4", "--split", "test")
        ok(run(*evaluated, "--readouts", "window", "--window", window, "--alphas", "0.05..1:0.05", "--json", "e.json"))
        same = json.loads(Path("e.json").read_text())["results"]["window"]["image"]
        assert {alpha: own["all"] for alpha, own in same.items()} == pytest.approx(cells[window])
    assert cells["0"] != cells["7"]
    shown = ok(run(*grid, "--t", "50,261", "--window", "0")).output
    assert "--window 0" in next(line for line in shown.splitlines() if line.strip().startswith("dualsd eval"))
    assert "window with beta 0.02, window 0, image average" in shown


def test_a_match_takes_them(run: Run, photographs: Path, small_model: Path) -> None:
    files = [str(photographs / "cat" / f"{index}.png") for index in range(2)]
    command = ("match", *files, "--points", "20,20", "--model", str(small_model), "--size", "64", "--readout", "window")
    found = {}
    for window in (0, 7):
        result = ok(run(*command, "--ensemble", "1", "--window", str(window), "--json", "m.json"))
        found[window] = json.loads(Path("m.json").read_text())
    assert "readout window, ensemble 1" in result.output
    assert found[0]["window"] == 0
    assert found[0]["target_points"] != found[7]["target_points"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["eval", "--readouts", "nn", "--beta", "0.1"],
            "--beta goes with the readout softmax or kernelsoftmax or window: nn has no use for it",
        ),
        (
            ["eval", "--window", "5"],
            "--window goes with the readout window: nn, bilinear, softmax, kernelsoftmax has no",
        ),
        (["grid", "--t", "50", "--sigma", "3"], "--sigma goes with the readout kernelsoftmax: nn has no use"),
        (["match", "a", "b", "--points", "1,1", "--window", "3"], "--window goes with the readout window: nn has no"),
        (["eval", "--beta", "0"], "--beta is 0.0, not above 0"),
        (["eval", "--beta", "nan"], "--beta is nan, not a finite number"),
        (["eval", "--sigma", "-1"], "--sigma is -1.0, not above 0"),
        (["eval", "--sigma", "inf"], "--sigma is inf, not a finite number"),
        (["eval", "--readouts", "window", "--window", "-1"], "--window is -1, not at least 0"),
    ],
)
def test_one_sentence(run: Run, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (2, 1)
    assert words in result.stderr


def test_the_usual_values_may_be_said_of_any_readout(run: Run) -> None:
    """As a recipe says them, whose readouts may be typed over."""
    result = run("eval", "--readouts", "nn", "--beta", "0.04", "--sigma", "7", "--window", "7")
    assert "There is no store" in result.stderr
