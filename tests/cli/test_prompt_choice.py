"""Which prompts a command uses: one rule for all of them, and the line that says it."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from featstore.config import EvalConfig
from featstore.errors import PromptError
from featstore.pipeline.opened import NEWEST, PromptChoice, choose_for_store
from featstore.prompts.base import Mode
from featstore.prompts.saved import save_prompts
from featstore.store.store import open_store
from featstore.tuning.run_folder import RunFolder, create_run
from featstore.tuning.settings import TuningSettings
from matcher.errors import InputError
from tests.cli.conftest import Run
from tests.cli.test_score import ok, refused
from tests.featstore.prompts.made import made

Keep = Callable[..., RunFolder]

SETTINGS = {
    "mode": "class",
    "length": 75,
    "steps": 2,
    "sampling": "pairs",
    "batch": 2,
    "clique": 2,
    "accumulate": 1,
    "noise": "cached",
    "draws": 1,
    "rate": 0.01,
    "network_rate": 0.001,
    "kernel": 3,
    "matching": {"image_size": 64, "geometry": "corners", "upsample_align": "corners"},
    "validate_every": 1,
    "validation_pairs": 1,
    "checkpoint_every": 1,
    "seed": 0,
    "dtype": "float32",
}


@pytest.fixture
def keep(store: Path) -> Keep:
    """Keep a training of class prompts under ./runs, finished or stopped after its first step."""
    opened = open_store(store)

    def call(name: str, layers: tuple[int, ...], steps: int = 2) -> RunFolder:
        each = dict.fromkeys(("timesteps", "validation_timesteps"), [50] * len(layers))
        described = {**SETTINGS, **each, "layers": list(layers), "weights": [1.0] * len(layers)}
        run = create_run(Path("runs"), name, opened, TuningSettings.from_json(described), {})
        save_prompts(made(Mode.CLASS, layers, opened.header.model_fingerprint), run.prompts)
        run.write_metrics([(str(step), "1.0", "", "0.1") for step in range(1, steps + 1)])
        return run

    return call


def choose(
    store: Path,
    layers: tuple[int, ...] | None = None,
    t: int | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
) -> PromptChoice:
    """t: of each layer."""
    names = None if layers is None else tuple(map(str, layers))
    timesteps = None if t is None else (t,) * len(layers or (2, 3))
    return choose_for_store(
        open_store(store), EvalConfig(layers=names, timesteps=timesteps, prompt=prompt, prompts=prompts)
    )


@pytest.mark.parametrize("runs", [(), ((2, 3),), ((2,),), ((2, 3), (2,)), ((2,), (2, 3)), ((3, 2),)])
def test_all_combinations(store: Path, keep: Keep, runs: tuple[tuple[int, ...], ...]) -> None:
    kept = [keep(f"r{index}", layers).path for index, layers in enumerate(runs)]
    for layers, t, prompt, prompts in product(
        (None, (2,), (2, 3)), (None, 50), (None, "a {category}"), (None, NEWEST, *kept[:1])
    ):
        used = set(layers or (2, 3))
        with_them = [path for path, own in zip(kept, runs, strict=True) if set(own) == used]
        typed = (layers, t, prompt, prompts)
        if prompt is not None and prompts is not None:
            with pytest.raises(InputError, match="exclude each other"):
                choose(store, *typed)
        elif prompts == NEWEST and not with_them:
            with pytest.raises(PromptError, match="no finished run on this store under runs with exactly the layers"):
                choose(store, *typed)
        elif prompts == NEWEST:
            assert choose(store, *typed).source == with_them[-1]
        elif prompts is not None and not set(layers or ()) <= set(runs[0]):
            with pytest.raises(PromptError, match="These prompts are for layer"):
                choose(store, *typed)
        elif prompts is not None:
            assert choose(store, *typed).source == prompts
        elif layers is t is prompt is None and runs and set(runs[-1]) == {2, 3}:
            assert choose(store, *typed).line == (
                f"prompt: class prompts of {kept[-1]}, the newest finished run on this store, for layers "
                f"{','.join(map(str, runs[-1]))}"
            )
        else:
            text = prompt or "a photo of a {category}"
            assert choose(store, *typed).line == f"prompt: the text {text!r}"


def test_a_training_that_is_not_finished_is_used_by_name_only(store: Path, keep: Keep) -> None:
    finished, stopped = keep("a", (2, 3)), keep("b", (2, 3), steps=1)
    for prompts in (None, NEWEST):
        assert choose(store, prompts=prompts).source == finished.path
    assert choose(store, prompts=stopped.path).source == stopped.path


@pytest.mark.parametrize("content", ["{", json.dumps({"format": "dualsd ruo", "creator": "0.1.0"})])
def test_a_run_that_is_damaged_may_be_the_newest(store: Path, keep: Keep, content: str) -> None:
    keep("a", (2, 3))
    (keep("b", (2, 3)).path / "run.json").write_text(content)
    with pytest.raises(InputError, match="runs/b is no run"):
        choose(store)
    assert choose(store, prompt="a photo").learned is None  # nobody asks for runs


@pytest.mark.parametrize("name", ["run.json", "prompts.safetensors"])
def test_a_run_that_is_named_and_damaged(store: Path, keep: Keep, name: str) -> None:
    file = keep("r", (2, 3)).path / name
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    for prompts in (Path("runs/r"), None, NEWEST):
        with pytest.raises(InputError, match=f"runs/r/{name}|runs/r is no run"):
            choose(store, prompts=prompts)


def test_other_programs_may_keep_a_run_json_there(store: Path) -> None:
    Path("runs/other").mkdir(parents=True)
    Path("runs/other/run.json").write_text('{"name": "mine"}')
    assert choose(store).learned is None


def test_every_command_says_which_on_a_line_of_its_own(store: Path, keep: Keep, run: Run, photographs: Path) -> None:
    keep("r", (2, 3))
    few = ("--ensemble", "1", "--batch-size", "4")
    files = [str(photographs / "cat" / f"{index}.png") for index in range(2)]
    match = ("match", *files, "--points", "5,5", "--store", str(store), "--category", "cat", "--ensemble", "1")
    text = "a photo of a {category}"
    learned = "prompt: class prompts of runs/r, the newest finished run on this store, for layers 2,3"
    for command, typed in (
        (("eval", *few, "--readouts", "nn"), ("--layers", "2", "--t", "50")),  # DIFT, as the README has it
        (("cache", "maps", *few, "--dry-run"), ("--t", "50,50")),
        (("cache", "export", *few, "--out", "maps.safetensors"), ("--layers", "2")),
        (match, ("--layers", "2", "--t", "50")),
    ):
        assert learned in ok(run(*command)).stdout.splitlines(), command
        Path("maps.safetensors").unlink(missing_ok=True)
        lines = ok(run(*command, *typed)).stdout.splitlines()
        assert lines.index(f"prompt: the text {text!r}") < len(lines) - 1, command
    newest = ok(run("grid", "--t", "50", *few, "--split", "test", "--prompts", "newest")).stdout
    assert learned in newest.splitlines()
    assert "--prompts runs/r" in newest
    refused(run(*match[:-4], "--model", "demo", "--prompts", "newest"), "with --store")
