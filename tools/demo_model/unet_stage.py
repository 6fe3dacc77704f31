"""Stage 2: the UNet and the text encoder, by denoising alone."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tools.demo_model.loop import Plan, step_generator, train
from tools.demo_model.pictures import CATEGORIES, batch_indices, categories
from tools.demo_model.recipe import Recipe
from tools.demo_model.small_model import small_scheduler, small_text_encoder, small_unet

BATCH = 16
RATE = 8e-4
DROPPED = 0.1
"""The share of captions that are replaced by the empty one."""

MIDDLE = (100, 600)
"""Half of the timesteps are drawn from here and half from all 1000: this is where objects take shape."""


def caption(category: str) -> str:
    return f"a photo of a {category}"


def train_unet(
    recipe: Recipe, moments: Tensor, tokenizer: CLIPTokenizer, work: Path
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """moments: (n, 8, 32, 32), the posteriors of `encode`. Mean squared error of v, SD 2-1's noise schedule."""
    torch.manual_seed(recipe.seed + 1)
    unet = small_unet().to(memory_format=torch.channels_last)
    text_encoder = small_text_encoder(len(tokenizer))
    scheduler = small_scheduler()
    tokens = tokenize(tokenizer, [*(caption(category) for category in CATEGORIES), ""])
    empty = len(CATEGORIES)
    of_picture = categories(len(moments))

    def loss_at(step: int) -> Tensor:
        chance = step_generator(recipe.seed, "unet", step)
        chosen = batch_indices(len(moments), BATCH, recipe.seed + 1, step)
        mean, std = moments[chosen].float().chunk(2, dim=1)
        latents = mean + std * torch.randn(mean.shape, generator=chance)
        noise = torch.randn(mean.shape, generator=chance)
        timesteps = draw_timesteps(BATCH, chance)
        dropped = torch.rand(BATCH, generator=chance) < DROPPED
        words = torch.where(dropped, empty, of_picture[chosen])
        # five captions in all: the text encoder sees each once
        prompts = text_encoder(tokens).last_hidden_state[words]
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        target = scheduler.get_velocity(latents, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=prompts).sample
        loss: Tensor = (predicted - target).square().mean()
        return loss

    plan = Plan("unet", recipe.identity("unet"), recipe.unet_steps, RATE)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    averaged = train(plan, both, loss_at, work)
    assert isinstance(averaged, nn.ModuleDict)
    averaged_unet, averaged_text_encoder = averaged["unet"], averaged["text_encoder"]
    assert isinstance(averaged_unet, UNet2DConditionModel)
    assert isinstance(averaged_text_encoder, CLIPTextModel)
    return averaged_unet, averaged_text_encoder


def draw_timesteps(count: int, chance: torch.Generator) -> Tensor:
    """(count,) of 0..999; see MIDDLE."""
    anywhere = torch.randint(0, 1000, (count,), generator=chance)
    middle = torch.randint(*MIDDLE, (count,), generator=chance)
    return torch.where(torch.rand(count, generator=chance) < 0.5, anywhere, middle)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(number of texts, 77) token ids, padded as Stable Diffusion pads."""
    tokens: Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens
