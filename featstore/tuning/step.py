"""One training step's loss: prompts of a batch's pairs, the UNet up to each layer, the dual correlation, the loss."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from featstore.pipeline.features import chunks
from featstore.prompts.base import PromptSet
from featstore.prompts.text import wide
from featstore.tuning.data import NoisySource
from featstore.tuning.loss import Descriptors, LayeredMaps, correlations, describe_points, keypoint_losses, layered
from featstore.tuning.networks import Networks
from featstore.tuning.settings import TuningSettings
from matcher.configuration import Configuration, LayerSpec
from matcher.geometry import pixels_to_cells
from matcher.grid import score_grid
from matcher.maps import MapsInMemory
from matcher.pairs import MatchingPair

Key = TypeVar("Key", bound=Hashable)

Pass = tuple[str, int]
"""A pass of the UNet: an image, and which of the batch's prompts it goes with."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchMaps:
    """What a batch's passes gave.

    Args:
        maps: (passes, C, h, w) per layer.
        ends: For each pair the places of its source and its target among the passes.
    """

    maps: tuple[Tensor, ...]
    ends: tuple[tuple[int, int], ...]


def batch_loss(
    pairs: Sequence[MatchingPair],
    total: int,
    step: int,
    networks: Networks,
    prompts: Sequence[PromptSet],
    noisy: NoisySource,
    settings: TuningSettings,
) -> tuple[Tensor, int]:
    """The loss of a batch, or of a part of it. A pair's loss is the mean over its points; an image that several pairs
    share goes through the UNet once per layer and prompt.

    Args:
        pairs: In the resized frame.
        total: Pairs of the whole batch.
        step: Decides the noise.
        networks: Frozen.
        prompts: One set per layer.
        noisy: Hands out noisy latents.
        settings: All that decides what training ends in.

    Returns:
        The sum of the pairs' losses over `total`, a scalar, and how many UNet passes were made.
    """
    made = batch_maps(pairs, step, networks, prompts, noisy, settings)
    passes = len(made.maps[0])
    images = [
        layered([features[index] for features in made.maps], settings.weights, settings.matching)
        for index in range(passes)
    ]
    return _losses(pairs, made.ends, images, networks, settings) / total, passes * len(settings.layers)


def batch_maps(
    pairs: Sequence[MatchingPair],
    step: int,
    networks: Networks,
    prompts: Sequence[PromptSet],
    noisy: NoisySource,
    settings: TuningSettings,
) -> BatchMaps:
    """The networks' part of `batch_loss`: each distinct prompt once through the text encoder, each distinct image and
    prompt once through each layer's UNet."""
    passes: dict[Pass, int] = {}
    maps: list[Tensor] = []
    ends: tuple[tuple[int, int], ...] = ()
    for layer, timestep in enumerate(settings.timesteps):
        vectors, which = prompts[layer].vectors(pairs)
        if layer == 0:  # every layer's prompts are of the same mode, so the passes are the same
            ends = tuple(
                (
                    passes.setdefault((pair.source, prompt), len(passes)),
                    passes.setdefault((pair.target, prompt), len(passes)),
                )
                for pair, prompt in zip(pairs, which, strict=True)
            )
        latents = torch.from_numpy(np.stack([noisy.load(image, timestep, step) for image, _ in passes]))
        chosen = torch.tensor([prompt for _, prompt in passes], device=networks.device)
        # not indexed: a shared prompt's gradients would be summed in whatever order threads take
        condition = networks.condition(vectors).index_select(0, chosen)
        maps.append(networks.tap(layer, latents, timestep, condition))
    return BatchMaps(tuple(maps), ends)


def _losses(
    pairs: Sequence[MatchingPair],
    ends: Sequence[tuple[int, int]],
    images: Sequence[LayeredMaps],
    networks: Networks,
    settings: TuningSettings,
) -> Tensor:
    """The sum over pairs of the mean over points. All queries into a target share one product per layer."""
    dtype, matching = wide(networks.dtype), settings.matching
    described: list[Descriptors | None] = [None] * len(pairs)
    for source, members in _grouped([start for start, _ in ends]).items():
        points = np.concatenate([pairs[index].source_points for index in members])
        found = describe_points(images[source], torch.from_numpy(points).to(networks.device, dtype), matching)
        first = 0
        for index in members:
            count = len(pairs[index].source_points)
            described[index] = found.at(torch.arange(first, first + count, device=networks.device))
            first += count
    total = torch.zeros((), dtype=dtype, device=networks.device)
    for target, members in _grouped([end for _, end in ends]).items():
        parts = [part for index in members if (part := described[index]) is not None]
        queries = Descriptors(
            tuple(torch.cat(layers) for layers in zip(*(part.layers for part in parts), strict=True)),
            torch.cat([part.lengths for part in parts]),
        )
        points = np.concatenate([pairs[index].target_points for index in members])
        counts = np.array([len(pairs[index].target_points) for index in members])
        shares = torch.from_numpy(np.repeat(1 / counts, counts)).to(networks.device, dtype)
        cells = pixels_to_cells(
            torch.from_numpy(points).to(networks.device, dtype),
            matching.image_size,
            images[target].size,
            matching.geometry,
        )
        losses = keypoint_losses(correlations(queries, images[target]), cells, settings.kernel, matching.beta)
        total = total + (losses * shares).sum()
    return total


def _grouped(keys: Sequence[Key]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return dict(groups)


ALPHA = 0.1
"""Model selection is by nn PCK@0.1, image average (docs/method.md, Settings)."""

LoadNoisy = Callable[[str, int], Tensor]
"""Noisy latents (4, h, w) of an image at a timestep; always the same draw."""


@torch.no_grad()
def sum_of_pck(
    pairs: Sequence[MatchingPair],
    networks: Networks,
    prompts: Sequence[PromptSet],
    noisy: LoadNoisy,
    settings: TuningSettings,
    batch_size: int,
) -> float:
    """What model selection goes by: PCK of pairs, at the validation's timesteps, with one noise draw.

    Args:
        pairs: In the resized frame.
        networks: Frozen.
        prompts: One set per layer.
        noisy: Hands out noisy latents, (4, h, w).
        settings: All that decides what training ends in.
        batch_size: Images per pass.

    Returns:
        The sum over pairs of each pair's PCK, a fraction.
    """
    layers = tuple(
        LayerSpec(str(layer), timestep, weight)
        for layer, timestep, weight in zip(
            settings.layers, settings.validation_timesteps, settings.weights, strict=True
        )
    )
    tried = [Configuration(layers, settings.matching)]
    total = 0.0
    for group in _sharing_a_prompt(pairs, settings.mode.rules.of_pairs):
        images = sorted({image for pair in group for image in (pair.source, pair.target)})
        maps: dict[tuple[str, str, int | None], Tensor] = {}
        for index, spec in enumerate(layers):
            assert spec.timestep is not None, "layers of a diffusion model have timesteps"
            condition = networks.condition(prompts[index].vectors(group[:1])[0])  # (1, 77, D)
            for batch in chunks(images, batch_size):
                latents = torch.stack([noisy(image, spec.timestep) for image in batch])
                found = networks.tap(index, latents, spec.timestep, condition.expand(len(batch), -1, -1))
                maps |= {(image, spec.layer, spec.timestep): own for image, own in zip(batch, found, strict=True)}
        scores = score_grid(group, MapsInMemory(maps), tried, ["nn"], [ALPHA], networks.device)
        total += float(scores.of_pairs(0, "nn", ALPHA).sum())
    return total


def _sharing_a_prompt(pairs: Sequence[MatchingPair], of_pairs: bool) -> list[list[MatchingPair]]:
    """Pairs by category, whose images share a prompt; each alone where prompts are made from pairs."""
    if of_pairs:
        return [[pair] for pair in pairs]
    return [[pairs[index] for index in own] for own in _grouped([pair.category for pair in pairs]).values()]
