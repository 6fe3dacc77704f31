"""Modes single and class: prompts of vectors, one for everything or one per category, kept by name."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featstore.backbones.noise import generator
from featstore.prompts.base import PromptMode, Start
from featstore.prompts.text import fill, plain_category, wide
from matcher.pairs import MatchingPair

if TYPE_CHECKING:
    from featstore.prompts.text import TextEncoder


class OnePerCategory(PromptMode):
    """Mode class: each category's prompt by its name."""

    of_pairs = False
    epochs = 5

    def check_length(self, length: int) -> None:
        """See `PromptMode`; what fits the text encoder is learned."""

    def start(self, start: Start, key: str) -> "LearnedVectors":
        """See `PromptMode`."""
        return LearnedVectors(self, {name: initial_vectors(start, f"{key}|{name}") for name in start.categories})

    def name_of(self, names: Collection[str], category: str) -> str | None:
        """See `PromptMode`; PF-Willow's `car(G)` takes the prompt of `car`."""
        return next((name for name in (category, plain_category(category)) if name in names), None)

    def categories(self, names: Collection[str]) -> tuple[str, ...]:
        """See `PromptMode`."""
        return tuple(sorted(names))

    def shapes(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], range]:
        """See `PromptMode`: all rows of what goes into CLIP's transformer, (positions, D) each."""
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        positions = min(shape[0] if len(shape) == 2 else 0 for shape in found.values())
        return found, range(1, max(positions - 1, 1))


class OneForAll(OnePerCategory):
    """Mode single: one prompt for everything, whose name is empty."""

    def start(self, start: Start, key: str) -> "LearnedVectors":
        """See `PromptMode`."""
        return LearnedVectors(self, {"": initial_vectors(start, key)})

    def name_of(self, names: Collection[str], category: str) -> str | None:  # noqa: ARG002
        """See `PromptMode`."""
        return ""

    def categories(self, names: Collection[str]) -> tuple[str, ...]:  # noqa: ARG002
        """See `PromptMode`."""
        return ()

    def shapes(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], range]:
        """See `PromptMode`."""
        if tensors.keys() != {""}:
            raise ValueError("it holds other prompts than mode single has")
        return super().shapes(tensors)


class LearnedVectors:
    """A `PromptSet`. Each prompt is a parameter of its own: one that a batch does not use has no gradient, and Adam
    leaves it alone; rows of one tensor would have gradient zero, and would drift."""

    def __init__(self, mode: PromptMode, vectors: Mapping[str, Tensor]) -> None:
        self._mode = mode
        self._vectors = {name: nn.Parameter(own) for name, own in sorted(vectors.items())}

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """See `PromptSet`."""
        names = [str(self._mode.name_of(self._vectors, pair.category)) for pair in pairs]
        used = sorted(set(names))
        return torch.stack([self._vectors[name] for name in used]), tuple(map(used.index, names))

    def parameters(self) -> list[nn.Parameter]:
        """See `PromptSet`."""
        return list(self._vectors.values())

    def network_parameters(self) -> list[nn.Parameter]:
        """See `PromptSet`."""
        return []

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:
        """See `PromptSet`."""
        return {name: fill(framed, own.detach()[None])[0] for name, own in self._vectors.items()}


@torch.no_grad()
def initial_vectors(start: Start, key: str) -> Tensor:
    """The embeddings of random token ids, with the positions where they stand, as SD4Match starts from.

    Args:
        start: What prompts start from.
        key: Decides the ids.

    Returns:
        Vectors (length, D), float32 unless the encoder is wider.
    """
    encoder: TextEncoder = start.text_encoder
    ids = torch.from_numpy(generator(key).integers(start.vocabulary, size=start.length + 1)).to(encoder.device)
    rows: Tensor = encoder.embeddings(input_ids=ids[None])[0]
    return rows[1:].to(wide(rows.dtype))  # position 0 is the start's
