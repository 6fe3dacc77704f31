"""`dualsd adapt`: that it starts at the maps as they are, learns, goes on where it was killed, and what it refuses."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from featstore.adapters.base import load_adapter
from featstore.adapters.batches import GroupedPairs, Mirror, Shelf
from featstore.adapters.lists import hold_out
from featstore.adapters.material import open_material
from featstore.adapters.run import AdapterRun
from featstore.adapters.train import AdapterTask, adapt
from featstore.config import AdaptConfig
from featstore.errors import AdapterError
from featstore.progress import Silent
from matcher.pairs import MatchingPair, Pairs
from tests.adapters.drawn import CATEGORIES, KEYPOINTS, LAYERS, SIZE, TYPED, write_drawn
from tests.cli.conftest import Run, _no_progress, run  # noqa: F401

FEW = ("--steps", "6", "--val-every", "2", "--checkpoint-every", "2", "--batch", "4", "--hold-out", "0.34")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_drawn(folder)
    return folder


@pytest.fixture
def learn(run: Run, drawn: Path) -> Callable[..., Result]:  # noqa: F811
    """Run `dualsd adapt` in an empty directory with pictures and features."""
    shutil.copytree(drawn, ".", dirs_exist_ok=True)

    def call(*arguments: str) -> Result:
        return run("adapt", *(() if "--resume" in arguments else (*TYPED, *FEW)), *arguments)

    return call


def ok(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def config(**more: object) -> AdaptConfig:
    """What the tests type, for Python, in the current folder."""
    asked = {"features": Path("features.safetensors"), "dataset": "folder", "root": Path("pictures"), "size": SIZE}
    asked |= {"layers": tuple(LAYERS), "weights": (0.6, 0.8), "hold_out": 0.34, "batch": 4, "steps": 6}
    return AdaptConfig(**(asked | more))  # type: ignore[arg-type]


def metrics(name: str) -> list[dict[str, str]]:
    with Path("runs", name, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(first: str, second: str) -> None:
    """Both runs ended in the same adapter, bit by bit, and say the same of every step."""
    for file in ("adapter.safetensors", "adapter-last.safetensors", "checkpoint.safetensors"):
        ours, theirs = (load_file(Path("runs", name, file)) for name in (first, second))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file
    numbers = [[(row["step"], row["loss"], row["pck"]) for row in metrics(name)] for name in (first, second)]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("mode", ["residual", "weights"])
def test_step_0_is_the_zero_shot_score_bit_for_bit(learn: Callable[..., Result], mode: str) -> None:
    """The maps themselves, and the PCK of held-out pairs; one that learns nothing is worth nothing."""
    ok(learn("--mode", mode, "--name", "r", "--lr", "0", "--decay", "0"))
    made = AdapterRun.open(Path("runs/r"))
    before, adapter = made.baselines, load_adapter(made.best)
    assert before is not None
    assert before.lead is not None
    assert before.initial == before.of_text > 0
    assert (before.lead.mean, before.lead.low, before.lead.high) == (0, 0, 0)
    maps = load_file("features.safetensors")
    keys = [(layer, None) for layer in LAYERS]
    for image in ("car(M)/0", "cup(S)/5"):
        own = {(layer, None): maps[f"{image}|{layer}"][None] for layer in LAYERS}
        found = adapter(own)
        assert all(torch.equal(found[key], own[key].float()) for key in keys)
    assert adapter.spec.weights == (0.6, 0.8)


def test_it_learns_what_is_held_out_as_well(learn: Callable[..., Result]) -> None:
    result = ok(learn("--steps", "120", "--val-every", "40", "--lr", "0.01", "--name", "r", "--json", "o.json"))
    out = json.loads(Path("o.json").read_text())
    assert out["lead"]["low"] > 0.1, out
    assert out["best"] == pytest.approx(out["zero_shot"] + out["lead"]["mean"])
    mean, low, high = (100 * out["lead"][end] for end in ("mean", "low", "high"))
    assert result.output.splitlines()[-1] == (
        f"zero-shot {100 * out['zero_shot']:.1f} -> adapted {100 * out['best']:.1f} "
        f"({mean:+.1f} [{low:.1f}, {high:.1f}]) on held-out pairs"
    )
    described = json.loads(Path("runs/r/run.json").read_text())
    assert described["format"] == "dualsd adapter run"
    assert described["maps"] == {"features": "own", "layers": list(LAYERS), "size": SIZE}
    assert any(Path("runs/r/tensorboard").iterdir())
    assert load_adapter(Path("runs/r")).spec.about["maps"]["features"] == "own"


@pytest.mark.parametrize("loss", ["contrastive", "dense", "contrastive+dense"])
def test_other_losses_and_the_aggregate_learn(learn: Callable[..., Result], loss: str) -> None:
    small = ("--mode", "aggregate", "--projection", "16", "--width", "8", "--dropout", "0.1", "--flip")
    ok(learn(*small, "--loss", loss, "--steps", "60", "--name", "r", "--val-every", "60", "--lr", "0.01"))
    losses = [float(row["loss"]) for row in metrics("r")]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert load_adapter(Path("runs/r")).outputs == (("adapted", None),)


def test_weights_learn_which_layer_is_worth_more(learn: Callable[..., Result]) -> None:
    """A layer of nothing but noise loses its share."""
    maps = load_file("features.safetensors")
    for name in [name for name in maps if name.endswith("|coarse")]:
        maps[name] = torch.from_numpy(np.random.default_rng(len(name)).normal(0, 1, maps[name].shape)).half()
    save_file(maps, "features.safetensors")
    ok(learn("--mode", "weights", "--steps", "60", "--lr", "0.05", "--name", "r"))
    coarse, fine = load_adapter(Path("runs/r/adapter-last.safetensors")).spec.weights
    assert 0 < coarse < 0.6 < 0.8 < fine
    assert json.loads(Path("runs/r/run.json").read_text())["settings"]["width"] == 0


KILLED = """
import os, signal
from featstore.adapters.train import AdapterTask
plain, count = AdapterTask.step, 0
def step(*arguments):
    global count
    count += 1
    if count == {place}:
        os.kill(os.getpid(), signal.{by})
    return plain(*arguments)
