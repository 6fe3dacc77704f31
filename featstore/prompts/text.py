"""Texts, and the modes of prompts that are learned vectors, one for everything or one per category (docs/method.md,
Prompts)."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featstore.backbones.base import Condition, TextEncoders
from featstore.backbones.noise import generator
from featstore.backbones.text_encoders import fill
from featstore.errors import ModelError, PromptError
from featstore.prompts.base import PromptMode, Start
from matcher.pairs import MatchingPair


def check_shape(found: Sequence[int], text: TextEncoders, what: str, model: str = "the model") -> None:
    """Raise `PromptError` where learned prompts are not what text encoders take.

    Args:
        found: (positions, D) of token embeddings, or (1, N, D) of a conditional module's own vectors.
        text: The model's text encoders.
        what: What has this shape, as the start of the sentence.
        model: Whose text encoder it is, for the sentence.
    """
    taken = (text.positions, text.width) if len(found) == 2 else (*found[:-1], text.width)
    if tuple(found) != taken:
        raise PromptError(
            f"{what} of shape {tuple(found)}, {found[-1]} wide, and the text encoder of {model} takes {taken}: "
            "they are for another model; SD 1-5 is 768 wide, SD 2-1 1024, SDXL 2048."
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision in which prompts are learned and losses computed: float64 where the networks are, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


DEFAULT_TEMPLATE = "a photo of a {category}"


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A template; `{category}` in it is replaced by the category's plain word."""

    template: str = DEFAULT_TEMPLATE
    differ_by_layer: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # str.format would read any brace as its own
        if re.search(r"\{(?!category\})", self.template):
            raise ModelError(f"The prompt {self.template!r} has a brace that is not {{category}}.")

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        return {"kind": "text", "template": self.template}

    def embeddings(
        self,
        layer: int,  # noqa: ARG002  (the same for all)
        categories: Collection[str],
        text: TextEncoders,
    ) -> dict[str, Condition]:
        """See `Prompts.embeddings`."""
        texts = sorted({self.text(category) for category in categories})
        encoded = dict(zip(texts, text.encode_texts(texts).split(), strict=True))
        return {category: encoded[self.text(category)] for category in sorted(categories)}

    def text(self, category: str) -> str:
        """The prompt of one category."""
        return self.template.replace("{category}", plain_category(category))


def plain_category(category: str) -> str:
    """The category's word: PF-Willow's `car(G)` reads `car`."""
    return re.sub(r"\s*\([^)]*\)$", "", category)


class OnePerCategory(PromptMode):
    """Mode class: each category's prompt by its name."""

    epochs = 5

    def start(self, start: Start, key: str) -> "LearnedVectors":
        """See `PromptMode`."""
        categories = {pair.category for pair in start.pairs}
        return LearnedVectors(self, {name: initial_vectors(start, f"{key}|{name}") for name in categories})

    def name_of(self, names: Collection[str], category: str) -> str | None:
        """See `PromptMode`; PF-Willow's `car(G)` takes the prompt of `car`."""
        return next((name for name in (category, plain_category(category)) if name in names), None)

    def categories(self, names: Collection[str]) -> tuple[str, ...]:
        """See `PromptMode`."""
        return tuple(sorted(filter(None, names)))

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
    ids = torch.from_numpy(generator(key).integers(start.text.vocabulary, size=start.length + 1))
    rows = start.text.embed(ids.to(start.text.device)[None])[0]
    return rows[1:].to(wide(rows.dtype))  # position 0 is the start's
