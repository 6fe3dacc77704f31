"""`benchmarks.gpu`: what it counts, that it notices numbers that differ, and that it runs without a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Bench, Clock, covered
from benchmarks.published import PublishedModel
from featstore.backbones.base import Compute
from featstore.backbones.models import open_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spans", "length"),
    [
        ([], 0),
        ([(0, 2), (5, 6)], 3),
        ([(5, 6), (0, 2)], 3),
        ([(0, 4), (1, 2), (3, 6)], 6),  # two streams at once
        ([(0, 1), (1, 2), (1, 2)], 2),
    ],
)
def test_time_that_kernels_cover(spans: list[tuple[float, float]], length: float) -> None:
    assert covered(spans) == length


@pytest.mark.parametrize(("left_out", "rate"), [(0, 12 / 2), (4, 8 / 1)])
def test_a_step_is_timed_from_its_first_advance(monkeypatch: pytest.MonkeyPatch, left_out: int, rate: float) -> None:
    """20 images: 8 by second 5, 16 by second 6, all by second 7."""
    now = 0.0
    monkeypatch.setattr("benchmarks.gpu.time.perf_counter", lambda: now)
    clock = Clock("encoding images", CPU, left_out=left_out)
    clock.start("reading images", 2, "images")
    clock.advance(2)
    clock.start("encoding images (VAE)", 20, "images")
    for now, count in ((5.0, 8), (6.0, 8), (7.0, 4)):  # noqa: B007  (the lambda reads it)
        clock.advance(count)
    clock.start("adding noise", 20, "latents")
    clock.advance(20)
    measured = clock.measured()
    assert (measured.rate, measured.busy) == (rate, None)
    assert measured.peak > 1_000_000


def test_a_step_that_never_came_is_no_figure() -> None:
    clock = Clock("encoding images", CPU)
    clock.start("encoding images (VAE)", 8, "images")
    clock.advance(8)
    with pytest.raises(AssertionError, match="more than one batch"):
        clock.measured()


@pytest.fixture
def bench(tmp_path: Path, small_model: Path) -> Bench:
    opened = open_model(str(small_model))
    side = opened.image_size
    compute = Compute(CPU, torch.float32, 8)
    return Bench(small_model, side, opened.latent_shape(side), compute, compute, tmp_path, seconds=0.1)


def test_both_ways_agree(bench: Bench) -> None:
    assert "10 of 10 matches are the same" in gpu.check_maps(bench)
    _, said = gpu.published_training(bench)
    ours, theirs = map(float, said.removeprefix("losses of a step are ").split(" and "))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_other_numbers_are_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PublishedModel.load

    def changed(*arguments: Any) -> PublishedModel:
        model = plain(*arguments)
        with torch.no_grad():
            model.unet.conv_in.weight.mul_(1.1)
        return model

    monkeypatch.setattr(PublishedModel, "load", changed)
    with pytest.raises(AssertionError, match="maps differ"):
        gpu.check_maps(bench)
    with pytest.raises(AssertionError, match="losses differ"):
        gpu.published_training(bench)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it takes SD 2-1's full size")
def test_it_runs_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(images=16, steps=1, seconds=0.2, json=tmp_path / "gpu.json")
    printed = capsys.readouterr().out
    assert printed.startswith("No GPU here: small sizes")
    written = json.loads((tmp_path / "gpu.json").read_text())
    rates = [row[way]["rate"] for row in written["rows"] for way in ("dualsd", "published")]
    assert len(rates) == 8
    assert min(rates) > 0
    assert {row["dualsd"]["busy"] for row in written["rows"]} == {None}
    assert "not measured" in printed
    build, maps, _, matching = ([row["dualsd"]["rate"], row["published"]["rate"]] for row in written["rows"])
    once = 27 / build[0] + 27 / maps[0] + 702 / matching[0]
    assert written["all_pairs"] == pytest.approx([702 / once, 1 / (2 / build[1] + 2 / maps[1] + 1 / matching[1])])
