"""The pictures that the demo model learns from: the demo dataset's drawing, from a stream of its own, so that the model
has seen no picture of trn, val or test."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.demo_drawing.picture import SUBJECTS, render

CATEGORIES = tuple(SUBJECTS)


def stream(seed: int) -> str:
    """The name that stands where the dataset has its split."""
    return f"pretrain-{seed}"


def draw_pictures(seed: int, count: int, work: Path) -> Tensor:
    """`count` pictures (count, 3, 128, 128) uint8; picture i shows CATEGORIES[i % 4]. Kept in `work`."""
    path = work / f"pictures-{seed}-{count}.npy"
    if not path.exists():
        drawn = [
            np.asarray(render(CATEGORIES[index % len(CATEGORIES)], stream(seed), index // len(CATEGORIES)))
            for index in range(count)
        ]
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.stack(drawn))
        partial.replace(path)
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)


def categories(count: int) -> Tensor:
    """The category number of every picture, (count,)."""
    return torch.arange(count) % len(CATEGORIES)


def as_input(pictures: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], channels last in memory (faster convolutions on a CPU)."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def batch_indices(count: int, size: int, seed: int, step: int) -> Tensor:
    """The pictures of a step's batch, (size,): epochs of shuffled pictures, a function of seed and step alone."""
    places = torch.arange(step * size, (step + 1) * size)
    chosen = torch.empty(size, dtype=torch.int64)
    for epoch in range(step * size // count, ((step + 1) * size - 1) // count + 1):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        here = places.div(count, rounding_mode="floor") == epoch
        chosen[here] = order[places[here] % count]
    return chosen
