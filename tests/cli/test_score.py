"""`dualsd eval` keeps its predictions; `dualsd score` scores them again."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import Result

from featstore.pipeline.results import save_evaluation
from featstore.store.store import open_store
from featstore.tuning.run_folder import runs_newest_first
from tests.cli.conftest import Run
from tests.featstore.evaluations import annotated, framed, result_of

EVAL = ("eval", "--layers", "2,3", "--t", "261,50", "--ensemble", "1", "--batch-size", "4")
KEPT = "runs/eval-2+3-001"


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result, words: str) -> None:
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def read(file: str) -> dict[str, Any]:
    return json.loads(Path(file).read_text())


def test_scored_again_it_prints_what_eval_printed(run: Run, store: Path) -> None:
    """Over 18 pairs of 12, in the frame of each readout."""
    evaluated = ok(run(*EVAL, "--readouts", "nn,softmax,pixel", "--json", "e.json", "--csv", "e.csv"))
    assert f"kept in {KEPT}" in evaluated.output
    assert read(f"{KEPT}/results.json") == read("e.json")
    scored = ok(run("score", KEPT, "--json", "s.json", "--csv", "s.csv"))
    assert read("s.json") == read("e.json")
    assert Path("s.csv").read_bytes() == Path("e.csv").read_bytes()
    table = [line for line in scored.output.splitlines() if "│" in line]
    assert table
    assert set(table) <= set(evaluated.output.splitlines())


def test_other_thresholds_are_what_eval_would_have_given(run: Run, store: Path) -> None:
    ok(run(*EVAL, "--readouts", "nn,softmax"))
    (store / "maps").rename("aside")  # nothing is matched again
    ok(run("score", KEPT, "--alphas", "0.01..0.2:0.01", "--by", "point", "--json", "s.json", "--csv", "s.csv"))
    Path("aside").rename(store / "maps")
    ok(run(*EVAL, "--readouts", "nn,softmax", "--alphas", "0.01..0.2:0.01", "--out", "mine/again", "--json", "e.json"))
    assert read("s.json") == read("e.json") == read("mine/again/results.json")
    assert list(read("s.json")["results"]["nn"]["point"]) == [f"{number / 100:g}" for number in range(1, 21)]
    rows = list(csv.DictReader(Path("s.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3 * 20 * 3


def test_one_readout_in_the_original_frame(run: Run, store: Path) -> None:
    """The folder's theta is the longer side of the image: 70 of 70 x 46 pixels where 64 of 64 x 64 was."""
    ok(run(*EVAL, "--readouts", "nn,pixel"))
    result = ok(run("score", KEPT, "--readouts", "nn", "--frame", "original", "--alphas", "0.3", "--json", "s.json"))
    assert "PCK in the original frame" in result.output
    assert "kernelsoftmax" not in result.output
    out = read("s.json")
    assert (list(out["results"]), out["frame"], out["frames"]) == (["nn"], "original", {"nn": "original"})
    kept = read(f"{KEPT}/run.json")
    assert (kept["format"], kept["version"], kept["n_pairs"], kept["n_points"]) == ("dualsd evaluation", 1, 12, 48)
    assert (kept["categories"], kept["scoring"]["readouts"]) == (["cat", "dog"], ["nn", "pixel"])


def test_frames_by_hand(run: Run) -> None:
    """See tests/featstore/test_evaluation_run.py: off by 5 of 80 pixels, or by sqrt(148) = 12.166 of 200."""
    pair = framed(annotated())
    save_evaluation(result_of([pair], {"nn": [[[14.0, 13.0], [60.0, 60.0]]]}), Path("hand"))
    command = ("score", "hand", "--alphas", "0.0605,0.061,0.0625", "--json", "s.json")
    expected = {"resized": [0.5, 0.5, 1.0], "original": [0.5, 1.0, 1.0]}
    for frame, shares in expected.items():
        ok(run(*command, "--frame", frame))
        assert [share["all"] for share in read("s.json")["results"]["nn"]["image"].values()] == shares


