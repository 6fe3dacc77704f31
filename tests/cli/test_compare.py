"""`dualsd compare`: the runs' PCK, their difference, its interval and p value, over the same pairs."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.pipeline.results import Evaluation, save_evaluation
from matcher.pairs import ALL, MatchingPair
from matcher.pck import Average
from matcher.statistics import bootstrap_mean, graphs_of, permutation_test
from tests.cli.conftest import Run
from tests.cli.test_score import ok, read, refused
from tests.featstore.evaluations import ALPHAS, guessed, many_pairs, result_of
from tests.reference import hits

PAIRS = many_pairs()


def evaluation(spread: float, seed: int, pairs: Sequence[MatchingPair] = PAIRS) -> Evaluation:
    return result_of(pairs, {"nn": guessed(pairs, spread, seed), "softmax": guessed(pairs, spread, 9)})


@pytest.fixture
def two(run: Run) -> Run:
    """`run`, with a good evaluation `a` and a better one `b` at hand."""
    save_evaluation(evaluation(0.10, 1), Path("a"))
    save_evaluation(evaluation(0.04, 2), Path("b"))
    return run


def right(result: Evaluation, alpha: float) -> np.ndarray[Any, Any]:
    """PCK of each pair."""
    return np.array([hits(match, "nn", alpha).mean() for match in result.matched])


@pytest.mark.parametrize("average", list(Average))
def test_every_number(two: Run, average: Average) -> None:
    result = ok(two("compare", "a", "b", "--by", average.value, "--json", "c.json", "--csv", "c.csv"))
    first, second = evaluation(0.10, 1), evaluation(0.04, 2)
    out = read("c.json")
    assert (out["readout"], out["average"], out["frame"], out["first"]) == ("nn", average.value, "resized", "a")
    assert (out["dataset"], out["split"], out["n_pairs"]) == ("demo", "test", len(PAIRS))
    (comparison,) = out["comparisons"]
    assert comparison["run"] == "b"
    assert list(comparison["results"]) == ["0.05", "0.1"]
    sizes = np.array([len(pair.target_points) for pair in PAIRS], dtype=float)
    if average is Average.IMAGE:
        sizes = np.ones(len(PAIRS))
    elif average is Average.CATEGORY:
        named = np.array([pair.category for pair in PAIRS])
        sizes = sizes / [sizes[named == category].sum() for category in named]
    for alpha in ALPHAS:
        found = comparison["results"][f"{alpha:g}"]
        assert list(found) == ["cat", "dog", ALL]
        lead = right(second, alpha) - right(first, alpha)
        for name in found:
            for key, own in (("first", first), ("run", second)):
                assert found[name][key] == own.pck["nn"][average][alpha].named()[name]
            assert found[name]["lead"]["mean"] == pytest.approx(found[name]["run"] - found[name]["first"])
            assert found[name]["lead"]["low"] < found[name]["lead"]["mean"] < found[name]["lead"]["high"]
        alone = bootstrap_mean(PAIRS, lead, seed=0, sizes=sizes)
        assert (found[ALL]["lead"]["low"], found[ALL]["lead"]["high"]) == pytest.approx((alone.low, alone.high))
        p, of_each = permutation_test(graphs_of(PAIRS, sizes), lead[None], seed=0)
        assert [found[name]["p"] for name in found] == pytest.approx([of_each[0][0], of_each[1][0], p[0]], abs=2e-4)
        assert found[ALL]["p"] < 0.05
    rows = list(csv.DictReader(Path("c.csv").read_text().splitlines()))
    assert len(rows) == 2 * 3
    shown = comparison["results"]["0.05"]["all"]
    assert float(rows[2]["lead_percent"]) == pytest.approx(100 * shown["lead"]["mean"], abs=1e-3)
    (line,) = (line for line in result.output.split("B - A at 0.1")[0].splitlines() if line.startswith("│ all"))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    low, high = (100 * shown["lead"][end] for end in ("low", "high"))
    assert cells == [
        "all",
        f"{100 * shown['first']:.2f}",
        f"{100 * shown['run']:.2f}",
        f"{100 * shown['lead']['mean']:+.2f}",
        f"[{low:+.2f}, {high:+.2f}]",
        f"{shown['p']:.4f}",
    ]


def test_a_run_with_itself(two: Run) -> None:
    ok(two("compare", "a", "a", "--json", "c.json"))
    for columns in read("c.json")["comparisons"][0]["results"].values():
        for own in columns.values():
            assert own["first"] == own["run"]
            assert (own["lead"], own["p"]) == ({"mean": 0, "low": 0, "high": 0}, 1)


def test_the_order_of_pairs_does_not_matter(two: Run) -> None:
    own = evaluation(0.04, 2)
    turned = replace(own, matched=own.matched.take(range(len(own.matched))[::-1]))
    save_evaluation(turned, Path("turned"))
    ok(two("compare", "a", "b", "turned", "--json", "c.json"))
    first, second = (comparison["results"] for comparison in read("c.json")["comparisons"])
    assert first == second


def test_other_readouts_and_thresholds(two: Run) -> None:
    ok(two("compare", "a", "b", "--readout", "softmax", "--alphas", "0.05..0.2:0.05", "--json", "c.json"))
    found = read("c.json")["comparisons"][0]["results"]
    assert list(found) == ["0.05", "0.1", "0.15", "0.2"]
    expected = evaluation(0.04, 2).pck["softmax"][Average.IMAGE][0.1].named()
    assert {name: own["run"] for name, own in found["0.1"].items()} == expected


def test_image_sizes_need_one_frame(two: Run) -> None:
    """The same predictions on images of 100 and of 200 pixels: the original frame is the same, and so are the hits."""
    larger = many_pairs(size=200)
    guesses = [2 * points for points in guessed(PAIRS, 0.10, 1)]
    save_evaluation(result_of(larger, {"nn": guesses}, size=200), Path("larger"))
    refused(two("compare", "a", "larger"), "images of 100 pixels in a, but in images of 200 pixels in larger")
    for frame in ("original", "resized"):
        ok(two("compare", "a", "larger", "--frame", frame, "--json", "c.json"))
        out = read("c.json")
        assert out["frame"] == frame
        for own in out["comparisons"][0]["results"]["0.1"].values():
            assert (own["lead"]["mean"], own["p"]) == (0, 1)


def test_the_original_frame_is_that_of_score(two: Run) -> None:
    ok(two("compare", "a", "b", "--frame", "original", "--json", "c.json"))
    found = read("c.json")["comparisons"][0]["results"]
    for name, key in (("a", "first"), ("b", "run")):
        ok(two("score", name, "--frame", "original", "--json", "s.json"))
        for alpha, columns in read("s.json")["results"]["nn"]["image"].items():
            assert {category: own[key] for category, own in found[alpha].items()} == columns


def test_evaluations_of_other_pairs(two: Run) -> None:
    fewer = evaluation(0.1, 1, PAIRS[1:])
    save_evaluation(fewer, Path("fewer"))
    refused(two("compare", "a", "fewer"), "different pairs (cat/0 -> cat/1 is only in a)")
    refused(two("compare", "fewer", "a"), "different pairs (cat/0 -> cat/1 is only in a)")


def changed(**changes: Any) -> list[MatchingPair]:
    """The pairs, the third with other keypoints in the original frame, or other names."""
    original = PAIRS[2].in_original_frame()
    fields = {name: value for name, value in changes.items() if name != "names"}
    names = changes.get("names", PAIRS[2].names)
    return [*PAIRS[:2], replace(PAIRS[2], original=replace(original, **fields), names=names), *PAIRS[3:]]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (changed(target_points=PAIRS[2].in_original_frame().target_points + np.float32(0.5)), "different keypoints"),
        (changed(source_points=PAIRS[2].in_original_frame().source_points + np.float32(0.5)), "different keypoints"),
        (changed(names=PAIRS[2].names and PAIRS[2].names[::-1]), "different keypoints"),
        (changed(theta=99.0), "different thresholds theta"),
        (changed(target_size=(51, 400)), "different image sizes"),
    ],
)
def test_evaluations_on_other_annotations(two: Run, pairs: list[MatchingPair], words: str) -> None:
    save_evaluation(evaluation(0.1, 1, pairs), Path("other"))
    refused(two("compare", "a", "other"), f"{words} of cat/0 -> cat/3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "takes 2 to 26 runs"),
        (["a", "nothing"], "nothing is no run of `dualsd eval`"),
        (["a", "b", "--readout", "window"], "a has no readout window: it was evaluated with nn, softmax"),
        (["a", "b", "--readout", "nn,softmax"], "--readout takes one readout"),
        (["a", "b", "--readout", "best"], "no readout 'best'"),
        (["a", "b", "--by", "keypoint"], "--by is "),
        (["a", "b", "--frame", "square"], "--frame is "),
        (["a", "b", "--alphas", "0.2..0.1:0.1"], "empty range"),
        (["a", "b", "--csv", "no/folder.csv"], "no/folder.csv cannot be written"),
    ],
)
def test_one_sentence_and_exit_code_2(two: Run, arguments: list[str], words: str) -> None:
    refused(two("compare", *arguments), words)


def test_json_is_json_where_a_category_has_one_pair(run: Run) -> None:
    """Its interval is everything that a difference can be."""
    pairs = [*PAIRS[:30], PAIRS[30]]
    for name, seed in (("a", 1), ("b", 2)):
        save_evaluation(evaluation(0.1, seed, pairs), Path(name))
    ok(run("compare", "a", "b", "--json", "c.json"))
    found = json.loads(Path("c.json").read_text(), parse_constant=pytest.fail)
    own = found["comparisons"][0]["results"]["0.1"]["dog"]
    assert (own["lead"]["low"], own["lead"]["high"], own["p"]) == (-1, 1, 1)
