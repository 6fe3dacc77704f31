"""An evaluation's folder: everything comes back, is scored again by hand, and is refused where it is not whole."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from featstore.datasets.records import ThetaRule
from featstore.errors import DiskFullError, EvaluationError
from featstore.pipeline.results import (
    Evaluation,
    EvaluationRun,
    check_place,
    is_finished,
    kept_evaluation,
    save_evaluation,
)
from matcher.configuration import Frame
from matcher.pck import Average, Matches
from tests.featstore.evaluations import annotated, framed, guessed, many_pairs, result_of


@pytest.fixture
def result() -> Evaluation:
    pairs = many_pairs(3)
    return result_of(
        pairs,
        {"nn": guessed(pairs, 0.1, 1), "pixel": [pair.in_original_frame().target_points for pair in pairs]},
        alphas=(0.1, 0.1 + 2**-50, 1 / 3),
    )


def test_everything_comes_back(result: Evaluation, tmp_path: Path) -> None:
    run = EvaluationRun.open(save_evaluation(result, tmp_path / "run"))
    assert (run.dataset, run.split, run.scoring, run.features) == ("demo", "test", result.scoring, result.features)
    assert len(run.matched) == len(result.matched)
    for ours, theirs in zip(run.matched, result.matched, strict=True):
        for name in ("source", "target", "category", "theta", "names"):
            assert getattr(ours.pair, name) == getattr(theirs.pair, name)
        mine, its = ours.pair.in_original_frame(), theirs.pair.in_original_frame()
        for name in ("source_size", "target_size", "theta"):
            assert getattr(mine, name) == getattr(its, name)
        for one, other in ((ours.pair, theirs.pair), (mine, its)):
            for name in ("source_points", "target_points"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
        assert set(ours.predictions) == {"nn", "pixel"}
        for readout in ours.predictions:
            np.testing.assert_array_equal(ours.predictions[readout], theirs.predictions[readout], strict=True)


def test_scored_as_it_was_it_gives_the_same_numbers(result: Evaluation, tmp_path: Path) -> None:
    path = save_evaluation(result, tmp_path / "run")
    assert EvaluationRun.open(path).scored().to_json() == result.to_json()
    assert json.loads((path / "results.json").read_text()) == result.to_json()


def test_a_scored_result_can_be_kept_too(result: Evaluation, tmp_path: Path) -> None:
    again = EvaluationRun.open(save_evaluation(result, tmp_path / "first")).scored(["nn"], [0.2], Frame.ORIGINAL)
    kept = EvaluationRun.open(save_evaluation(again, tmp_path / "second"))
    assert kept.scoring == again.scoring
    assert kept.scored().scores == again.scores


def test_pairs_without_names(result: Evaluation, tmp_path: Path) -> None:
    nameless = [replace(match, pair=replace(match.pair, names=None)) for match in result.matched]
    path = save_evaluation(replace(result, matched=Matches.of(nameless)), tmp_path / "run")
    assert {match.pair.names for match in EvaluationRun.open(path).matched} == {None}


def pck(run: EvaluationRun, readout: str, alpha: float, frame: Frame | None) -> float:
    return run.scored([readout], [alpha], frame).pck[readout][Average.POINT][alpha].overall


@pytest.mark.parametrize(
    ("rule", "resized", "original"),
    [
        (ThetaRule.BOX, 80, 200),  # the box is 40 of 50 pixels wide, 200 of 400 high
        (ThetaRule.IMAGE, 100, 400),
        (ThetaRule.KEYPOINTS, 50, 200),  # the points are 25 of 50 apart in x, 200 of 400 in y
    ],
)
def test_the_original_frame_by_hand(tmp_path: Path, rule: ThetaRule, resized: float, original: float) -> None:
    """Targets at (5, 40) and (30, 240) of 50 x 400 pixels are at (10, 10) and (60, 60) of 100 x 100. Predictions off by
    (4, 3) there, 5 pixels, are off by (2, 12) in the original image: sqrt(148) = 12.166 pixels."""
    predicted = {
        "nn": [[[14.0, 13.0], [64.0, 63.0]]],
        "pixel": [[[7.0, 52.0], [32.0, 252.0]]],
    }
    pair = framed(annotated(), rule)
    run = EvaluationRun.open(save_evaluation(result_of([pair], predicted), tmp_path / "run"))
    for readout in predicted:
        for frame, distance, theta in ((Frame.RESIZED, 5, resized), (Frame.ORIGINAL, np.sqrt(148), original)):
            assert pck(run, readout, distance / theta + 1e-5, frame) == 1
            assert pck(run, readout, distance / theta - 1e-5, frame) == 0
    assert pck(run, "nn", 5 / resized, None) == 1  # a point on the threshold counts
    assert pck(run, "pixel", np.sqrt(148) / original - 1e-5, None) == 0


def test_points_that_were_clamped_stay_where_they_are(tmp_path: Path) -> None:
    """x = 50 of 50 pixels is 100 of 100, clamped to 98.9999: mapped back that is 49.49995, while the original frame
    would clamp to 48.9999. A prediction of the clamped point is right in both frames."""
    pair = framed(annotated(target_points=np.array([[50.0, 40.0], [30.0, 240.0]])))
    result = result_of([pair], {"nn": [pair.target_points]})
    run = EvaluationRun.open(save_evaluation(result, tmp_path / "run"))
    for frame in Frame:
        assert pck(run, "nn", 1e-9, frame) == 1


def test_what_it_says_of_the_frame(result: Evaluation, tmp_path: Path) -> None:
    run = EvaluationRun.open(save_evaluation(result, tmp_path / "run"))
    own, original = (run.scored(frame=frame).to_json() for frame in (None, Frame.ORIGINAL))
    assert (own["frame"], own["frames"]) == ("per readout", {"nn": "resized", "pixel": "original"})
    assert (original["frame"], original["frames"]) == ("original", {"nn": "original", "pixel": "original"})
    assert own["results"]["pixel"] == original["results"]["pixel"]


def test_a_readout_that_it_lacks(result: Evaluation, tmp_path: Path) -> None:
    run = EvaluationRun.open(save_evaluation(result, tmp_path / "run"))
    with pytest.raises(EvaluationError, match=r"no readout window: it was evaluated with nn, pixel\."):
        run.scored(["window"])


def test_names_are_counted_on(result: Evaluation, tmp_path: Path) -> None:
    places = [save_evaluation(result, None, tmp_path) for _ in range(2)]
    (tmp_path / "eval-2+3-041").mkdir()
    places.append(save_evaluation(result, None, tmp_path))
    assert [place.name for place in places] == ["eval-2+3-001", "eval-2+3-002", "eval-2+3-042"]
    odd = result_of([framed(annotated())], {"nn": [framed(annotated()).target_points]}, layers=("up/1", "[a] *b"))
    assert save_evaluation(odd, None, tmp_path).name == "eval-up_1+_a___b-001"
    assert save_evaluation(odd, None, tmp_path).name == "eval-up_1+_a___b-002"


def test_a_name_that_another_took_in_between(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save_evaluation(result, None, tmp_path)
    names = iter([first.name, "eval-2+3-007"])
    monkeypatch.setattr("featstore.tuning.runs.free_name", lambda *_: next(names))
    assert save_evaluation(result, None, tmp_path).name == "eval-2+3-007"


def test_nothing_is_written_over(result: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    kept = save_evaluation(result, tmp_path / "empty")
    assert EvaluationRun.open(kept).matched
    (tmp_path / "file").write_text("mine")
    for taken in (kept, tmp_path / "file"):
        for refused in (check_place, lambda place: save_evaluation(result, place)):
            with pytest.raises(EvaluationError, match="exists already"):
                refused(taken)
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def test_others_may_read_what_the_user_lets_them(result: Evaluation, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        kept = save_evaluation(result, tmp_path / "run")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in kept.iterdir()} == {0o644}


@pytest.mark.parametrize("place", ["predictions.safetensors", "results.json", "run.json"])
def test_a_full_disk_leaves_nothing(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """And it is said how many bytes its files take."""
    whole = sum(file.stat().st_size for file in save_evaluation(result, tmp_path / "whole" / "run").iterdir())
    plain = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == place:
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 1000)
    with pytest.raises(DiskFullError, match="make room and run the same command again") as error:
        save_evaluation(result, tmp_path / "runs" / "run")
    assert f"The run in {tmp_path / 'runs' / 'run'} could not be written: the disk is full, 1.0 kB" in str(error.value)
    assert f"it takes {whole / 1000:.1f} kB;" in str(error.value)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_a_killed_evaluation_left_is_swept_when_it_is_old(result: Evaluation, tmp_path: Path) -> None:
    layers = "+".join(layer.layer for layer in result.scoring.layers)
    old, young = (tmp_path / f".eval-{layers}.{age}.making" for age in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
        (folder / "results.json").write_text("{")
    for path in (old / "results.json", old):
        os.utime(path, (0, 0))
    kept = save_evaluation(result, tmp_path / "run")
    assert sorted(tmp_path.iterdir()) == sorted([young, kept])


KILLED = """
import os, signal
from pathlib import Path
import featstore.pipeline.results as run
from tests.featstore.evaluations import guessed, many_pairs, result_of
plain = run.write_whole
def write(file, content):
    if file.name == {place!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(file, content)
run.write_whole = write
pairs = many_pairs(3)
run.save_evaluation(result_of(pairs, {{"nn": guessed(pairs, 0.1, 1)}}), None, Path({parent!r}))
"""


@pytest.mark.parametrize("place", ["results.json", "run.json"])
def test_killed_in_the_middle_no_run_is_there(result: Evaluation, tmp_path: Path, place: str) -> None:
    code = KILLED.format(place=place, parent=str(tmp_path))
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("eval-*")) == []
    assert list(tmp_path.rglob("run.json")) == []
    assert save_evaluation(result, None, tmp_path).name == "eval-2+3-001"


UNFINISHED = """
import os, signal, sys
from pathlib import Path
from featstore.pipeline.results import kept_evaluation
from tests.featstore.evaluations import guessed, many_pairs, result_of
pairs = many_pairs(3)
result = result_of(pairs, {{"nn": guessed(pairs, 0.1, 1)}})
with kept_evaluation(result, {path}, {{"average": "image"}}, Path({parent!r})) as place:
    print(place, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("named", [False, True])
def test_killed_before_its_report_the_same_evaluation_takes_its_place(tmp_path: Path, named: bool) -> None:
    """While it lives it keeps its place: the same evaluation takes the next name, or is refused."""
    place = tmp_path / "mine"
    path = place if named else None
    code = UNFINISHED.format(path=f"Path({str(place)!r})" if named else None, parent=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    begun = Path(process.stdout.readline().decode().strip())
    pairs = many_pairs(3)
    result = result_of(pairs, {"nn": guessed(pairs, 0.1, 1)})
    about = {"average": "image"}
    assert not is_finished(begun)
    assert EvaluationRun.open(begun).scored().scores == result.scores
    if named:
        with pytest.raises(EvaluationError, match="exists already"):
            check_place(path)
        with pytest.raises(EvaluationError, match="exists already"), kept_evaluation(result, path, about, tmp_path):
            pass
    else:
        with kept_evaluation(result, None, about, tmp_path) as other:
            assert other.name == "eval-2+3-002"
        shutil.rmtree(other)
    process.kill()
    process.wait()
    check_place(path)
    with kept_evaluation(result, path, about, tmp_path) as again:
        assert again == begun
        (again / "report.html").write_text("page")
    assert is_finished(begun)
    assert EvaluationRun.open(begun).scored().to_json() == result.to_json()
    assert sorted(file.name for file in begun.iterdir()) == [
        *("predictions.safetensors", "report.html", "results.json", "run.json")
    ]
    if named:
        with pytest.raises(EvaluationError, match="exists already"):
            check_place(path)


def test_another_evaluation_leaves_an_unfinished_one_alone(result: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), kept_evaluation(result, None, {"average": "image"}, tmp_path):
        raise KeyboardInterrupt
    for about, name in (({"average": "point"}, "eval-2+3-002"), ({"average": "image"}, "eval-2+3-001")):
        with kept_evaluation(result, None, about, tmp_path) as place:
            assert place.name == name


def damage(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it.update(version=2, creator="7.1"), r"version 2, written by dualsd 7\.1; this dualsd"),
        (lambda it: it.update(format="dualsd run"), "is a run of `dualsd train`"),
        (lambda it: it.update(format="other"), "another program's"),
        (lambda it: it.pop("scoring"), "damaged"),
        (lambda it: it["scoring"].update(readouts=["best"]), "damaged"),
        (lambda it: it["scoring"].update(readouts=["nn"]), "other readouts"),
        (lambda it: it["scoring"]["settings"].update(upsample=0), "damaged"),
        (lambda it: it["scoring"]["settings"].update(new=1), "damaged"),
        (lambda it: it["scoring"].update(frame="square"), "damaged"),
    ],
)
def test_a_run_json_that_is_not_right(
    result: Evaluation, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    kept = save_evaluation(result, tmp_path / "run")
    damage(kept / "run.json", change)
    with pytest.raises(EvaluationError, match=words) as caught:
        EvaluationRun.open(kept)
    assert str(kept) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda it: it.pop("theta"), "theta"),
        (lambda it: it.update(counts=it["counts"][:-1]), "shape"),
        (lambda it: it.update({"predictions|nn": it["predictions|nn"][:-1]}), "shape"),
        (lambda it: it["predictions|nn"].fill(np.nan), "not finite"),
        (lambda it: it["theta"].fill(0), "not positive"),
        (lambda it: it["source"].fill(99), "outside the list of images"),
        (lambda it: it["names"].fill(-1), "outside the list of names"),
        (lambda it: it.update({"predictions|best": it["predictions|nn"]}), "best"),
    ],
)
def test_predictions_that_are_damaged(
    result: Evaluation, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    file = save_evaluation(result, tmp_path / "run") / "predictions.safetensors"
    tensors, metadata = {name: array.copy() for name, array in load_file(file).items()}, metadata_of(file)
    change(tensors)
    save_file(tensors, file, metadata)
    with pytest.raises(EvaluationError, match=words):
        EvaluationRun.open(file.parent)


def metadata_of(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        found: dict[str, str] = opened.metadata()
    return found


def test_files_of_others(result: Evaluation, tmp_path: Path) -> None:
    kept = save_evaluation(result, tmp_path / "run")
    file = kept / "predictions.safetensors"
    tensors, described = load_file(file), json.loads(metadata_of(file)["dualsd"])
    save_file(tensors, file, {"dualsd": json.dumps({**described, "version": 3, "creator": "8.0"})})
    with pytest.raises(EvaluationError, match=r"version 3, written by dualsd 8\.0"):
        EvaluationRun.open(kept)
    save_file(tensors, file)
    with pytest.raises(EvaluationError, match="do not name the format"):
        EvaluationRun.open(kept)
    file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(EvaluationError, match="cannot be read"):
        EvaluationRun.open(kept)
    file.unlink()
    with pytest.raises(EvaluationError, match="cannot be read"):
        EvaluationRun.open(kept)
    (kept / "run.json").write_text("{")
    for place in (kept, tmp_path, tmp_path / "nothing"):
        with pytest.raises(EvaluationError, match="is no run of `dualsd eval`"):
            EvaluationRun.open(place)
