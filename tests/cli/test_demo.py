"""`dualsd demo`: what it chooses on val, and the table that it ends with."""

import re
from pathlib import Path

import numpy as np
import pytest

from cli.demo import ALPHAS, best_of, print_leads
from featstore.config import EvalConfig
from featstore.pipeline.compare import compare_runs
from featstore.pipeline.results import EvaluationRun, save_evaluation
from matcher.configuration import Configuration, Geometry, LayerSpec, MatchSettings
from matcher.grid import GridScores
from matcher.pairs import Pairs
from tests.cli.conftest import Run
from tests.featstore.evaluations import guessed, many_pairs, result_of

SETTINGS = MatchSettings(100, Geometry.CORNERS, 1, Geometry.CORNERS)


def test_the_best_of_exactly_those_layers_both_of_which_weigh() -> None:
    """Two alphas, of which the second decides; a weighting of 0 is no second layer."""
    tried = [
        ([("2", 50, 1.0)], (9, 1)),
        ([("2", 100, 1.0)], (0, 3)),
        ([("2", 50, 0.30902), ("3", 100, 0.95106)], (0, 5)),
        ([("2", 100, 0.0), ("3", 100, 1.0)], (9, 8)),
        ([("3", 100, 1.0)], (9, 8)),
    ]
    pairs = Pairs.of(many_pairs(2, ("cat",)))
    configurations = tuple(Configuration(tuple(LayerSpec(*one) for one in layers), SETTINGS) for layers, _ in tried)
    hits = np.array([[[[count] * len(pairs) for count in counts]] for _, counts in tried], dtype=np.uint16)
    scores = GridScores(pairs, configurations, ("nn",), ALPHAS, hits)
    config = EvalConfig(store="a.zarr")
    chosen = {layers: best_of(scores, layers, config)[1] for layers in (("2",), ("3",), ("2", "3"))}
    assert {layers: own.timesteps for layers, own in chosen.items()} == {
        ("2",): (100,),
        ("3",): (100,),
        ("2", "3"): (50, 100),
    }
    assert chosen["2", "3"].weights == (0.309, 0.951)
    assert chosen["2",].weights is None


def test_the_last_table_says_what_compare_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = many_pairs()
    kept = {}
    for seed, (name, spread) in enumerate({"layer 2": 0.3, "layer 3": 0.1, "both": 0.05}.items()):
        kept[name] = save_evaluation(result_of(pairs, {"nn": guessed(pairs, spread, seed)}), tmp_path / name)
    print_leads(kept, "layer 3")
    rows = {
        line.split("│")[1].strip(): line.split("│")[4:-1]
        for line in capsys.readouterr().out.splitlines()
        if "│" in line
    }
    assert [*rows] == [*kept]
    others = [name for name in kept if name != "layer 3"]
    opened = [EvaluationRun.open(kept[name]) for name in ("layer 3", *others)]
    for name, (_, found) in zip(others, compare_runs(opened, "nn", ALPHAS).others, strict=True):
        for column, alpha in enumerate(ALPHAS):
            lead, cells = found[alpha].overall.lead, rows[name]
            assert float(cells[2 * column].split()[0]) == pytest.approx(100 * found[alpha].overall.run, abs=0.051)
            numbers = [float(number) for number in re.findall(r"[+-][\d.]+", cells[2 * column + 1])]
            assert numbers == pytest.approx([100 * value for value in (lead.mean, lead.low, lead.high)], abs=0.051)
    assert [cell.strip() for cell in rows["layer 3"][1::2]] == ["", ""]


@pytest.mark.slow
def test_two_layers_as_searched_beat_the_best_of_one(run: Run) -> None:
    """On test, by more than images drawn by chance make up for, at both thresholds; layers and weights are from val."""
    result = run("demo")
    assert result.exit_code == 0, result.output
    *_, found = (line for line in result.stdout.splitlines() if "both, as grid found them" in line)
    leads = [[float(number) for number in re.findall(r"[+-][\d.]+", cell)] for cell in found.split("│")[5:-1:2]]
    assert len(leads) == len(ALPHAS)
    assert all(low > 0 for _, low, _ in leads)
    assert (Path("dualsd-demo") / "matches.png").is_file()
