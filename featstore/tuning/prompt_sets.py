"""The prompts of one layer while they are being learned: parameters, and which prompt each pair of a batch gets."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from featstore.backbones.noise import generator
from featstore.prompts.base import Mode
from featstore.prompts.cpm import ConditionalModule
from featstore.prompts.text import fill
from featstore.store.store import PatchTokens
from matcher.pairs import MatchingPair

if TYPE_CHECKING:
    from transformers import CLIPTextModel


class PromptSet(Protocol):
    """One layer's prompts."""

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """The distinct prompts of some pairs, (u, N, D), and for each pair which of them is its."""

    def parameters(self) -> "list[nn.Parameter]":
        """What is learned, in a fixed order, at the rate of vectors."""

    def network_parameters(self) -> "list[nn.Parameter]":
        """What is learned at the rate of networks."""

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:
        """As `LearnedPrompts.tensors` has them. framed: see `token_embeddings.frame`."""


class SinglePrompts:
    """One prompt for everything."""

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = nn.Parameter(vectors)

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """See `PromptSet.vectors`."""
        return self._vectors[None], (0,) * len(pairs)

    def parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.parameters`."""
        return [self._vectors]

    def network_parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.network_parameters`."""
        return []

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:
        """See `PromptSet.tensors`."""
        return {"": fill(framed, self._vectors.detach()[None])[0]}


class ClassPrompts:
    """One prompt a category. Each is a parameter of its own: one that a batch does not use has no gradient, and Adam
    leaves it alone; rows of one tensor would have gradient zero, and would drift."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        self._vectors = {category: nn.Parameter(own) for category, own in sorted(vectors.items())}

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """See `PromptSet.vectors`."""
        used = sorted({pair.category for pair in pairs})
        stacked = torch.stack([self._vectors[category] for category in used])
        return stacked, tuple(used.index(pair.category) for pair in pairs)

    def parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.parameters`."""
        return list(self._vectors.values())

    def network_parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.network_parameters`."""
        return []

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:
        """See `PromptSet.tensors`."""
        return {category: fill(framed, own.detach()[None])[0] for category, own in self._vectors.items()}


class ConditionalPrompts:
    """One prompt a pair, made from both images (cpm)."""

    def __init__(self, module: ConditionalModule, patches: PatchTokens) -> None:
        self._module = module
        self._patches = patches

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """See `PromptSet.vectors`."""
        weights = self._module.global_embeds
        source = torch.stack([self._patches(pair.source) for pair in pairs]).to(weights)
        target = torch.stack([self._patches(pair.target) for pair in pairs]).to(weights)
        found: Tensor = self._module(source, target)
        return found, tuple(range(len(pairs)))

    def parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.parameters`."""
        return [own for name, own in self._module.named_parameters() if "linear" not in name]

    def network_parameters(self) -> list[nn.Parameter]:
        """See `PromptSet.network_parameters`."""
        return [own for name, own in self._module.named_parameters() if "linear" in name]

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """See `PromptSet.tensors`; a module has no rows to be framed."""
        return {name: own.detach().clone() for name, own in self._module.named_parameters()}


@torch.no_grad()
def initial_vectors(text_encoder: "CLIPTextModel", vocabulary: int, length: int, key: str) -> Tensor:
    """Vectors (length, D), float32 unless the encoder is wider: the embeddings of random token ids, with the positions
    where they stand, as SD4Match starts from. key: decides the ids."""
    ids = torch.from_numpy(generator(key).integers(vocabulary, size=length + 1)).to(text_encoder.device)
    rows: Tensor = text_encoder.embeddings(input_ids=ids[None])[0]
    return rows[1:].to(wide(rows.dtype))  # position 0 is the start's


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision in which prompts are learned and losses computed: float64 where the networks are, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def initial_module(dino_width: int, patches: int, width: int, key: str) -> ConditionalModule:
    """A conditional module whose start is decided by `key`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(key).integers(2**31)))
        return ConditionalModule(dino_width, patches, width)


def open_prompt_set(
    mode: Mode,
    layer: int,
    categories: Sequence[str],
    length: int,
    seed: int,
    text_encoder: "CLIPTextModel",
    vocabulary: int,
    module: Callable[[str], ConditionalModule],
    patches: PatchTokens,
) -> PromptSet:
    """One layer's prompts as they start. module, patches: for cpm; called for no other mode."""
    key = f"prompts|{seed}|{layer}"
    match mode:
        case Mode.SINGLE:
            return SinglePrompts(initial_vectors(text_encoder, vocabulary, length, key))
        case Mode.CLASS:
            return ClassPrompts(
                {name: initial_vectors(text_encoder, vocabulary, length, f"{key}|{name}") for name in categories}
            )
        case Mode.CPM:
            return ConditionalPrompts(module(key), patches)
