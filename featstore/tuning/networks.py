"""The frozen networks that a training's gradients flow through: all that it knows of them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from featstore.backbones.memory import saying_batch_size
from featstore.prompts.text import encode_token_embeddings, fill

Autocast = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Networks:
    """A text encoder and a UNet.

    Args:
        text_encoder: CLIP's.
        unets: One per layer, each ending at its layer.
        framed: Token embeddings (77, D) around the learned vectors.
        device: Where they lie.
        dtype: Of what goes into the UNet.
        autocast: The context in which they run.
    """

    text_encoder: CLIPTextModel
    unets: tuple[UNet2DConditionModel, ...]
    framed: Tensor
    device: torch.device
    dtype: torch.dtype
    autocast: Autocast

    def condition(self, vectors: Tensor) -> Tensor:
        """What the UNet is told by prompts of learned vectors.

        Args:
            vectors: (u, N, D).

        Returns:
            Prompt embeddings (u, 77, D).

        Raises:
            ModelError: Memory runs out.
        """
        with self.autocast(), saying_batch_size(len(vectors)):
            return encode_token_embeddings(self.text_encoder, fill(self.framed, vectors))

    def tap(self, index: int, latents: Tensor, timestep: int, condition: Tensor) -> Tensor:
        """The maps of one layer.

        Args:
            index: Of the layer, among those that are trained.
            latents: (p, 4, h, w), noisy.
            timestep: Of their noise.
            condition: (p, 77, D), each latent's prompt embeddings.

        Returns:
            Maps (p, C, H, W).

        Raises:
            ModelError: Memory runs out; it names the batch size to try.
        """
        with self.autocast(), saying_batch_size(len(latents)):
            found: Tensor = self.unets[index](
                latents.to(self.device, self.dtype),
                timestep,
                encoder_hidden_states=condition.to(self.dtype),
                return_dict=False,
            )[0]
        return found