def test_features_of_ones_own(run: Run, photographs: Path) -> None:
    random = torch.Generator().manual_seed(0)
    images = [f"{category}/{index}" for category in ("cat", "dog") for index in range(3)]
    save_file({f"{image}|s8": torch.randn(16, 8, 8, generator=random) for image in images}, "f.safetensors")
    arguments = ("--features", "f.safetensors", "--dataset", "folder", "--root", str(photographs), "--size", "64")
    ok(run("eval", *arguments, "--layers", "s8", "--json", "e.json"))
    assert (Path("runs/eval-s8-001") / "predictions.safetensors").is_file()
    ok(run("score", "runs/eval-s8-001", "--json", "s.json"))
    assert read("s.json") == read("e.json")
    assert read("runs/eval-s8-001/run.json")["features"] == {"features": "f.safetensors"}


@pytest.mark.parametrize("out", [(), ("--out", "mine")])
def test_an_evaluation_that_was_stopped_before_its_report_is_completed(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch, out: tuple[str, ...]
) -> None:
    """By the same command, under the same name, with the numbers of one that was never stopped."""
    ok(run(*EVAL, "--out", "never-stopped"))

    def stopped(_: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cli.reports.evaluation.report_evaluation", stopped)
        assert run(*EVAL, *out).exit_code != 0
    place = Path("mine" if out else KEPT)
    assert not (place / "report.html").exists()
    assert f"kept in {place}:" in ok(run(*EVAL, *out)).stdout
    assert not Path("runs/eval-2+3-002").exists()
    assert read(f"{place}/results.json") == read("never-stopped/results.json")
    names = [sorted(file.name for file in folder.iterdir()) for folder in (place, Path("never-stopped"))]
    assert names[0] == names[1]
    if out:
        refused(run(*EVAL, *out), "mine exists already")


def test_evaluations_among_the_runs_are_no_prompts(run: Run, store: Path) -> None:
    """`eval` looks for the newest prompts in the same folder."""
    ok(run(*EVAL))
    shutil.copy(store / "zarr.json", f"{KEPT}/prompts.safetensors")
    assert runs_newest_first(open_store(store)) == []
    result = ok(run(*EVAL))
    assert "a photo of a {category}" in result.output
    assert sorted(path.name for path in Path("runs").iterdir()) == ["eval-2+3-001", "eval-2+3-002"]
    refused(run("train", "--resume", KEPT), "is no run of `dualsd train`")


def test_a_folder_that_cannot_be_made_is_known_before_matching(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("taken").mkdir()
    Path("taken/mine").write_text("")
    Path("file").write_text("")
    monkeypatch.setattr("featstore.pipeline.evaluate.evaluate", lambda *_, **__: pytest.fail("it was matched"))
    refused(run(*EVAL, "--out", "taken"), "taken exists already")
    refused(run(*EVAL, "--out", "file/run"), "file/run cannot be made")
    plain = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "runs" and plain(path, mode))
    Path("runs").mkdir()
    refused(run(*EVAL), "cannot be made in")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "nothing is no run of `dualsd eval`"),
        (["hand", "--readouts", "window"], "hand has no readout window: it was evaluated with nn"),
        (["hand", "--frame", "square"], "--frame is "),
        (["hand", "--by", "keypoint"], "--by is "),
        (["hand", "--alphas", "0.1..0.2"], "with its step"),
        (["hand", "--json", "no/folder.json"], "no/folder.json cannot be written"),
    ],
)
def test_one_sentence_and_exit_code_2(run: Run, arguments: list[str], words: str) -> None:
    pair = framed(annotated())
    save_evaluation(result_of([pair], {"nn": [np.zeros((2, 2))]}), Path("hand"))
    refused(run("score", *arguments), words)
