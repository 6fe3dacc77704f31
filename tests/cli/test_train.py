"""`dualsd train` and what uses its prompts, on a small SPair-71k of noise."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cli.main import app
from featstore.backbones.base import NetworkName
from featstore.backbones.models import open_model
from featstore.config import TrainConfig
from featstore.errors import DiskFullError
from featstore.parsing import from_json
from featstore.prompts.saved import load_prompts
from featstore.store.rows import RowArray
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.runs import free_name, trained_alone
from featstore.tuning.settings import settings_of
from featstore.tuning.train import train as learn
from tests.cli.conftest import Run
from tests.cli.html_page import read_page
from tests.featstore.store.small_store import contents
from tests.featstore.trainable import write_trainable
from tests.forked import at_once

SMALL = ("--length", "4", "--batch", "2", "--draws", "2", "--device", "cpu", "--batch-size", "4")
STORE = ("--store", "dualsd.zarr")


@pytest.mark.parametrize(
    ("dataset", "mode", "pairs", "steps"),
    [
        ("spair", "single", 53_340, 29_633),
        ("spair", "class", 53_340, 29_633),
        ("spair", "cpm", 53_340, 11_853),
        ("pf-pascal", "single", 2_941, 16_339),
    ],
)
def test_the_published_lengths(dataset: str, mode: str, pairs: int, steps: int) -> None:
    """The report's epochs at 9 pairs a batch (docs/method.md, Settings), on the datasets' own numbers of pairs."""
    config, model = TrainConfig(mode=mode), open_model("demo", None)
    assert settings_of(config, dataset, pairs, model, 128, "float32").steps == steps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A folder with a store of it, latents and some noise only."""
    folder = tmp_path_factory.mktemp("made")
    write_trainable(folder / "spair")
    command = ("cache", "build", "--dataset", "spair", "--root", str(folder / "spair"), "--model", str(small_model))
    store = ("--store", str(folder / "dualsd.zarr"), "--size", "64", "--t", "50,200", "--batch-size", "4")
    result = CliRunner().invoke(app, [*command, *store])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def train(run: Run, made: Path) -> Callable[..., Result]:
    """Run `dualsd train` in an empty directory with a copy of the store."""
    shutil.copytree(made / "dualsd.zarr", "dualsd.zarr")

    def call(*arguments: str) -> Result:
        return run("train", *(() if "--resume" in arguments else SMALL), *arguments)

    return call


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def metrics(run: str) -> list[dict[str, str]]:
    with Path("runs", run, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tensors(run: str, file: str) -> dict[str, torch.Tensor]:
    return load_file(Path("runs", run, file))


def assert_same(first: str, second: str) -> None:
    """Both runs ended in the same prompts, bit by bit, and say the same of every step."""
    for file in ("prompts.safetensors", "prompts-last.safetensors", "checkpoint.safetensors"):
        ours, theirs = tensors(first, file), tensors(second, file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    numbers = [[(row["step"], row["loss"], row["pck"]) for row in metrics(name)] for name in (first, second)]
    assert numbers[0] == numbers[1]


def test_two_that_start_at_once_take_two_names(train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look for a free name before either has taken it."""
    names = iter([0, 0])

    def stale(parent: Path, prefix: str) -> str:
        return f"{prefix}-001" if next(names, None) is not None else free_name(parent, prefix)

    monkeypatch.setattr("featstore.tuning.runs.free_name", stale)
    for _ in range(2):
        ok(train("--mode", "single", "--steps", "1", "--val-pairs", "1"))
    assert sorted(folder.name for folder in Path("runs").iterdir()) == ["single-2+3-001", "single-2+3-002"]


def test_a_run_that_another_process_trains_is_not_resumed(train: Callable[..., Result]) -> None:
    """The one that trains it holds it until it ends, also by a kill."""
    ok(train("--mode", "single", "--steps", "1", "--val-pairs", "1", "--name", "r"))
    before = {file: file.read_bytes() for file in Path("runs/r").rglob("*") if file.is_file()}
    with trained_alone(RunFolder.open(Path("runs/r"))):
        refused = train("--resume", "runs/r", "--steps", "2")
    assert refused.exit_code == 2
    assert refused.stderr.strip().splitlines() == [refused.stderr.strip()]
    assert "runs/r is being trained by another process" in refused.stderr
    assert {file: file.read_bytes() for file in Path("runs/r").rglob("*") if file.is_file()} == before

    def killed() -> None:
        with trained_alone(RunFolder.open(Path("runs/r"))):
            os.kill(os.getpid(), signal.SIGKILL)

    assert at_once(killed) == [-signal.SIGKILL]
    left = Path("runs/r/checkpoint.safetensors.0123456789abcdef.partial")  # young, but nobody else's
    left.write_bytes(b"half")
    ok(train("--resume", "runs/r", "--steps", "2"))
    assert not left.exists()


@pytest.mark.parametrize("mode", ["single", "class", "cpm"])
def test_a_run_learns_and_writes_what_it_did(train: Callable[..., Result], mode: str) -> None:
    length = () if mode != "cpm" else ("--length", "75")
    result = ok(train("--mode", mode, "--steps", "6", "--val-every", "3", "--name", "r", "--json", "o.json", *length))
    assert "layer 2: 128 channels, 8x8 cells of 8 pixels" in result.output
    rows = metrics("r")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [bool(row["pck"]) for row in rows] == [False, False, True, False, False, True]
    description = json.loads(Path("runs/r/run.json").read_text())
    assert description["settings"]["mode"] == mode
    assert description["versions"]["torch"] == torch.__version__.partition("+")[0] or description["versions"]["torch"]
    prompts = load_prompts(Path("runs/r"))
    assert (prompts.mode.value, prompts.layers, prompts.timesteps) == (mode, (2, 3), (261, 350))
    assert prompts.categories == (("cat", "dog") if mode == "class" else ())
    assert any(Path("runs/r/tensorboard").iterdir())
    best = max(float(row["pck"]) for row in rows if row["pck"])
    assert json.loads(Path("o.json").read_text())["best"] == pytest.approx(best, abs=1e-6)


def test_what_it_is_worth_is_what_eval_and_compare_say(train: Callable[..., Result], run: Run) -> None:
    """On all pairs of val, at the timesteps of the training, with one draw, from maps that each command makes anew."""
    settings = ("--steps", "4", "--val-every", "2", "--lr", "0.1")
    result = ok(train("--mode", "class", *settings, "--name", "r", "--json", "o.json"))
    out = json.loads(Path("o.json").read_text())
    few = ("--split", "val", "--layers", "2,3", "--t", "261,350", "--ensemble", "1", "--readouts", "nn")
    for name, prompts in (("text", ("--prompt", "a photo of a {category}")), ("best", ("--prompts", "runs/r"))):
        ok(run("eval", *few, *prompts, "--alphas", "0.1", "--batch-size", "4", "--out", name, "--json", "e.json"))
        found = json.loads(Path("e.json").read_text())["results"]["nn"]["image"]["0.1"]["all"]
        assert out[name] == pytest.approx(found, abs=0.02)  # its maps were kept in float16
    assert out["lead"]["mean"] == pytest.approx(out["best"] - out["text"])
    ok(run("compare", "text", "best", "--json", "c.json"))
    (compared,) = json.loads(Path("c.json").read_text())["comparisons"]
    assert out["lead"] == pytest.approx(compared["results"]["0.1"]["all"]["lead"], abs=0.02)
    mean, low, high = (100 * out["lead"][end] for end in ("mean", "low", "high"))
    last = (
        f"text {100 * out['text']:.1f} -> learned {100 * out['best']:.1f} ({mean:+.1f} [{low:.1f}, {high:.1f}]) on val"
    )
    assert result.output.splitlines()[-1] == last
    page = read_page(Path("runs/r/report.html"))
    assert last in page.text
    rows = page.table("Validations").rows[1:]
    assert [row[0] for row in rows] == ["text prompt", "first prompts", "2", "4"]
    assert [row[2] for row in rows[:2]] == [f"{100 * out[name]:.2f}" for name in ("text", "initial")]
    # the maps that the evaluations kept change no figure, and nothing is added to the store
    before = contents(Path("dualsd.zarr"))
    ok(train("--mode", "class", *settings, "--name", "s", "--json", "o.json"))
    assert json.loads(Path("o.json").read_text())["text"] == out["text"]
    assert contents(Path("dualsd.zarr")) == before


@pytest.mark.parametrize("mode", ["single", "class", "cpm"])
def test_validating_before_step_1_changes_nothing(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A run whose first prompts were never validated learns the same, bit by bit, and has no last line."""
    settings = ("--mode", mode, "--steps", "2", "--val-every", "1", *(("--length", "75") if mode == "cpm" else ()))
    assert " -> learned " in ok(train(*settings, "--name", "with")).output
    monkeypatch.setattr("featstore.tuning.loop._baselines", lambda *_: None)
    assert " -> learned " not in ok(train(*settings, "--name", "without")).output
    assert_same("with", "without")
    assert not Path("runs/without/validation.json").exists()


def test_a_resumed_run_does_not_validate_the_text_again(
    train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("--mode", "class", "--val-every", "1")
    whole = ok(train(*steps, "--steps", "3", "--name", "whole"))
    ok(train(*steps, "--steps", "1", "--name", "grown"))
    monkeypatch.setattr("featstore.tuning.train.TextPrompt.text", None)  # whoever asked for a text would fail
    resumed = ok(train("--resume", "runs/grown", "--steps", "3"))
    assert "before step 1" in whole.output
    assert "before step 1" not in resumed.output
    assert resumed.output.splitlines()[-1] == whole.output.splitlines()[-1]
    files = [Path("runs", name, "validation.json").read_bytes() for name in ("whole", "grown")]
    assert files[0] == files[1]
    assert b"text" in files[0]
    Path("runs/grown/validation.json").write_bytes(files[0].replace(b"0.", b"1.", 1))
    damaged = train("--resume", "runs/grown", "--steps", "4")
    assert (damaged.exit_code, "validation.json is damaged" in damaged.stderr) == (2, True)


@pytest.mark.parametrize("unused", [(), ("--unused-categories", "drift", "--batch", "1")])
def test_a_run_that_was_stopped_and_resumed_ends_in_the_same_prompts(
    train: Callable[..., Result], unused: tuple[str, ...]
) -> None:
    steps = ("--val-every", "2", "--checkpoint-every", "2", *unused)
    ok(train("--mode", "class", "--name", "whole", "--steps", "6", *steps))
    ok(train("--mode", "class", "--name", "grown", "--steps", "3", *steps))
    ok(train("--resume", "runs/grown", "--steps", "6"))
    last = [metrics(name)[-1] for name in ("whole", "grown")]
    assert last[0]["loss"] == last[1]["loss"]
    ours, theirs = (tensors(name, "prompts-last.safetensors") for name in ("whole", "grown"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


KILLED = """
import os, signal
from featstore.tuning import trainer
plain, count = trainer._step, 0
def step(*arguments):
    global count
    count += 1
    if count == {place}:
        os.kill(os.getpid(), signal.{signal})
    return plain(*arguments)
trainer._step = step
from cli.main import app
app({arguments!r})
"""


def interrupted(place: int, by: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    code = KILLED.format(place=place, signal=by, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "place"), [("single", 5), ("cpm", 2), ("cpm", 4)])
def test_killed_at_any_step_and_resumed_it_ends_in_the_same(
    train: Callable[..., Result], mode: str, place: int
) -> None:
    """Of class prompts see test_kill, which kills at any place of the writing."""
    length = ("--length", "75") if mode == "cpm" else ()
    steps = ["--steps", "6", "--val-every", "2", "--checkpoint-every", "2", *length]
    ok(train("--mode", mode, "--name", "whole", *steps))
    command = ["train", "--mode", mode, "--name", "killed", *SMALL, *steps]
    assert interrupted(place, "SIGKILL", command).returncode == -signal.SIGKILL
    assert Path("runs/killed/checkpoint.safetensors").exists() == (place > 2)
    ok(train("--resume", "runs/killed"))
    assert_same("whole", "killed")


@pytest.mark.parametrize("by", ["SIGTERM", *(pytest.param(by, marks=pytest.mark.slow) for by in ("SIGUSR1", "SIGINT"))])
def test_a_signal_makes_it_save_and_stop(train: Callable[..., Result], by: str) -> None:
    steps = ["--steps", "6", "--val-every", "3", "--checkpoint-every", "100"]
    done = interrupted(3, by, ["train", "--mode", "single", "--name", "stopped", *SMALL, *steps])
    assert done.returncode == 130, done.stderr
    assert "stopped after step 3 of 6" in done.stdout
    assert "dualsd train --resume runs/stopped" in done.stdout
    ok(train("--resume", "runs/stopped"))
    ok(train("--mode", "single", "--name", "whole", *steps))
    assert_same("whole", "stopped")


def test_a_recorded_config_trains_the_same(train: Callable[..., Result], run: Run) -> None:
    """`--config` takes a run's `run.json`, options typed beside it win, and Python takes the same config."""
    ok(train("--mode", "class", "--steps", "3", "--val-every", "2", "--lr", "0.02", "--name", "r"))
    ok(run("train", "--config", "runs/r/run.json", "--name", "again"))
    assert_same("r", "again")
    recorded = [json.loads(Path("runs", name, "run.json").read_text())["config"] for name in ("r", "again")]
    assert recorded[0] == recorded[1]
    config = from_json(TrainConfig, recorded[0] | {"name": "python", "steps": 2}, "the record", str)
    done = learn(config)
    assert (done.run.path, done.outcome.steps, done.outcome.stopped) == (Path("runs/python"), 2, False)
    assert [row["loss"] for row in metrics("python")] == [row["loss"] for row in metrics("r")][:2]


def test_settings_of_a_run_cannot_change_midway(train: Callable[..., Result]) -> None:
    ok(train("--mode", "single", "--steps", "2", "--name", "r"))
    for option, value, words in (
        ("--lr", "0.5", "rate 0.01, not 0.5"),
        ("--mode", "class", "mode single, not class"),
        ("--t", "50,50", "timesteps 261,350, not 50,50"),
        ("--steps", "1", "steps 2, not 1"),
    ):
        result = train("--resume", "runs/r", option, value)
        assert result.exit_code == 2
        assert words in result.stderr
    again = train("--mode", "single", "--name", "r")
    assert again.exit_code == 2
    assert "go on with `dualsd train --resume runs/r`" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--mode single, class or cpm"),
        (["--mode", "many"], "--mode is single, class, cpm, not 'many'"),
        (["--mode", "cpm", "--length", "40"], "25 + 50 vectors"),
        (["--mode", "single", "--length", "76"], "77 positions"),
        (["--mode", "single", "--unused-categories", "drift"], "--unused-categories drift goes with --mode class"),
        (["--mode", "class", "--unused-categories", "zero"], "is 'zero', not one of 'keep', 'drift'"),
        (["--mode", "single", "--t", "261"], "2 layer(s) but 1 timestep(s)"),
        (["--mode", "single", "--weights", "1"], "2 layer(s) but 1 weight(s)"),
        (["--mode", "single", "--layers", "1"], "no default timestep for layer 1"),
        (["--mode", "single", "--kernel", "4"], "no centre"),
        (["--mode", "single", "--dtype", "float16"], "float16 cannot train on a CPU"),
        (["--mode", "single", "--store", "none.zarr"], "no store"),
        (["--resume", "nowhere"], "no run"),
    ],
)
def test_one_sentence(train: Callable[..., Result], arguments: list[str], words: str) -> None:
    result = train(*arguments)
    assert result.exit_code == 2, result.output
    (sentence,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert words in sentence
    assert not Path("runs").exists()


def test_a_disk_that_is_full_among_the_tokens(train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """2 of 8 images' tokens, 257 of 96 float16 values and a checksum, find room."""
    plain, tokens = RowArray.write, list[Any]()

    def write(self: RowArray, row: Any, values: Any) -> None:
        if self.path == "cond/dinov2":
            if len(tokens) == 2:
                raise DiskFullError("full")
            tokens.append(row)
        plain(self, row, values)

    with monkeypatch.context() as patch:
        patch.setattr(RowArray, "write", write)
        result = train("--mode", "cpm", "--steps", "1", "--length", "75")
    assert result.exit_code == 2
    assert "full; make room and run the same command again, what is complete is kept." in result.stderr
    assert not Path("runs").exists()
    assert len(list(Path("dualsd.zarr/cond/dinov2").glob("c.*"))) == 2


def test_a_disk_that_is_full_when_a_cpm_is_used(
    train: Callable[..., Result], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row that an evaluation of prompts of pairs would add finds no room: latents that lack."""
    ok(train("--mode", "cpm", "--steps", "1", "--name", "r", "--length", "75"))
    Path("dualsd.zarr/latents/c.0.0.0.0").unlink()
    kept = len(list(Path("dualsd.zarr").rglob("c.*")))

    def write(self: RowArray, row: Any, values: Any) -> None:
        raise DiskFullError("full")

    evaluate = ("eval", "--prompts", "runs/r", "--ensemble", "2", "--readouts", "nn", "--batch-size", "4")
    with monkeypatch.context() as patch:
        patch.setattr(RowArray, "write", write)
        result = run(*evaluate)
    assert result.exit_code == 2
    assert "full; make room and run the same command again" in result.stderr, result.stderr
    assert len(list(Path("dualsd.zarr").rglob("c.*"))) == kept
    ok(run(*evaluate))


def test_a_loss_that_is_no_number_stops_it(train: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    import featstore.tuning.trainer as module

    plain = module._step

    def broken(pairs: Any, state: Any, *others: Any) -> tuple[float, int]:
        loss, passes = plain(pairs, state, *others)
        return (float("nan") if state.step == 3 else loss), passes

    monkeypatch.setattr(module, "_step", broken)
    result = train("--mode", "single", "--steps", "6", "--name", "r", "--checkpoint-every", "2")
    assert result.exit_code == 2
    assert "The loss of step 4 is nan" in result.stderr
    monkeypatch.setattr(module, "_step", plain)
    ok(train("--resume", "runs/r"))  # from step 2 on


def test_its_prompts_are_used(train: Callable[..., Result], run: Run) -> None:
    few = ("--ensemble", "1", "--readouts", "nn", "--batch-size", "4")
    text = ok(run("eval", *few, "--json", "text.json"))
    assert "a photo of a {category}" in text.output
    ok(train("--mode", "class", "--steps", "3", "--name", "r"))
    newest = ok(run("eval", *few, "--json", "newest.json"))
    assert "class prompts of runs/r" in newest.output
    ok(run("eval", *few, "--prompts", "runs/r", "--json", "named.json"))
    by_name, by_age, by_text = (json.loads(Path(f"{name}.json").read_text()) for name in ("named", "newest", "text"))
    assert by_name["results"] == by_age["results"]
    assert by_name["t"] == [50, 200]
    assert by_text["t"] == [261, 200]
    assert by_name["features"]["prompts"]["kind"] == "class"
    weights = ("--weights", "0.8:0.6")
    more = ("--prompts", "runs/r", "--split", "test", "--json", "grid.json")
    grid = ok(run("grid", "--t", "50,200", *few, *weights, *more))
    assert "class prompts of runs/r" in grid.output
    (cell,) = (entry for entry in json.loads(Path("grid.json").read_text())["cells"] if entry["t"] == [50, 200])
    assert cell["results"]["nn"] == by_name["results"]["nn"]


def test_cpm_prompts_are_used_pair_by_pair(train: Callable[..., Result], run: Run) -> None:
    few = ("--ensemble", "2", "--readouts", "nn,softmax", "--batch-size", "4", "--prompts", "runs/r")
    ok(train("--mode", "cpm", "--steps", "2", "--name", "r", "--length", "75"))
    result = ok(run("eval", *few, "--json", "eval.json"))
    # 12 pairs of 2 images, 2 maps, 2 draws
    assert "96 UNet passes for 12 pairs" in result.output
    weights = ("--weights", "0.8:0.6")
    grid = ok(run("grid", "--t", "50,200", *few, *weights, "--split", "test", "--json", "grid.json"))
    assert "192 UNet passes for 12 pairs" in grid.output
    ours = json.loads(Path("eval.json").read_text())
    (cell,) = (entry for entry in json.loads(Path("grid.json").read_text())["cells"] if entry["t"] == [50, 200])
    assert cell["results"] == ours["results"]
    assert not Path("dualsd.zarr/maps").exists()
    for command in (("eval",), ("grid", "--t", "50,200")):
        refused = run(*command, *few, "--encoding", "bitround4")
        assert (refused.exit_code, "those of prompts of pairs (cpm) are not" in refused.stderr) == (2, True)
    ok(run("score", "runs/eval-2+3-001", "--json", "score.json"))
    assert json.loads(Path("score.json").read_text()) == ours
    # DINOv2's patch maps belong to images, so they are kept, and half of a fused feature is theirs
    fused = ok(run("eval", *few, "--layers", "3,dino", "--t", "200", "--json", "eval.json"))
    assert "48 UNet passes for 12 pairs" in fused.output
    assert [array.parts[-2:] for array in Path("dualsd.zarr").glob("maps/*/*/*/")] == [("dino", "patches")]
    both = json.loads(Path("eval.json").read_text())
    assert both["features"]["dino_size"] == 224
    # where the UNet's half has no weight it does not matter whose prompts it had
    without = ("eval", "--layers", "3,dino", "--t", "200", "--weights", "0,1", *few[:-2])
    ok(run(*without, "--prompts", "runs/r", "--json", "pairs.json"))
    ok(run(*without, "--prompt", "a photo", "--json", "images.json"))
    pairs, images = (json.loads(Path(name).read_text())["results"] for name in ("pairs.json", "images.json"))
    assert pairs == images
    assert both["results"] != pairs
    refused = run("cache", "maps", "--prompts", "runs/r")
    assert refused.exit_code == 2
    assert "belong to pairs" in refused.stderr


def test_prompts_that_cannot_be_used(train: Callable[..., Result], run: Run) -> None:
    ok(train("--mode", "class", "--layers", "2", "--steps", "1", "--name", "r"))
    few = ("--ensemble", "1", "--readouts", "nn", "--batch-size", "4")
    other_layer = run("eval", *few, "--prompts", "runs/r", "--layers", "2,3")
    assert other_layer.exit_code == 2
    assert "for layer(s) 2, not for layer 3" in other_layer.stderr
    prompts = Path("runs/r/prompts.safetensors")
    from dataclasses import replace

    from featstore.prompts.saved import save_prompts

    learned = load_prompts(prompts)
    save_prompts(replace(learned, tensors={2: {"cat": learned.tensors[2]["cat"]}}), Path("cat.safetensors"))
    missing = run("eval", *few, "--prompts", "cat.safetensors")
    assert missing.exit_code == 2
    assert "No prompt was learned for 'dog'" in missing.stderr
    ok(run("eval", *few, "--prompts", "cat.safetensors", "--fallback", "text"))
    assert run("eval", *few, "--prompts", "cat.safetensors", "--fallback", "single").exit_code == 2
    ok(train("--mode", "single", "--layers", "2", "--steps", "1", "--name", "s"))
    ok(run("eval", *few, "--prompts", "cat.safetensors", "--fallback", "single"))
    save_prompts(replace(learned, model=NetworkName("other", "f" * 32)), Path("other.safetensors"))
    foreign = run("eval", *few, "--prompts", "other.safetensors")
    assert foreign.exit_code == 2
    assert "made for the model other" in foreign.stderr


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(train: Callable[..., Result]) -> None:
    """torchrun and gloo, a global batch of 8, 20 steps in double precision."""
    steps = ["--mode", "class", "--dtype", "float64", "--batch", "8", "--steps", "20", "--val-every", "10"]
    small = ["--length", "4", "--draws", "2", "--device", "cpu", "--batch-size", "4"]
    dualsd = Path(sys.executable).with_name("dualsd")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--no-python", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [*launcher, str(dualsd), "--debug", "train", "--name", name, *steps, *small]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    assert json.loads(Path("runs/two/run.json").read_text())["processes"] == 2
    assert json.loads(Path("runs/one/run.json").read_text())["processes"] == 1
    one, two = metrics("one"), metrics("two")
    assert len(one) == len(two) == 20
    for ours, theirs in zip(one, two, strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), abs=1.1e-6)
        assert ours["pck"] == theirs["pck"]
    first, second = (tensors(name, "prompts-last.safetensors") for name in ("one", "two"))
    for tensor in first:
        torch.testing.assert_close(first[tensor], second[tensor], atol=1e-5, rtol=0)
