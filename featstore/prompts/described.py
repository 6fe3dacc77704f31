"""From an extractor's description back to the prompts that it was made with."""

from collections.abc import Mapping, Sequence
from typing import Any

from featstore.errors import ModelError
from featstore.prompts.learned import LearnedPrompts, Mode
from featstore.prompts.prompts import Prompts
from featstore.prompts.saved import SavedPrompts
from featstore.prompts.text import TextPrompt


def prompts_of(description: Mapping[str, Any], learned: Sequence[LearnedPrompts]) -> Prompts | None:
    """The prompts whose `describe()` gives `description`: a text, which is all there, or one of those `learned`; None
    where it is none of them."""
    if description.get("kind") == "text":
        try:
            return TextPrompt(str(description.get("template")))
        except ModelError:
            return None
    fallback = None
    if isinstance(description.get("fallback"), Mapping):
        fallback = prompts_of(description["fallback"], learned)
    for prompts in learned:
        if prompts.mode is Mode.CPM:  # its maps belong to pairs and are never kept
            continue
        if fallback is None or isinstance(fallback, TextPrompt | SavedPrompts):
            found = SavedPrompts(prompts, fallback)
            if found.describe() == description:
                return found
    return None
