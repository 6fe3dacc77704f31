"""Learned prompts in use: single and class ones as `Prompts`; what they can and cannot be used for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featstore.errors import ModelError, PromptError
from featstore.prompts.base import LearnedPrompts, Prompts
from featstore.prompts.text import TextPrompt, encode_token_embeddings

if TYPE_CHECKING:
    from featstore.prompts.text import TextEncoder, Tokenizer


@dataclass(frozen=True, slots=True)
class SavedPrompts:
    """`Prompts` of a run of mode single or class. fallback: for categories that it has no prompt for: a text, or
    another run's single prompt; None where there is no such way out."""

    learned: LearnedPrompts
    fallback: "TextPrompt | SavedPrompts | None" = None

    @property
    def differ_by_layer(self) -> bool:
        """See `Prompts.differ_by_layer`."""
        return len(self.learned.layers) > 1

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        described = self.learned.describe()
        return described if self.fallback is None else {**described, "fallback": self.fallback.describe()}

    @torch.no_grad()
    def embeddings(
        self, layer: int, categories: Collection[str], tokenizer: "Tokenizer", text_encoder: "TextEncoder"
    ) -> dict[str, Tensor]:
        """See `Prompts.embeddings`."""
        own = {category: name for category in categories if (name := self._name(category)) is not None}
        found: dict[str, Tensor] = {}
        if own:
            names = sorted(set(own.values()))
            _check_shape(self.learned, layer, text_encoder)
            rows = torch.stack([self.learned.tensors[layer][name] for name in names]).to(text_encoder.device)
            encoded = dict(zip(names, encode_token_embeddings(text_encoder, rows), strict=True))
            found = {category: encoded[name] for category, name in own.items()}
        others = [category for category in categories if category not in own]
        if others:
            if self.fallback is None:
                raise _no_prompt(self.learned, others)
            found |= self.fallback.embeddings(layer, others, tokenizer, text_encoder)
        return found

    def _name(self, category: str) -> str | None:
        """Under which name a category's prompt is kept."""
        return self.learned.mode.rules.name_of(self.learned.tensors[self.learned.layers[0]], category)

    def check_categories(self, categories: Collection[str]) -> None:
        """Raise `PromptError` for categories that have no prompt and nothing to fall back on."""
        missing = sorted(category for category in categories if self._name(category) is None)
        if missing and self.fallback is None:
            raise _no_prompt(self.learned, missing)


def check_usable(learned: LearnedPrompts, fingerprint: str, model_id: str, layers: Sequence[int]) -> None:
    """Raise `PromptError` where prompts are for another model than the one at hand, or have none for a layer."""
    if learned.model_fingerprint != fingerprint:
        raise PromptError(
            f"These prompts were made for the model {learned.model_id} (fingerprint {learned.model_fingerprint[:8]}), "
            f"not for {model_id} (fingerprint {fingerprint[:8]}): prompts do not carry over from model to model."
        )
    missing = [layer for layer in layers if layer not in learned.layers]
    if missing:
        raise PromptError(
            f"These prompts are for layer(s) {', '.join(map(str, learned.layers))}, not for layer {missing[0]}: name "
            "those with --layers, or other prompts."
        )


def _check_shape(learned: LearnedPrompts, layer: int, text_encoder: "TextEncoder") -> None:
    """Raise `PromptError` where a layer's prompts are not what the text encoder takes."""
    ours = text_encoder.config.max_position_embeddings, text_encoder.config.hidden_size
    theirs = tuple(next(iter(learned.tensors[layer].values())).shape)
    if theirs != ours:
        raise PromptError(
            f"These prompts are of shape {theirs} (positions, width), and the text encoder of the model takes {ours}: "
            "they are for another model; SD 1-5 is 768 wide, SD 2-1 1024."
        )


def _no_prompt(learned: LearnedPrompts, missing: Sequence[str]) -> PromptError:
    return PromptError(
        f"No prompt was learned for {', '.join(map(repr, missing))} (there are {', '.join(learned.categories)}): "
        "--fallback text takes the text prompt there, --fallback single a run of mode single."
    )


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
        if prompts.mode.rules.of_pairs:  # no map of theirs is kept
            continue
        if fallback is None or isinstance(fallback, TextPrompt | SavedPrompts):
            found = SavedPrompts(prompts, fallback)
            if found.describe() == description:
                return found
    return None
