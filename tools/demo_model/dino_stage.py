"""Stage 3: the tiny DINOv2, self-supervised: a patch of one view must find its own place in another view of the same
picture among the patches of all pictures of the batch."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Dinov2Model

from tools.demo_model.loop import Plan, step_generator, train
from tools.demo_model.pictures import batch_indices
from tools.demo_model.recipe import Recipe
from tools.demo_model.small_model import small_dino

BATCH = 8
RATE = 1e-3
SIDE = 224
GRID = 16
PATCHES = 48
"""Patches of a picture that take part in a step."""

TEMPERATURE = 0.1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def train_dino(recipe: Recipe, pictures: Tensor, work: Path) -> Dinov2Model:
    """pictures: (n, 3, 128, 128) uint8."""
    torch.manual_seed(recipe.seed + 2)
    dino = small_dino()

    def loss_at(step: int) -> Tensor:
        chance = step_generator(recipe.seed, "dino", step)
        images = pictures[batch_indices(len(pictures), BATCH, recipe.seed + 2, step)].float() / 255
        first, second = random_transform(BATCH, chance), random_transform(BATCH, chance)
        views = torch.cat([view(images, first, chance), view(images, second, chance)])
        tokens = dino(views).last_hidden_state[:, 1:]
        maps = tokens.transpose(1, 2).reshape(2 * BATCH, -1, GRID, GRID)
        return correspondence_loss(maps[:BATCH], maps[BATCH:], first, second, chance)

    averaged = train(Plan("dino", recipe.identity("dino"), recipe.dino_steps, RATE), dino, loss_at, work)
    assert isinstance(averaged, Dinov2Model)
    return averaged


def random_transform(count: int, chance: torch.Generator) -> Tensor:
    """(count, 2, 3): maps a view's coordinates in [-1, 1] to the picture's. Turn, zoom, mirror, shift."""
    angle = (torch.rand(count, generator=chance) - 0.5) * math.radians(50)
    zoom = 0.55 + 0.45 * torch.rand(count, generator=chance)
    mirror = torch.where(torch.rand(count, generator=chance) < 0.5, -1.0, 1.0)
    shift = (torch.rand(count, 2, generator=chance) * 2 - 1) * (1.05 - zoom)[:, None]
    cosine, sine = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.stack([mirror * cosine, -sine, shift[:, 0]], 1), torch.stack([mirror * sine, cosine, shift[:, 1]], 1)]
    return torch.stack(rows, 1)


def view(images: Tensor, transform: Tensor, chance: torch.Generator) -> Tensor:
    """(b, 3, h, w) in [0, 1] to views (b, 3, 224, 224), brightness, contrast and tint changed, normalised."""
    grid = functional.affine_grid(transform, [len(images), 3, SIDE, SIDE], align_corners=False)
    seen = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    contrast = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=chance)
    tint = (torch.rand(len(images), 3, 1, 1, generator=chance) - 0.5) * 0.3
    changed = ((seen - 0.5) * contrast + 0.5 + tint).clamp(0, 1)
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), torch.tensor(STD).reshape(3, 1, 1)
    return (changed - mean) / std


def correspondence_loss(
    first_map: Tensor, second_map: Tensor, first: Tensor, second: Tensor, chance: torch.Generator
) -> Tensor:
    """InfoNCE over patches. *_map: (b, c, 16, 16); first, second: the views' transforms (b, 2, 3)."""
    count = len(first_map)
    centres = (torch.rand(count, PATCHES, 2, generator=chance) * 2 - 1) * (1 - 1 / GRID)
    in_picture = centres @ first[:, :, :2].transpose(1, 2) + first[:, None, :, 2]
    in_second = (in_picture - second[:, None, :, 2]) @ torch.linalg.inv(second[:, :, :2]).transpose(1, 2)
    seen = (in_second.abs().amax(-1) < 1).reshape(-1)
    queries = _sampled(first_map, centres)[seen]
    keys = _sampled(second_map, in_second)[seen]
    if len(queries) < 2:
        return (first_map.sum() + second_map.sum()) * 0.0
    similar = queries @ keys.T / TEMPERATURE
    truth = torch.arange(len(queries))
    return 0.5 * (functional.cross_entropy(similar, truth) + functional.cross_entropy(similar.T, truth))


def _sampled(maps: Tensor, at: Tensor) -> Tensor:
    """(b, c, h, w) at (b, n, 2) in [-1, 1]: unit vectors (b n, c)."""
    values = functional.grid_sample(maps, at[:, :, None], align_corners=False)[..., 0]
    return functional.normalize(values.transpose(1, 2).reshape(-1, maps.shape[1]), dim=1)
