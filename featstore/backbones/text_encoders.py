"""CLIP's text encoder as prompts need it. A prompt lies where token and position embeddings come out: [SOS, learned
vectors, EOS, padding], and goes from there through CLIP's causal transformer and final layer norm to what cross
attention sees (docs/method.md, Prompts)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featstore.backbones.base import Condition, TextEncoder, Tokenizer
from featstore.errors import ModelError

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
    ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=next(text_encoder.parameters()).device)
    embeddings: Tensor = run_on_rows(text_encoder, rows, ids).last_hidden_state
    return embeddings


def run_on_rows(text_encoder: TextEncoder, rows: Tensor, ids: Tensor, **asked: Any) -> Any:
    """All that a text encoder makes of token embeddings (b, positions, D).

    text_encoder: CLIP's. ids: (b, positions); where the prompt ends is told by them alone. asked: of the encoder.
    """
    # transformers 5 takes no embeddings in place of token ids, and its encoder called alone is silently not causal
    weights = next(text_encoder.parameters())
    handle = text_encoder.embeddings.register_forward_hook(lambda *_: rows.to(weights))
    try:
        return text_encoder(input_ids=ids, **asked)
    finally:
        handle.remove()


@torch.no_grad()
def encode_texts(tokenizer: Tokenizer, text_encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Prompt embeddings (n, positions, D) of n texts: padded or cut to the encoder's positions (77 for SD), after its
    final layer norm, as Stable Diffusion's own pipeline makes them."""
    embeddings: Tensor = text_encoder(ids_of(tokenizer, texts).to(text_encoder.device)).last_hidden_state
    return embeddings


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids (n, positions) of n texts, padded or cut."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens.input_ids
    return ids


@dataclass(frozen=True, slots=True, eq=False)
class ClipText:
    """Stable Diffusion's text encoder and its tokenizer (a `featstore.backbones.base.TextEncoders`)."""

    tokenizer: Tokenizer
    encoder: TextEncoder

    @property
    def positions(self) -> int:
        """See `TextEncoders.positions`."""
        return int(self.encoder.config.max_position_embeddings)

    @property
    def width(self) -> int:
        """See `TextEncoders.width`."""
        return int(self.encoder.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """See `TextEncoders.vocabulary`."""
        return len(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """See `TextEncoders.device`."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """See `TextEncoders.dtype`."""
        return next(self.encoder.parameters()).dtype

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """See `TextEncoders.embed`."""
        rows: Tensor = self.encoder.embeddings(input_ids=ids)
        return rows

    def frame(self, length: int) -> Tensor:
        """See `TextEncoders.frame`."""
        return frame(self.encoder, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, length)

    def length_of(self, rows: Tensor) -> int | None:
        """See `TextEncoders.length_of`."""
        return length_of(self.encoder, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, rows)

    def encode(self, rows: Tensor, length: int) -> Condition:  # noqa: ARG002  (nothing is read at the prompt's end)
        """See `TextEncoders.encode`."""
        return Condition(encode_token_embeddings(self.encoder, rows))

    def encode_texts(self, texts: Sequence[str]) -> Condition:
        """See `TextEncoders.encode_texts`."""
        return Condition(encode_texts(self.tokenizer, self.encoder, texts))
