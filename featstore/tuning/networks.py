"""The frozen networks that a training's gradients flow through: all that it knows of them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featstore.backbones.base import Compute, ModelLocation, saying_batch_size
from featstore.backbones.diffusion_networks import CutUNet, load_text_encoder, load_tokenizer, load_unet
from featstore.prompts.text import encode_token_embeddings, fill, frame
from featstore.tuning.settings import TuningSettings

Autocast = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Networks:
    """A text encoder and a UNet.

    Args:
        text_encoder: CLIP's, as `featstore.prompts` takes it.
        unets: One per layer, each ending at its layer; called as diffusers' are.
        framed: Token embeddings (77, D) around the learned vectors.
        vocabulary: How many token ids there are.
        device: Where they lie.
        dtype: Of what goes into the UNet.
        autocast: The context in which they run.
    """

    text_encoder: Any
    unets: tuple[Any, ...]
    framed: Tensor
    vocabulary: int
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


def open_networks(
    location: ModelLocation, settings: TuningSettings, compute: Compute, gradient_checkpointing: bool, compiled: bool
) -> Networks:
    """Load the networks of a model, frozen.

    Args:
        location: Where the model lies.
        settings: Whose layers are trained, with prompts of which length.
        compute: Where networks run; in half precision under autocast.
        gradient_checkpointing: Whether activations are computed again for the gradient instead of being kept.
        compiled: Whether UNets go through `torch.compile`.

    Raises:
        ModelError: They cannot be loaded, or prompts do not fit the text encoder.
    """
    tokenizer = load_tokenizer(location)
    text_encoder = load_text_encoder(location, compute.device, compute.dtype)
    framed = frame(text_encoder, tokenizer.bos_token_id, tokenizer.eos_token_id, settings.length)
    unet = load_unet(location, compute.device, compute.dtype)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    whole = CutUNet(unet, max(settings.layers))
    unets = [whole.until(layer) for layer in settings.layers]
    return Networks(
        text_encoder,
        tuple(torch.compile(one) if compiled else one for one in unets),
        framed,
        len(tokenizer),
        compute.device,
        compute.dtype,
        partial(torch.autocast, compute.device.type, compute.dtype)
        if compute.dtype in (torch.float16, torch.bfloat16)
        else contextlib.nullcontext,
    )
