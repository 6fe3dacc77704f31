"""The training tool, for a few steps: it runs, goes on where it was cut off, and writes a model that loads."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from tools.demo_model.loop import Plan, ResumeError, step_generator, train
from tools.demo_model.pictures import batch_indices, categories, draw_pictures

ROOT = Path(__file__).parents[2]
FEW = ("--pictures", "16", "--vae-steps", "2", "--unet-steps", "3", "--dino-steps", "2", "--threads", "2")

pytestmark = pytest.mark.slow


def run_tool(out: Path, work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.train_demo_model", "--out", str(out), "--work", str(work), *FEW, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = run_tool(folder / "model", folder / "work")
    assert done.returncode == 0, done.stderr
    return folder


def test_result_loads_in_diffusers_and_runs(trained: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "model", torch_dtype=torch.float32)
    out = pipeline("a photo of a car", num_inference_steps=1, output_type="np")
    assert out.images.shape == (1, 128, 128, 3)
    assert pipeline.vae.config.scaling_factor != 0.18215


def test_result_is_small_and_carries_its_card(trained: Path) -> None:
    files = [path for path in (trained / "model").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    for said in ("What it is", "What it was trained on", "What it is not", "--unet-steps 3", "| unet |"):
        assert said in card


def test_every_step_is_in_the_loss_curve(trained: Path) -> None:
    with (trained / "work" / "losses.csv").open(newline="") as file:
        rows = [(row["stage"], int(row["step"])) for row in csv.DictReader(file)]
    assert rows == [("vae", 0), ("vae", 1), ("unet", 0), ("unet", 1), ("unet", 2), ("dino", 0), ("dino", 1)]


def test_finished_run_only_writes_again(trained: Path, tmp_path: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    done = run_tool(tmp_path / "model", trained / "work")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / weights).read_bytes() == (trained / "model" / weights).read_bytes()


def test_checkpoints_of_another_recipe_are_refused(trained: Path, tmp_path: Path) -> None:
    done = run_tool(tmp_path / "model", trained / "work", "--pictures", "32")
    assert done.returncode == 2
    assert "--work" in done.stderr
    assert "Traceback" not in done.stderr


class CutOffError(Exception):
    pass


def small_problem() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(40, 6)


def train_small(work: Path, *, cut_off_at: int | None = None, steps: int = 12) -> dict[str, torch.Tensor]:
    network, inputs = small_problem()

    def loss_at(step: int) -> torch.Tensor:
        if step == cut_off_at:
            raise CutOffError
        chance = step_generator(7, "unet", step)
        chosen = inputs[batch_indices(len(inputs), 8, 7, step)]
        loss: torch.Tensor = (network(chosen) - torch.randn(8, 1, generator=chance)).square().mean()
        return loss

    plan = Plan("unet", "small", steps, 1e-2, save_every=0.0)
    return train(plan, network, loss_at, work).state_dict()


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train_small(tmp_path / "whole")
    for cut in (5, 6, 9):
        with pytest.raises(CutOffError):
            train_small(tmp_path / "parts", cut_off_at=cut)
    parts = train_small(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    curves = [
        [row[:5] for row in csv.reader((tmp_path / name / "losses.csv").read_text().splitlines())]
        for name in ("whole", "parts")
    ]
    assert curves[0] == curves[1]


def test_run_may_be_made_longer_until_its_rate_falls(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "grown").mkdir()
    whole = train_small(tmp_path / "whole", steps=20)
    with pytest.raises(CutOffError):
        train_small(tmp_path / "grown", cut_off_at=8)
    grown = train_small(tmp_path / "grown", steps=20)
    assert all(torch.equal(whole[name], grown[name]) for name in whole)
    with pytest.raises(ResumeError, match="too late"):
        train_small(tmp_path / "grown", steps=30)


def test_average_and_not_the_last_step_is_returned(tmp_path: Path) -> None:
    averaged = train_small(tmp_path)
    last = torch.load(tmp_path / "unet.checkpoint.pt", weights_only=True)["network"]
    assert not torch.equal(averaged["0.weight"], last["0.weight"])


def test_rate_warms_up_holds_and_falls_to_zero() -> None:
    plan = Plan("unet", "", 1000, 1.0)
    assert plan.rate_at(0) == pytest.approx(0.01)
    assert plan.rate_at(100) == plan.rate_at(699) == 1.0
    assert plan.rate_at(850) == pytest.approx(0.5)
    assert 0 < plan.rate_at(999) < 1e-4


def test_every_epoch_shows_every_picture_once() -> None:
    shown = torch.cat([batch_indices(20, 8, 1, step) for step in range(5)])
    assert sorted(shown[:20].tolist()) == sorted(shown[20:].tolist()) == list(range(20))
    assert shown[:20].tolist() != shown[20:].tolist()


def test_pictures_are_none_of_the_datasets(tmp_path: Path) -> None:
    from featstore.datasets.demo import DemoDataset

    drawn = draw_pictures(0, 16, tmp_path).permute(0, 2, 3, 1)
    theirs = {DemoDataset().read(image)[15:] for image in DemoDataset().images()}
    assert all(picture.contiguous().numpy().tobytes() not in theirs for picture in drawn)
    assert categories(5).tolist() == [0, 1, 2, 3, 0]
