"""SDXL's networks, as far as they differ from Stable Diffusion's: two text encoders, and a UNet that is told a pooled
embedding and the image's size as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection

from featstore.backbones.base import Compute, Condition, ModelLocation
from featstore.backbones.cleandift import CleanUNet
from featstore.backbones.diffusion_networks import DiffusionNetworks, load_text_encoder, load_tokenizer
from featstore.backbones.text_encoders import ClipText, ids_of, run_on_rows
from featstore.backbones.weights import load_network


@dataclass(frozen=True, slots=True, eq=False)
class TwoTexts:
    """SDXL's text encoders (a `featstore.backbones.base.TextEncoders`): CLIP's ViT-L and OpenCLIP's bigG. What is told
    are the outputs of each one's last transformer block but one, beside one another (768 + 1280 wide), and the second
    one's pooled embedding: its output where the prompt ends, projected.

    Learned prompts are vectors for both: one that was learned for the first alone would leave 1280 of 2048 numbers of
    each token, and the pooled embedding, to a text. The pooled embedding is that of the learned prompt, at its end,
    as textual inversion has it for SDXL (diffusers' examples): a prompt of mode single has no category whose text could
    take its place.
    """

    first: ClipText
    second: ClipText
    projection: nn.Module

    @property
    def positions(self) -> int:
        """See `TextEncoders.positions`."""
        return self.first.positions

    @property
    def width(self) -> int:
        """See `TextEncoders.width`."""
        return self.first.width + self.second.width

    @property
    def vocabulary(self) -> int:
        """See `TextEncoders.vocabulary`."""
        return min(self.first.vocabulary, self.second.vocabulary)

    @property
    def device(self) -> torch.device:
        """See `TextEncoders.device`."""
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        """See `TextEncoders.dtype`."""
        return self.first.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """See `TextEncoders.embed`."""
        return torch.cat([self.first.embed(ids), self.second.embed(ids)], dim=-1)

    def frame(self, length: int) -> Tensor:
        """See `TextEncoders.frame`."""
        return torch.cat([self.first.frame(length), self.second.frame(length)], dim=-1)

    def length_of(self, rows: Tensor) -> int | None:
        """See `TextEncoders.length_of`."""
        found = {own.length_of(part) for own, part in self._parts(rows)}
        return found.pop() if len(found) == 1 else None

    def encode(self, rows: Tensor, length: int) -> Condition:
        """See `TextEncoders.encode`."""
        found = []
        for own, part in self._parts(rows):
            ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=own.device)
            ids[:, length + 1] = own.tokenizer.eos_token_id  # where the pooled embedding is taken
            found.append(run_on_rows(own.encoder, part, ids, output_hidden_states=True))
        return self._told(*found)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Condition:
        """See `TextEncoders.encode_texts`."""
        both = (self.first, self.second)
        ids = [ids_of(own.tokenizer, texts).to(own.device) for own in both]
        return self._told(
            *(own.encoder(input_ids=of_own, output_hidden_states=True) for own, of_own in zip(both, ids, strict=True))
        )

    def _parts(self, rows: Tensor) -> list[tuple[ClipText, Tensor]]:
        """Token embeddings (..., D), each encoder's own."""
        first, second = rows.split([self.first.width, self.second.width], dim=-1)
        return [(self.first, first), (self.second, second)]

    def _told(self, first: Any, second: Any) -> Condition:
        embeddings = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Condition(embeddings, self.projection(second.pooler_output))


class XLNetworks(DiffusionNetworks):
    """An SDXL's networks (a `featstore.backbones.base.Networks`)."""

    def __init__(
        self, location: ModelLocation, compute: Compute, last_layer: int, clean: CleanUNet | None, latent_factor: int
    ) -> None:
        super().__init__(location, compute, last_layer, clean)
        self._latent_factor = latent_factor

    @cached_property
    def text(self) -> TwoTexts:
        """What prompts go through."""
        device, dtype = self._compute.device, self._compute.dtype
        first = ClipText(load_tokenizer(self._location), load_text_encoder(self._location, device, dtype))
        second = load_network(CLIPTextModelWithProjection, self._location.folder / "text_encoder_2", dtype).to(device)
        tokenizer = load_tokenizer(self._location, "tokenizer_2")
        return TwoTexts(first, ClipText(tokenizer, second.text_model), second.text_projection)

    def added(self, inputs: Tensor, condition: Condition) -> dict[str, Tensor]:
        """The pooled embedding, and the size of the image: that of the square which it was resized to, nothing cropped,
        and the same to be made."""
        assert condition.pooled is not None, "SDXL's UNet takes a pooled embedding"
        side = inputs.shape[-1] * self._latent_factor
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=inputs.device)
        return {"text_embeds": condition.pooled, "time_ids": sizes.expand(len(inputs), -1)}
