"""Text prompts: a template a category, through tokenizer and text encoder to prompt embeddings."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featstore.errors import ModelError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

DEFAULT_TEMPLATE = "a photo of a {category}"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A template; `{category}` in it is replaced by the category's plain word."""

    template: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        # str.format would read any brace as its own
        if re.search(r"\{(?!category\})", self.template):
            raise ModelError(f"The prompt {self.template!r} has a brace that is not {{category}}.")

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        return {"kind": "text", "template": self.template}

    @property
    def differ_by_layer(self) -> bool:
        """See `Prompts.differ_by_layer`."""
        return False

    def embeddings(
        self,
        layer: int,  # noqa: ARG002  (the same for all)
        categories: Collection[str],
        tokenizer: "CLIPTokenizer",
        text_encoder: "CLIPTextModel",
    ) -> dict[str, Tensor]:
        """See `Prompts.embeddings`."""
        texts = sorted({self.text(category) for category in categories})
        encoded = dict(zip(texts, encode_texts(tokenizer, text_encoder, texts), strict=True))
        return {category: encoded[self.text(category)] for category in sorted(categories)}

    def text(self, category: str) -> str:
        """The prompt of one category."""
        return self.template.replace("{category}", plain_category(category))


def plain_category(category: str) -> str:
    """The category's word: PF-Willow's `car(G)` reads `car`."""
    return re.sub(r"\s*\([^)]*\)$", "", category)


@torch.no_grad()
def encode_texts(tokenizer: "CLIPTokenizer", text_encoder: "CLIPTextModel", texts: Sequence[str]) -> Tensor:
    """Prompt embeddings (n, positions, D) of n texts: padded or cut to the encoder's positions (77 for SD), after its
    final layer norm, as Stable Diffusion's own pipeline makes them."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    embeddings: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
    return embeddings
