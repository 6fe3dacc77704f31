"""`dualsd score --errors` and `compare --errors`: what became of each point, from what was kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.reports.evaluation import report_evaluation
from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from featstore.pipeline.results import Evaluation, EvaluationRun, Scoring, save_evaluation
from matcher.configuration import LayerSpec, MatchSettings
from matcher.misses import KINDS
from matcher.pck import Matches
from tests.cli.conftest import Run
from tests.cli.test_score import ok, read, refused

PLACES = {"left eye": (20.0, 20.0), "right eye": (60.0, 20.0), "nose": (40.0, 60.0), "tail": (90.0, 90.0)}


def kept(path: str, predicted: dict[str, tuple[float, float]]) -> Evaluation:
    """A pair of two images of 100 x 100 pixels; the source shows no tail."""
    names = ("left eye", "right eye", "nose")
    points = np.array([PLACES[name] for name in names])
    pair = Pair("cat/a", "cat/b", "cat", points, points, names, target_only={"tail": PLACES["tail"]})
    pairs = to_resized_frame(AnnotatedPairs.of([pair]), ThetaRule.IMAGE, lambda _: (100, 100), 100)
    found = np.array([predicted.get(name, PLACES[name]) for name in names], dtype=np.float32)
    scoring = Scoring((LayerSpec("2", 261),), ("nn",), (0.05, 0.1), MatchSettings(100), theta="image")
    result = Evaluation("folder", "test", scoring, {"model": "m"}, Matches(pairs, {"nn": found}))
    save_evaluation(result, Path(path))
    return result


@pytest.fixture
def two(run: Run) -> Run:
    """`run`, with an evaluation `a` that takes eyes for each other and the nose for the tail, and a better one, `b`."""
    kept("a", {"left eye": PLACES["right eye"], "right eye": PLACES["left eye"], "nose": PLACES["tail"]})
    kept("b", {"left eye": (20, 27), "nose": (5, 95)})
    return run


def test_every_share(two: Run) -> None:
    output = ok(two("score", "a", "--errors", "--alphas", "0.05", "--json", "a.json")).output
    assert "│ all      │  0.00 │ 0.00 │           100.00 │          66.67 │      0.00 │" in output
    found = read("a.json")
    third = pytest.approx(1 / 3)
    assert found["errors"]["nn"]["0.05"]["cat"] == {
        "right": 0, "near": 0, "another": 1, "mirrored": pytest.approx(2 / 3), "elsewhere": 0
    }  # fmt: skip
    ok(two("score", "b", "--errors", "--json", "b.json"))
    both = read("b.json")["errors"]["nn"]
    assert both["0.05"]["all"] == {"right": third, "near": third, "another": 0, "mirrored": 0, "elsewhere": third}
    assert both["0.1"]["all"]["right"] == pytest.approx(2 / 3)
    assert read("b.json")["geometry_aware"]["n_points"] == 2
    assert read("b.json")["geometry_aware"]["results"]["nn"]["image"]["0.05"]["all"] == 0.5
    # what stands beside is what it was
    ok(two("score", "b", "--json", "plain.json"))
    assert read("plain.json") == {name: own for name, own in read("b.json").items() if name in read("plain.json")}
    assert set(read("b.json")) - set(read("plain.json")) == {"errors", "geometry_aware"}


def test_what_another_run_repairs(two: Run) -> None:
    output = ok(two("compare", "a", "b", "--errors", "--alphas", "0.05", "--json", "c.json")).output
    assert "What A's points at 0.05 are in B" in output
    found = read("c.json")
    assert found["kinds"] == [kind.value for kind in KINDS]
    # mirrored: one is near now, one right; the nose, which was another keypoint, is elsewhere
    expected = np.zeros((5, 5), dtype=int)
    expected[2, 1] = expected[2, 0] = expected[3, 4] = 1
    assert found["repairs"]["b"]["0.05"] == expected.tolist()


@pytest.mark.usefixtures("everything_drawn")
def test_the_report_has_a_bar_per_category(two: Run) -> None:
    page = report_evaluation(Path("a")).read_text()
    assert "Why matches are wrong" in page
    assert "What became of all points at 0.1, in percent: right 0.0, near 0.0, mirrored 66.7" in page


@pytest.mark.usefixtures("everything_drawn")
def test_runs_of_before_open_and_say_what_they_lack(two: Run) -> None:
    run = EvaluationRun.open(Path("a"))
    pairs = replace(run.matched.pairs, unmatched=None, thetas={})
    save_evaluation(replace(run.scored(), matched=replace(run.matched, pairs=pairs)), Path("old"))
    ok(two("score", "old"))
    refused(two("score", "old", "--errors"), "evaluate again to tell its errors apart")
    refused(two("compare", "a", "old", "--errors"), "evaluate again to tell its errors apart")
    refused(
        two("score", "old", "--theta", "keypoints"), "old does not keep the larger extent of the target's keypoints"
    )
    assert "Why matches are wrong" not in report_evaluation(Path("old")).read_text()
