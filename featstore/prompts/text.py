"""Prompts where CLIP's token and position embeddings come out: [SOS, learned vectors, EOS, padding], and from there
through CLIP's causal transformer and final layer norm to what cross attention sees (docs/method.md, Prompts)."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featstore.backbones.base import TextEncoder, Tokenizer
from featstore.backbones.noise import generator
from featstore.errors import ModelError, PromptError
from featstore.prompts.base import PromptMode, Start
from matcher.pairs import MatchingPair

PADDING = 0
"""The token that fills a learned prompt up; SD4Match's choice, not the tokenizer's."""


@torch.no_grad()
def frame(text_encoder: TextEncoder, start: int, end: int, length: int) -> Tensor:
    """Token embeddings (positions, D) of [start, `length` vectors to be put in, end, padding], each with the position
    embedding of the place where it stands. The vectors' places hold zeros.

    start, end: ids of the tokenizer's SOS and EOS. Raises `ModelError` where `length` vectors do not fit between them.
    """
    positions: int = text_encoder.config.max_position_embeddings
    if not 1 <= length <= positions - 2:
        raise ModelError(
            f"A prompt of {length} vectors does not fit: the text encoder has {positions} positions, two of them for "
            f"start and end, so 1 to {positions - 2} vectors."
        )
    ids = torch.full((1, positions), PADDING, device=text_encoder.device)
    ids[0, 0], ids[0, length + 1] = start, end
    rows: Tensor = text_encoder.embeddings(input_ids=ids)[0]
    rows[1 : length + 1] = 0
    return rows


@torch.no_grad()
def length_of(text_encoder: TextEncoder, start: int, end: int, rows: Tensor) -> int | None:
    """How many vectors token embeddings (positions, D) have between their start and end; None where start, end and
    padding are not this text encoder's, give or take 1 % (half precision rounds by less).

    start, end: as for `frame`.
    """

    def is_token(token: int) -> Tensor:
        ids = torch.full((1, len(rows)), token, device=device)
        expected: Tensor = text_encoder.embeddings(input_ids=ids)[0].float()
        return (rows.to(expected) - expected).norm(dim=1) <= 0.01 * expected.norm(dim=1)

    device = next(text_encoder.parameters()).device
    starts, ends, paddings = is_token(start), is_token(end), is_token(PADDING)
    found = [place for place in range(2, len(rows)) if ends[place] and paddings[place + 1 :].all()]
    return found[0] - 1 if starts[0] and found else None


def fill(framed: Tensor, vectors: Tensor) -> Tensor:
    """Token embeddings (b, positions, D): `frame`'s rows with vectors (b, N, D) in their places, as they are."""
    count, length = vectors.shape[:2]
    outer = framed.to(vectors).expand(count, -1, -1)
    return torch.cat([outer[:, :1], vectors, outer[:, length + 1 :]], dim=1)


def encode_token_embeddings(text_encoder: TextEncoder, rows: Tensor) -> Tensor:
    """Prompt embeddings (b, positions, D), after the final layer norm, of token embeddings of the same shape. Gradients
    flow. Under autocast in its dtype, else in the text encoder's."""
    # transformers 5 takes no embeddings in place of token ids, and its encoder called alone is silently not causal
    weights = next(text_encoder.parameters())
    handle = text_encoder.embeddings.register_forward_hook(lambda *_: rows.to(weights))
    try:
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=weights.device)
        embeddings: Tensor = text_encoder(input_ids=ids).last_hidden_state
        return embeddings
    finally:
        handle.remove()


def check_shape(found: Sequence[int], text_encoder: TextEncoder, what: str, model: str = "the model") -> None:
    """Raise `PromptError` where learned prompts are not what a text encoder takes.

    Args:
        found: (positions, D) of token embeddings, or (1, N, D) of a conditional module's own vectors.
        text_encoder: CLIP's.
        what: What has this shape, as the start of the sentence.
        model: Whose text encoder it is, for the sentence.
    """
    positions, width = text_encoder.config.max_position_embeddings, text_encoder.config.hidden_size
    taken = (positions, width) if len(found) == 2 else (*found[:-1], width)
    if tuple(found) != taken:
        raise PromptError(
            f"{what} of shape {tuple(found)}, {found[-1]} wide, and the text encoder of {model} takes {taken}: "
            "they are for another model; SD 1-5 is 768 wide, SD 2-1 1024."
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
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
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
def encode_texts(tokenizer: Tokenizer, text_encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Prompt embeddings (n, positions, D) of n texts: padded or cut to the encoder's positions (77 for SD), after its
    final layer norm, as Stable Diffusion's own pipeline makes them."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    embeddings: Tensor = text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
    return embeddings


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
    encoder = start.text_encoder
    ids = torch.from_numpy(generator(key).integers(start.vocabulary, size=start.length + 1)).to(encoder.device)
    rows: Tensor = encoder.embeddings(input_ids=ids[None])[0]
    return rows[1:].to(wide(rows.dtype))  # position 0 is the start's
