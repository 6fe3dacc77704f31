"""What a category's prompt does in batches that lack it, against torch's own Adam."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from featstore.backbones.base import NetworkName
from featstore.errors import TuningError
from featstore.pipeline.distributed import ALONE
from featstore.prompts.base import LearnedPrompts, Mode, PromptSet
from featstore.tuning.settings import TuningSettings, UnusedCategories
from featstore.tuning.step import NoiseAhead, Prompted, batch_loss
from featstore.tuning.trainer import Problem, _open_state, _step
from matcher.pairs import MatchingPair
from tests.featstore.tuning.conftest import NoiseLatents, Setup, some_pairs

# cat before dog was ever seen, then both, then cat alone: dog must not move before it was seen, whatever the mode
CATEGORIES = ("cat", "dog", "cat", "cat", "cat", "dog", "cat")
DOG = 1
"""The place of dog's vectors of the first layer among the parameters, sorted by category."""


def batches() -> list[list[MatchingPair]]:
    return [[pair for pair in some_pairs() if pair.category == category][:1] for category in CATEGORIES]


def parameters(prompts: list[PromptSet]) -> list[nn.Parameter]:
    return [own for one in prompts for own in one.parameters()]


def after_each_step(setup: Setup, unused: UnusedCategories) -> list[list[Tensor]]:
    """All parameters before the first step and after each, by the trainer."""
    settings = replace(setup.settings, unused_categories=unused)
    prompts, load = setup.open_prompts(settings), NoiseLatents().load
    trained = settings.mode, settings.layers, settings.timesteps, settings.length
    described = LearnedPrompts(*trained, NetworkName("small", "0"), None, {}, {})
    noisy = NoiseAhead(load, settings.timesteps)
    told = Prompted(False, lambda *_: torch.zeros(1))  # nothing is validated
    problem = Problem(settings, setup.networks, prompts, noisy, some_pairs(), [], load, told, described)
    state = _open_state(problem)

    def step(batch: list[MatchingPair]) -> None:
        _step(batch, state, problem, ALONE)
        state.step += 1

    return recorded(prompts, step)


def by_plain_adam(setup: Setup, set_to_none: bool) -> list[list[Tensor]]:
    """The same with nothing of the trainer's."""
    prompts = setup.open_prompts(setup.settings)
    adam, count = torch.optim.Adam(parameters(prompts), lr=setup.settings.rate), iter(range(len(CATEGORIES)))

    def step(batch: list[MatchingPair]) -> None:
        adam.zero_grad(set_to_none=set_to_none)
        batch_loss(setup.learner(prompts), batch, len(batch), next(count))[0].backward()
        adam.step()

    return recorded(prompts, step)


def recorded(prompts: list[PromptSet], step: Callable[[list[MatchingPair]], None]) -> list[list[Tensor]]:
    def now() -> list[Tensor]:
        return [own.detach().clone() for own in parameters(prompts)]

    found = [now()]
    for batch in batches():
        step(batch)
        found.append(now())
    return found


def moved(steps: list[list[Tensor]], category: str) -> float:
    """How far dog's vectors went, in sum, in the batches of a category."""
    pairs = zip(CATEGORIES, steps, steps[1:], strict=False)
    return sum((after[DOG] - before[DOG]).abs().sum().item() for own, before, after in pairs if own == category)


@pytest.mark.parametrize("unused", UnusedCategories)
def test_a_category_that_a_batch_lacks(setup: Setup, unused: UnusedCategories) -> None:
    """To the last digit what Adam makes of absent gradients, and of zeroed ones."""
    keeps = unused is UnusedCategories.KEEP
    ours, plain = after_each_step(setup, unused), by_plain_adam(setup, set_to_none=keeps)
    assert all(torch.equal(*pair) for step in zip(ours, plain, strict=True) for pair in zip(*step, strict=True))
    assert moved(ours, "dog") > 0
    assert torch.equal(ours[0][DOG], ours[1][DOG])
    if keeps:
        assert moved(ours, "cat") == 0
    else:
        assert moved(ours, "cat") > 0.1 * moved(ours, "dog")


def test_only_prompts_of_categories_can_be_unused(setup: Setup) -> None:
    for mode in (Mode.SINGLE, Mode.CPM):
        with pytest.raises(TuningError, match="--unused-categories drift goes with --mode class"):
            replace(setup.settings, mode=mode, unused_categories=UnusedCategories.DRIFT)


def test_a_run_from_before_there_was_a_choice(setup: Setup) -> None:
    said = setup.settings.to_json()
    assert said.pop("unused_categories") == "keep"
    assert TuningSettings.from_json(said) == setup.settings
