"""What every kind of prompt that belongs to images, not to pairs, can do: text templates and learned ones."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class Prompts(Protocol):
    """A prompt for each layer and category."""

    @property
    def differ_by_layer(self) -> bool:
        """Whether each layer has prompts of its own, so that layers cannot share a pass of the UNet."""

    def describe(self) -> dict[str, Any]:
        """What shapes the embeddings (content, not file names), for an extractor's key."""

    def embeddings(
        self,
        layer: int,
        categories: Collection[str],
        tokenizer: "CLIPTokenizer",
        text_encoder: "CLIPTextModel",
    ) -> dict[str, Tensor]:
        """Prompt embeddings (77, D) by category; each distinct prompt is encoded once."""
