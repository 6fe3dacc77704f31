"""The loop that trains every network of the demo model: AdamW, warm-up, constant rate, decay, moving average,
checkpoints. A resumed run gives the same weights, bit for bit, as one that was never interrupted."""

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

WARM_UP = 100
DECAY = 0.3
"""The share of the steps, at the end, over which the learning rate falls to zero."""

AVERAGE_DECAY = 0.998


class ResumeError(Exception):
    """A checkpoint in the work folder belongs to another recipe."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A stage: name (of its files), identity (see Recipe), steps, peak learning rate, seconds between checkpoints."""

    stage: str
    identity: str
    steps: int
    rate: float
    save_every: float = 120.0

    @property
    def decay_start(self) -> int:
        return self.steps - int(DECAY * self.steps)

    def rate_at(self, step: int) -> float:
        """Warm-up, then constant, then a half cosine to zero. Before the decay it does not depend on `steps`, so a
        run may be made longer or shorter until then."""
        if step < WARM_UP:
            return self.rate * (step + 1) / WARM_UP
        if step < self.decay_start:
            return self.rate
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - self.decay_start) / (self.steps - self.decay_start)))


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """The randomness of one step, so that a resumed run needs no generator's state."""
    offset = {"vae": 1, "unet": 2, "dino": 3}[stage]
    return torch.Generator().manual_seed((seed * 10 + offset) * 10_000_000 + step)


def train(plan: Plan, network: nn.Module, loss_at: Callable[[int], Tensor], work: Path) -> nn.Module:
    """Trains `network` in place, going on from the checkpoint in `work` if there is one.

    loss_at: step to scalar loss of `network` as it stands. Returns a moving average of the weights, in eval mode.
    Losses go to `work/losses.csv`. Raises ResumeError where the checkpoint is another recipe's.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=plan.rate, weight_decay=0.01, betas=(0.9, 0.99))
    average = copy.deepcopy(network).eval().requires_grad_(False)
    path = work / f"{plan.stage}.checkpoint.pt"
    first, before = _resume(plan, path, network, average, optimiser)
    log = _open_log(work / "losses.csv", plan.stage, first)
    started = saved = time.perf_counter()
    network.train()
    for step in range(first, plan.steps):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate_at(step)
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss of {plan.stage} is {loss.item()} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        _update(average, network, step)
        now = time.perf_counter()
        seconds = before + now - started
        _append(
            log,
            [
                plan.stage,
                step,
                f"{loss.item():.6f}",
                f"{float(norm):.4f}",
                f"{plan.rate_at(step):.3e}",
                f"{seconds:.1f}",
            ],
        )
        if now - saved > plan.save_every or step + 1 == plan.steps:
            _save(plan, path, network, average, optimiser, step + 1, seconds)
            saved = time.perf_counter()
    return average


@torch.no_grad()
def _update(average: nn.Module, network: nn.Module, step: int) -> None:
    decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
    for ours, theirs in zip(average.parameters(), network.parameters(), strict=True):
        ours.lerp_(theirs, 1 - decay)


def _save(
    plan: Plan,
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    state = {
        "identity": plan.identity,
        "steps": plan.steps,
        "step": step,
        "seconds": seconds,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    plan: Plan, path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    """Loads the checkpoint; returns the next step and the seconds spent so far."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    if state["identity"] != plan.identity:
        raise ResumeError(f"{path} is of '{state['identity']}', not of '{plan.identity}': take another --work folder")
    planned = Plan(plan.stage, plan.identity, state["steps"], plan.rate)
    if plan.steps != planned.steps and state["step"] > min(plan.decay_start, planned.decay_start):
        raise ResumeError(
            f"{path} stands at step {state['step']} of {planned.steps}, too late to make it {plan.steps} steps: "
            f"take another --work folder"
        )
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])


COLUMNS = ["stage", "step", "loss", "gradient_norm", "rate", "seconds"]


def _open_log(path: Path, stage: str, first: int) -> Path:
    """Drops the rows of steps that are about to be done again."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0] != "stage"]
    kept = [row for row in rows if row[0] != stage or int(row[1]) < first]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *kept])
    return path


def _append(path: Path, row: list[object]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(row)
