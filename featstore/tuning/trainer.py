"""Prompts as what the loop of a training learns (`featstore.tuning.loop`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from featstore.pipeline.distributed import Processes
from featstore.pipeline.features import chunks
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import save_prompts
from featstore.tuning.loop import Step, TrainingState, Validated, sum_numbers
from featstore.tuning.step import Learner, LoadNoisy, NoiseAhead, Prompted, RandomPairs, batch_loss, validate
from matcher.pairs import MatchingPair


@dataclass(frozen=True, slots=True, eq=False)
class Problem(Learner):
    """What is learned from what.

    Args:
        pairs: To learn from, in the resized frame.
        validation: To validate on; none where the data set has no such split.
        noisy: The noisy latents of steps, made ahead of them.
        validation_noisy: The noisy latents of validations.
        text: The text prompt, which is validated before step 1.
        description: Of the prompts, but for what they hold.
    """

    noisy: NoiseAhead
    pairs: Sequence[MatchingPair]
    validation: Sequence[MatchingPair]
    validation_noisy: LoadNoisy
    text: Prompted
    description: LearnedPrompts

    def snapshot(self) -> LearnedPrompts:
        """The prompts as they are now."""
        sets = zip(self.description.layers, self.prompts, strict=True)
        return replace(self.description, tensors={layer: own.tensors(self.networks.framed) for layer, own in sets})

    @property
    def device(self) -> torch.device:
        """See `Task`."""
        return self.networks.compute.device

    @property
    def passes_per_image(self) -> int:
        """See `Task`."""
        return len(self.settings.layers)

    def open_state(self) -> TrainingState:
        """See `Task`."""
        return _open_state(self)

    def step(self, state: TrainingState, processes: Processes) -> Step:
        """See `Task`."""
        sampler = RandomPairs(len(self.pairs), self.settings.batch, self.settings.seed)
        batch = sampler.batch(state.step)
        _expect(self, sampler, state.step, processes)
        loss, made = _step([self.pairs[index] for index in batch], state, self, processes)
        return Step(loss, made, len(batch))

    def validate_plain(self, processes: Processes) -> Validated:
        """See `Task`."""
        return _validate(self, self.text, processes)

    def validate(self, processes: Processes) -> Validated:
        """See `Task`."""
        return _validate(self, self.prompted, processes)

    def save(self, file: Path) -> None:
        """See `Task`."""
        save_prompts(self.snapshot(), file)


def _validate(problem: Problem, prompted: Prompted, processes: Processes) -> Validated:
    """PCK of the validation pairs, a fraction, and of each, (pairs,); every process takes its share."""
    total, own = validate(problem, processes.block(problem.validation), problem.validation_noisy, prompted)
    (summed,) = sum_numbers([total], processes, problem.networks.compute.device)
    return summed / len(problem.validation), np.concatenate(processes.gather(own))


def _open_state(problem: Problem) -> TrainingState:
    settings, compute = problem.settings, problem.networks.compute
    vectors = [own for one in problem.prompts for own in one.parameters()]
    others = [own for one in problem.prompts for own in one.network_parameters()]
    adam = torch.optim.Adam([{"params": vectors, "lr": settings.rate}, {"params": others, "lr": settings.network_rate}])
    scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.dtype is torch.float16)
    return TrainingState(0, [*vectors, *others], adam, -1.0, scaler)


def _expect(problem: Problem, sampler: RandomPairs, step: int, processes: Processes) -> None:
    """Have this step's and the next one's noisy latents made meanwhile."""
    for coming in (step, step + 1):
        pairs = processes.block([problem.pairs[index] for index in sampler.batch(coming)])
        problem.noisy.expect((image for pair in pairs for image in (pair.source, pair.target)), coming)


def _step(
    pairs: Sequence[MatchingPair], state: TrainingState, problem: Problem, processes: Processes
) -> tuple[float, int]:
    """One step of the optimiser: (this process's share of the batch's loss, UNet passes that it made)."""
    state.forget_gradients(problem.settings.unused_categories)
    mine = processes.block(pairs)
    total, passes = 0.0, 0
    for part in chunks(mine, max(math.ceil(len(mine) / problem.settings.accumulate), 1)):
        loss, made = batch_loss(problem, part, len(pairs), state.step)
        state.scaler.scale(loss).backward()
        total, passes = total + loss.item(), passes + made
    sum_gradients(state.parameters, processes)
    state.scaler.step(state.optimiser)  # in float16 left out where gradients have overflown
    state.scaler.update()
    return total, passes


def sum_gradients(parameters: Sequence[nn.Parameter], processes: Processes) -> None:
    """Sum gradients over processes, in place, in one message. A parameter that no process used keeps none.

    Losses are shares of the whole batch's mean, so the sum is the gradient of that mean, however many processes there
    are. (SD4Match's code calls the prompt module past DDP: its gradients are not averaged.)

    Raises:
        ProcessError: another process ended.
    """
    if processes.count == 1:
        return
    used = torch.stack([torch.tensor(float(own.grad is not None)) for own in parameters]).to(parameters[0])
    parts = [(torch.zeros_like(own) if own.grad is None else own.grad).flatten() for own in parameters]
    users, *summed = processes.sum(torch.cat([used, *parts])).split([len(used), *map(len, parts)])
    for own, part, count in zip(parameters, summed, users, strict=True):
        own.grad = part.view_as(own).clone() if count > 0 else None
