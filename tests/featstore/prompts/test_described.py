"""A description leads back to the prompts that gave it, and to no others."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from featstore.backbones.base import NetworkName
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.saved import SavedPrompts, prompts_of
from featstore.prompts.text import TextPrompt


def learned(mode: Mode, seed: int) -> LearnedPrompts:
    drawn = torch.Generator().manual_seed(seed)
    name = {Mode.SINGLE: "", Mode.CLASS: "cat", Mode.CPM: "weight"}[mode]
    tensors = {layer: {name: torch.randn(77, 8, generator=drawn)} for layer in (2, 3)}
    return LearnedPrompts(mode, (2, 3), (261, 350), 75, NetworkName("owner/model", "ab" * 16), None, {}, tensors)


SINGLE, CLASS, OTHER, CPM = (
    learned(mode, seed) for seed, mode in enumerate((Mode.SINGLE, Mode.CLASS, Mode.CLASS, Mode.CPM))
)
RUNS = (CPM, OTHER, SINGLE, CLASS)


@pytest.mark.parametrize(
    "prompts",
    [
        TextPrompt("a photo of a {category}"),
        SavedPrompts(SINGLE),
        SavedPrompts(CLASS),
        SavedPrompts(CLASS, TextPrompt()),
        SavedPrompts(CLASS, SavedPrompts(SINGLE)),
        SavedPrompts(OTHER, TextPrompt("something else")),
    ],
)
def test_there_and_back(prompts: TextPrompt | SavedPrompts) -> None:
    found = prompts_of(prompts.describe(), RUNS)
    assert found is not None
    assert found == prompts
    assert found.describe() == prompts.describe()


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"kind": "text", "template": "a {thing}"},
        {"kind": "class", "content": {"2": "0" * 16, "3": "0" * 16}},
        {**SavedPrompts(CLASS).describe(), "kind": "single"},
        {**SavedPrompts(CLASS).describe(), "fallback": {"kind": "single", "content": {"2": "1" * 16}}},
        SavedPrompts(replace(CLASS, layers=(2,))).describe(),
    ],
)
def test_prompts_that_are_not_at_hand(description: dict[str, Any]) -> None:
    assert prompts_of(description, RUNS) is None
    assert prompts_of(SavedPrompts(CLASS).describe(), ()) is None
