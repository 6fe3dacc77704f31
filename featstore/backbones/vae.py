"""Images to latents: the one place that calls the VAE."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from featstore.backbones.latents import LatentScale
from featstore.backbones.memory import saying_batch_size


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, posterior_noise: Tensor | None) -> Tensor:
    """Latents (b, 4, h, w), float32, shifted and scaled as the VAE's configuration states: ready for noise.

    images: (b, 3, S, S) in [-1, 1]. posterior_noise: (b, 4, h, w) standard normal for `Latents.SAMPLE`, None for the
    posterior's mean. Raises `ModelError` with a batch size to try where memory runs out.
    """
    weights = next(vae.parameters())
    with saying_batch_size(len(images)):
        posterior = vae.encode(images.to(weights)).latent_dist
        latents = posterior.mean.float()
        if posterior_noise is not None:
            latents = latents + posterior.std.float() * posterior_noise.to(latents)
    scale = LatentScale.parse(vae.config, "the VAE's configuration")
    return (latents - scale.shift) * scale.factor
