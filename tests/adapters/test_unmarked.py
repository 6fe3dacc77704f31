"""`dualsd adapt --pseudo` on photographs in which nobody has marked a keypoint."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from tests.adapters.drawn import CATEGORIES, TYPED, write_drawn
from tests.cli.conftest import Run, _no_progress, run  # noqa: F401

WEAK = (*TYPED, "--pseudo", "--relaxed", "2", "--steps", "4", "--batch", "4", "--checkpoint-every", "2")


@pytest.fixture
def learn(run: Run, tmp_path: Path) -> Callable[..., Result]:  # noqa: F811
    """Run `dualsd adapt` beside photographs without keypoints and their features."""
    write_drawn(tmp_path / "drawn")
    shutil.copytree(tmp_path / "drawn", ".", dirs_exist_ok=True)
    Path("pictures/keypoints.csv").rename("truth.csv")
    return lambda *arguments: run("adapt", *arguments)


def test_no_keypoint_is_needed(learn: Callable[..., Result]) -> None:
    result = learn(*WEAK, "--name", "r", "--json", "o.json")
    assert result.exit_code == 0, result.output
    assert "weak labels: " in result.output
    assert json.loads(Path("o.json").read_text())["best"] is None  # nothing to validate on: the last step is kept
    assert any(own.abs().sum() > 0 for name, own in load_file("runs/r/adapter.safetensors").items() if "widen" in name)


def test_a_run_goes_on_bit_for_bit(learn: Callable[..., Result]) -> None:
    for name, steps in (("whole", "4"), ("parts", "2")):
        assert learn(*WEAK, "--name", name, "--steps", steps).exit_code == 0
    assert learn("--resume", "runs/parts", "--steps", "4").exit_code == 0
    whole, parts = (load_file(f"runs/{name}/adapter-last.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(own, parts[name]) for name, own in whole.items())


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ((*TYPED, "--relaxed", "1"), "--relaxed goes with --pseudo"),
        ((*TYPED, "--pseudo", "--hold-out", "0.2"), "--pseudo holds nothing out"),
        ((*TYPED, "--pseudo", "--hold-by", "category"), "--pseudo holds nothing out"),
    ],
)
def test_what_does_not_go_together(learn: Callable[..., Result], typed: tuple[str, ...], sentence: str) -> None:
    result = learn(*typed)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def test_too_few_photographs(learn: Callable[..., Result]) -> None:
    for category in CATEGORIES:
        for number in range(2, 6):
            Path("pictures", category, f"{number}.png").unlink()
    result = learn(*WEAK)
    assert result.exit_code == 2
    assert "three images of a category, and no category has more than 2" in " ".join(result.stderr.split())
