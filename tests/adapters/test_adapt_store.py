"""`dualsd adapt` on the maps of a store, and its runs beside those of prompts."""

import json
from pathlib import Path

from typer.testing import Result

from featstore.adapters.base import load_adapter
from tests.cli.conftest import Run, _little_drawn, _no_progress, run, store  # noqa: F401

FEW = ("--ensemble", "1", "--batch-size", "4", "--device", "cpu")
ADAPT = ("adapt", "--steps", "2", "--hold-out", "0", "--batch", "2", *FEW)


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def test_maps_that_lack_are_made_and_the_adapter_is_used(run: Run, store: Path) -> None:  # noqa: F811
    """Without anything held out the last adapter is kept. No command takes the run for one of prompts."""
    first = ok(run(*ADAPT, "--layers", "2,3", "--t", "261,50", "--name", "r"))
    assert "layer 2: 128 channels" in first.output
    assert "learned from test" in first.output
    spec = load_adapter(Path("runs/r")).spec
    assert (spec.inputs, spec.weights) == ((("2", 261), ("3", 50)), (0.8, 0.6))
    assert spec.about["maps"]["prompt"] == "a photo of a {category}"
    assert Path("runs/r/adapter.safetensors").read_bytes() == Path("runs/r/adapter-last.safetensors").read_bytes()
    again = ok(run(*ADAPT, "--layers", "2,3", "--t", "261,50", "--name", "s"))
    assert "layer 2: 128 channels" not in again.output  # nothing lacked
    evaluation = ("eval", *FEW, "--readouts", "nn", "--json", "o.json")
    ok(run(*evaluation, "--adapter", "runs/r"))
    assert json.loads(Path("o.json").read_text())["features"]["adapter"] == "runs/r"
    assert "prompt: the text" in ok(run(*evaluation)).output
    newest = run(*evaluation, "--prompts", "newest")
    assert (newest.exit_code, "There is no finished run" in newest.stderr) == (2, True), newest.output
    page = Path("runs/r/report.html").read_text()
    assert "Residual adapter on layers 2" in page
    assert "dualsd eval --store" in page
    Path("runs/r/report.html").unlink()
    ok(run("report", "runs/r"))
    assert Path("runs/r/report.html").read_text() == page
    ok(run("adapt", "--resume", "runs/r", "--steps", "3"))
    assert len(Path("runs/r/metrics.csv").read_text().splitlines()) == 4


def test_weights_of_every_layer_at_every_timestep(run: Run, store: Path) -> None:  # noqa: F811
    ok(run(*ADAPT, "--mode", "weights", "--layers", "2,3", "--t", "50,261", "--name", "w"))
    spec = load_adapter(Path("runs/w")).spec
    assert spec.inputs == (("2", 50), ("2", 261), ("3", 50), ("3", 261))
    assert all(weight > 0 for weight in spec.weights)
    ok(run("eval", *FEW, "--readouts", "nn", "--adapter", "runs/w", "--json", "o.json"))
    out = json.loads(Path("o.json").read_text())
    assert out["layers"] == [2, 2, 3, 3]
    assert out["weights"] == list(spec.weights)


def test_what_it_refuses_of_a_store(run: Run, store: Path) -> None:  # noqa: F811
    for more, words in (
        (("--dataset", "folder"), "a store knows its own"),
        (("--layers", "2,3", "--t", "50"), "2 layer(s) but 1 timestep(s)"),
        (("--hold-out", "0.5"), "too few to hold 0.5 of them out by image"),
        (("--categories", "cow"), "has no category 'cow'"),
    ):
        result = run(*ADAPT, *more)
        assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert not Path("runs").exists()
