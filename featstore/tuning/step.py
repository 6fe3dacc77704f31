"""One training step's loss: prompts of a batch's pairs, the UNet up to each layer, the dual correlation, the loss."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from featstore.backbones.memory import saying_batch_size
from featstore.pipeline.batches import chunks
from featstore.prompts.base import Mode
from featstore.prompts.text import encode_token_embeddings, fill
from featstore.tuning.data import NoisySource
from featstore.tuning.loss import Descriptors, LayeredMaps, correlations, describe_points, keypoint_losses, layered
from featstore.tuning.prompt_sets import PromptSet, wide
from featstore.tuning.settings import TuningSettings
from matcher.configuration import Configuration
from matcher.geometry import pixels_to_cells
from matcher.grid import score_grid
from matcher.maps import LayerSpec, MapsInMemory
from matcher.pairs import MatchingPair

Autocast = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Networks:
    """The frozen networks. unets: one a layer, each ending at its layer. framed: token embeddings (77, D) around the
    learned vectors. autocast: the context in which the networks run."""

    text_encoder: CLIPTextModel
    unets: tuple[UNet2DConditionModel, ...]
    framed: Tensor
    device: torch.device
    dtype: torch.dtype
    autocast: Autocast


Pass = tuple[str, int]
"""A pass of the UNet: an image, and which of the batch's prompts it goes with."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchMaps:
    """What a batch's passes gave. maps: (passes, C, h, w) a layer. ends: for each pair the places of its source and its
    target among the passes."""

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
    """(the sum of the pairs' losses over `total`, UNet passes made). A pair's loss is the mean over its points.

    prompts: one set a layer. An image that several pairs share goes through the UNet once a layer and prompt.
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
        maps.append(_tap(networks, layer, vectors, chosen, latents, timestep))
    return BatchMaps(tuple(maps), ends)


def _tap(networks: Networks, layer: int, vectors: Tensor, chosen: Tensor, latents: Tensor, timestep: int) -> Tensor:
    """Maps (p, C, h, w) of latents (p, 4, h, w), each with its prompt: `chosen` (p,) of vectors (u, N, D)."""
    with networks.autocast(), saying_batch_size(len(latents)):
        embeddings = encode_token_embeddings(networks.text_encoder, fill(networks.framed, vectors))  # (u, 77, D)
        # not embeddings[chosen]: a shared prompt's gradients would be summed in whatever order threads take
        embeddings = embeddings.index_select(0, chosen)
        found: Tensor = networks.unets[layer](
            latents.to(networks.device, networks.dtype),
            timestep,
            encoder_hidden_states=embeddings.to(networks.dtype),
            return_dict=False,
        )[0]
    return found


def _losses(
    pairs: Sequence[MatchingPair],
    ends: Sequence[tuple[int, int]],
    images: Sequence[LayeredMaps],
    networks: Networks,
    settings: TuningSettings,
) -> Tensor:
    """The sum over pairs of the mean over points. All queries into a target share one product a layer."""
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


def _grouped(keys: Sequence[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
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
    """The sum over pairs of each pair's PCK, at the validation's timesteps, one noise draw. batch_size: images a
    pass."""
    layers = tuple(
        LayerSpec(str(layer), timestep, weight)
        for layer, timestep, weight in zip(
            settings.layers, settings.validation_timesteps, settings.weights, strict=True
        )
    )
    tried = [Configuration(layers, settings.matching)]
    total = 0.0
    for group in _sharing_a_prompt(pairs, settings.mode):
        images = sorted({image for pair in group for image in (pair.source, pair.target)})
        maps: dict[tuple[str, str, int | None], Tensor] = {}
        for index, spec in enumerate(layers):
            assert spec.timestep is not None, "layers of a diffusion model have timesteps"
            vectors, _ = prompts[index].vectors(group[:1])
            with networks.autocast():
                prompt = encode_token_embeddings(networks.text_encoder, fill(networks.framed, vectors))  # (1, 77, D)
            for batch in chunks(images, batch_size):
                latents = torch.stack([noisy(image, spec.timestep) for image in batch])
                with networks.autocast(), saying_batch_size(len(batch)):
                    found = networks.unets[index](
                        latents.to(networks.device, networks.dtype),
                        spec.timestep,
                        encoder_hidden_states=prompt.to(networks.dtype).expand(len(batch), -1, -1),
                        return_dict=False,
                    )[0]
                maps |= {(image, spec.layer, spec.timestep): own for image, own in zip(batch, found, strict=True)}
        scores = score_grid(group, MapsInMemory(maps), tried, ["nn"], [ALPHA], networks.device)
        total += float(scores.of_pairs(0, "nn", ALPHA).sum())
    return total


def _sharing_a_prompt(pairs: Sequence[MatchingPair], mode: Mode) -> list[list[MatchingPair]]:
    """Pairs by category, whose images share a prompt; each alone where prompts are made from pairs."""
    if mode is Mode.CPM:
        return [[pair] for pair in pairs]
    groups: dict[str, list[MatchingPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.category].append(pair)
    return list(groups.values())
