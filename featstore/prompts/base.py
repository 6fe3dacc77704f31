"""What prompts are: of text, learned ones, and how they are described."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from featstore.backbones.base import NetworkName

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


class Mode(Enum):
    """SINGLE: one prompt for everything. CLASS: one a category. CPM: one a pair, made from both images."""

    SINGLE = "single"
    CLASS = "class"
    CPM = "cpm"


@dataclass(frozen=True, slots=True, eq=False)
class LearnedPrompts:
    """layers, timesteps: one timestep a layer, at which its prompts were learned. length: N, learned vectors a prompt.

    tensors: for each layer, by name: `SINGLE`: "" to token embeddings (77, D), all rows of what goes into CLIP's
    transformer; `CLASS`: each category to the same; `CPM`: parameter names of `ConditionalModule`. model_id,
    model_fingerprint: of the diffusion model that they are for. dino: whose patch tokens a cpm is made from.
    training: how they were learned.
    """

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int, ...]
    length: int
    tensors: Mapping[int, Mapping[str, Tensor]]
    model_id: str
    model_fingerprint: str
    dino: NetworkName | None
    training: Mapping[str, Any]

    @property
    def categories(self) -> tuple[str, ...]:
        """Those with a prompt of their own, sorted; none but for `CLASS`."""
        return tuple(sorted(self.tensors[self.layers[0]])) if self.mode is Mode.CLASS else ()

    def content(self, layer: int) -> str:
        """16 hex digits of all that one layer's prompts hold."""
        digest = hashlib.blake2b(self.mode.value.encode(), digest_size=8)
        for name, tensor in sorted(self.tensors[layer].items()):
            values = tensor.detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()