AdapterTask.step = step
from cli.main import app
app({arguments!r})
"""


@pytest.mark.parametrize(("mode", "place", "by"), [("residual", 2, "SIGKILL"), ("weights", 4, "SIGKILL")])
def test_killed_and_resumed_it_ends_in_the_same(learn: Callable[..., Result], mode: str, place: int, by: str) -> None:
    more = ("--mode", mode, "--flip")
    ok(learn(*more, "--name", "whole"))
    code = KILLED.format(place=place, by=by, arguments=["adapt", *TYPED, *FEW, *more, "--name", "killed"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path("runs/killed/checkpoint.safetensors").exists() == (place > 2)
    ok(learn("--resume", "runs/killed"))
    assert_same("whole", "killed")


def test_a_signal_makes_it_save_and_stop_and_steps_may_grow(learn: Callable[..., Result]) -> None:
    small = ("--mode", "aggregate", "--projection", "8", "--dropout", "0.2", "--loss", "contrastive+dense")
    ok(learn(*small, "--name", "whole"))
    arguments = ["adapt", *TYPED, *FEW, *small, "--name", "stopped", "--steps", "4"]
    code = KILLED.format(place=3, by="SIGTERM", arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "dualsd adapt --resume runs/stopped" in done.stdout) == (130, True), done.stderr
    ok(learn("--resume", "runs/stopped", "--steps", "6"))
    ours, theirs = (load_file(Path("runs", name, "adapter-last.safetensors")) for name in ("whole", "stopped"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_maps_read_ahead_teach_the_same_as_maps_in_memory(learn: Callable[..., Result]) -> None:
    material = open_material(config(), Silent())
    ok(learn("--name", "r"))
    settings = AdapterRun.open(Path("runs/r")).settings
    keys, found = [(layer, None) for layer in LAYERS], []
    for limit in (2**30, 0):
        from featstore.adapters.base import make_adapter
        from featstore.pipeline.distributed import ALONE

        shelf = Shelf(material.maps, keys, material.images, limit)
        assert shelf.in_memory == bool(limit)
        task = AdapterTask(make_adapter(settings.spec({})), settings, material, shelf, torch.device("cpu"))
        state = task.open_state()
        for _ in range(3):
            found.append(task.step(state, ALONE).loss)
            state.step += 1
    assert found[:3] == found[3:]


def test_a_recorded_config_learns_the_same(learn: Callable[..., Result], run: Run) -> None:  # noqa: F811
    ok(learn("--name", "r", "--seed", "3"))
    ok(run("adapt", "--config", "runs/r/run.json", "--name", "again"))
    assert_same("r", "again")
    done = adapt(config(steps=2, seed=3, validate_every=2, name="python"))
    assert [row["loss"] for row in metrics("python")] == [row["loss"] for row in metrics("r")][:2]
    assert done.parameters == sum(own.numel() for own in load_adapter(done.run.best).parameters())


def test_what_is_held_out_shares_no_photograph(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(drawn)
    whole = open_material(config(hold_out=0.0), Silent())
    assert len(whole.validation) == 0
    same = {"car(M)/0": "one", "cup(S)/1": "one"}
    for seed in range(8):
        kept, held = hold_out(whole.pairs, 0.34, "image", seed, same)
        ends = [{image for side in ("source", "target") for image in own.grouped(side)} for own in (kept, held)]
        assert not {same.get(image, image) for image in ends[0]} & {same.get(image, image) for image in ends[1]}
        assert ends[1] != set()
        kept, held = hold_out(whole.pairs, 0.34, "category", seed, {})
        kinds = [{category.partition("(")[0] for category in own.occurring} for own in (kept, held)]
        assert (len(kinds[1]), kinds[0] & kinds[1], len(kept) + len(held)) == (1, set(), len(whole.pairs))


def test_every_pair_comes_and_images_come_together() -> None:
    ends = [(a, b) for a in "vwxyz" for b in "vwxyz" if a != b]
    points = np.ones((2, 2), dtype=np.float32)
    pairs = Pairs.of([MatchingPair(a, b, "cat", points, points, 1.0) for a, b in ends])
    batches = [GroupedPairs(pairs, 6, 0).batch(step) for step in range(len(pairs))]
    assert all(len(batch) == len(set(batch)) == 6 for batch in batches)
    assert {row for batch in batches for row in batch} == set(range(len(pairs)))
    assert all(len({image for row in batch for image in pairs.named(row)[:2]}) == 3 for batch in batches)
    assert batches != [GroupedPairs(pairs, 6, 1).batch(step) for step in range(len(pairs))]


def test_mirrored_pairs_have_their_keypoints_on_the_other_side() -> None:
    """A pair of an image with itself shows which point is which."""
    points = np.array([[10, 20], [50, 20], [30, 40]], dtype=np.float32)
    pair = MatchingPair("a", "b", "cat", points, points, 1.0, names=KEYPOINTS[:3])
    mirror = Mirror("folder", SIZE, {"cat": KEYPOINTS}, 0)
    found = [mirror.of(pair, step) for step in range(64)]
    shapes = {(own.source[1], own.target[1]) for own in found}
    assert shapes == {(False, False), (True, True), (True, False)}
    for own in found:
        source, target = own.source_points.numpy(), own.target_points.numpy()
        if own.source[1]:
            np.testing.assert_allclose(source, [[53, 20], [13, 20], [33, 40]])
        wanted = points if not own.source[1] else source if own.target[1] else points[[1, 0, 2]]
        np.testing.assert_allclose(target, wanted)
    plain = Mirror("folder", SIZE, {}, 0)
    unnamed = MatchingPair("a", "b", "cat", points, points, 1.0)
    assert {(own.source[1], own.target[1]) for own in (plain.of(unnamed, step) for step in range(64))} == {
        (False, False),
        (True, True),
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hold-out", "0.1"), "pairs are too few to hold 0.1 of them out by image"),
        (("--hold-by", "category", "--hold-out", "0.9"), "too few to hold 0.9 of them out by category"),
        (("--layers", "coarse,none"), "has no tensor"),
        (("--mode", "weights", "--width", "4"), "--width is of a network"),
        (("--projection", "64"), "--projection goes with --mode aggregate"),
        (("--loss", "dense", "--kernel", "3"), "--kernel is of --loss prompt"),
        (("--kernel", "4"), "A kernel of 4 cells has no centre"),
        (("--t", "50,50"), "--t goes with a store"),
    ],
)
def test_what_it_refuses(learn: Callable[..., Result], arguments: tuple[str, ...], words: str) -> None:
    result = learn(*arguments)
    assert (result.exit_code, words in result.stderr) == (2, True), result.output
    assert len(result.stderr.strip().splitlines()) <= 3
    assert not Path("runs").exists()


def test_settings_and_data_of_a_run_cannot_change_midway(learn: Callable[..., Result], run: Run) -> None:  # noqa: F811
    ok(learn("--name", "r"))
    for arguments, words in (
        (("--lr", "0.5"), "rate 0.002, not 0.5"),
        (("--steps", "3"), "steps 6, not 3"),
        (("--hold-by", "category"), "hold by image, not category"),
        (("--name", "s"), "--name goes with a new run"),
    ):
        result = learn("--resume", "runs/r", *arguments)
        assert (result.exit_code, words in result.stderr) == (2, True), result.output
    refused = run("train", "--resume", "runs/r")
    assert (refused.exit_code, "it is one of `dualsd adapt`" in refused.stderr) == (2, True), refused.output
    maps = load_file("features.safetensors")
    save_file({name: own[:, :4, :4].contiguous() for name, own in maps.items()}, "features.safetensors")
    refused = learn("--resume", "runs/r", "--steps", "8")
    assert (refused.exit_code, "was learned from other maps" in refused.stderr) == (2, True), refused.output


def test_several_processes_are_refused(learn: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert learn().exit_code == 2


def test_too_few_images(tmp_path: Path) -> None:
    points = np.ones((1, 2), dtype=np.float32)
    pairs = Pairs.of([MatchingPair("a", "b", CATEGORIES[0], points, points, 1.0)])
    with pytest.raises(AdapterError, match="1 pairs are too few"):
        hold_out(pairs, 0.5, "image", 0, {})
