"""Stage 1: the autoencoder, and the latents of all pictures, encoded once."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from tools.demo_model.loop import Plan, step_generator, train
from tools.demo_model.pictures import as_input, batch_indices
from tools.demo_model.recipe import Recipe
from tools.demo_model.small_model import small_vae

CROPS, CROP = 12, 64
"""Most steps see 12 crops of 64x64 pixels, a third of the work of the whole pictures, and as good a lesson."""

BATCH = 8
WHOLE = 0.85
"""From this share of the steps on, batches are 8 whole pictures: what will be encoded."""

RATE = 1.5e-3
KL_WEIGHT = 5e-4


def train_vae(recipe: Recipe, pictures: Tensor, work: Path) -> AutoencoderKL:
    """pictures: (n, 3, 128, 128) uint8. The loss is L1, plus the squared error (it minds a wrong colour
    more), plus KL_WEIGHT times the KL divergence of a latent number."""
    torch.manual_seed(recipe.seed)
    vae = small_vae().to(memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        chance = step_generator(recipe.seed, "vae", step)
        if step < WHOLE * recipe.vae_steps:
            images = as_input(crops(pictures[batch_indices(len(pictures), CROPS, recipe.seed, step)], chance))
        else:
            images = as_input(pictures[batch_indices(len(pictures), BATCH, recipe.seed, step)])
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=chance)
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        difference = vae.decode(latents).sample - images
        loss: Tensor = difference.abs().mean() + difference.square().mean() + KL_WEIGHT * divergence
        return loss

    plan = Plan("vae", recipe.identity("vae"), recipe.vae_steps, RATE)
    averaged: nn.Module = train(plan, vae, loss_at, work)
    assert isinstance(averaged, AutoencoderKL)
    return averaged


def crops(pictures: Tensor, chance: torch.Generator) -> Tensor:
    """One CROP x CROP window of each picture, (n, 3, CROP, CROP), anywhere in it."""
    room = pictures.shape[-1] - CROP + 1
    corners = torch.randint(0, room, (len(pictures), 2), generator=chance).tolist()
    windows = zip(pictures, corners, strict=True)
    return torch.stack([picture[:, y : y + CROP, x : x + CROP] for picture, (x, y) in windows])


@torch.no_grad()
def encode(vae: AutoencoderKL, recipe: Recipe, pictures: Tensor, work: Path) -> tuple[Tensor, float]:
    """Every picture's posterior, (n, 8, 32, 32): mean and standard deviation, scaled so that a sample of all latents
    has unit variance; and the scale. Kept in `work`."""
    path = work / f"latents-{recipe.seed}-{recipe.pictures}-{recipe.vae_steps}.pt"
    if not path.exists():
        posteriors = [vae.encode(as_input(chunk)).latent_dist for chunk in torch.split(pictures, 50)]
        moments = torch.cat([torch.cat([each.mean, each.std], dim=1) for each in posteriors])
        mean, std = moments.chunk(2, dim=1)
        scale = float((mean.var() + std.square().mean()).rsqrt())
        partial = path.with_suffix(".partial")
        torch.save({"moments": (moments * scale).half(), "scale": scale}, partial)
        partial.replace(path)
    kept = torch.load(path, weights_only=True)
    return kept["moments"], kept["scale"]
