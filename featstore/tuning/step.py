"""One training step: which pairs and noisy latents it takes, and its loss: prompts of a batch's pairs, the UNet up to
each layer, the dual correlation, the loss. And validation, which goes the same way without gradients."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Compute, Condition, TextEncoders, saying_batch_size
from featstore.backbones.noise import generator
from featstore.backbones.text_encoders import fill
from featstore.pipeline.features import chunks
from featstore.prompts.base import PromptSet
from featstore.prompts.text import wide
from featstore.store.rows import REQUESTS
from featstore.tuning.loss import Descriptors, correlations, describe_points, keypoint_losses, layered
from featstore.tuning.settings import TuningSettings
from matcher.configuration import Configuration, LayerSpec
from matcher.geometry import pixels_to_cells
from matcher.grid import score_grid
from matcher.maps import MapsInMemory
from matcher.pairs import MatchingPair


@dataclass(frozen=True, slots=True)
class RandomPairs:
    """`size` of `count` pairs per step; every pair comes once before any comes again."""

    count: int
    size: int
    seed: int

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the pairs of a step, counted from 0."""
        places = range(step * self.size, (step + 1) * self.size)
        return tuple(int(_order(self.count, self.seed, place // self.count)[place % self.count]) for place in places)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(f"epoch|{seed}|{epoch}").permutation(count)


LoadNoisy = Callable[[str, int | None, int], NDArray[Any]]
"""Noisy latents (4, h, w) of an image, at a timestep, for a step: a function of these and the seed."""


class NoiseAhead:
    """A `LoadNoisy` that is asked in threads before its latents are needed: the next step's while this one is computed.

    Args:
        load: What is asked.
        timesteps: For which it is asked.
    """

    def __init__(self, load: LoadNoisy, timesteps: Sequence[int | None]) -> None:
        self._load, self._timesteps = load, tuple(dict.fromkeys(timesteps))
        self._readers = ThreadPoolExecutor(REQUESTS, thread_name_prefix="noise-ahead")
        self._under_way: dict[tuple[str, int | None, int], Future[NDArray[Any]]] = {}

    def expect(self, images: Iterable[str], step: int) -> None:
        """Begin to make what will be asked for at a step. What was made for steps before the last is let go."""
        self._under_way = {key: read for key, read in self._under_way.items() if key[2] >= step - 1}
        for image in dict.fromkeys(images):
            for timestep in self._timesteps:
                key = image, timestep, step
                if key not in self._under_way:
                    self._under_way[key] = self._readers.submit(self._load, *key)

    def __call__(self, image: str, timestep: int | None, step: int) -> NDArray[Any]:
        """See `LoadNoisy`."""
        read = self._under_way.get((image, timestep, step))
        return self._load(image, timestep, step) if read is None else read.result()


@dataclass(frozen=True, slots=True)
class Networks:
    """The frozen networks that gradients flow through.

    Args:
        text: The model's text encoders.
        framed: Token embeddings (77, D) around the learned vectors.
        unets: One per layer, each ending at its layer; called as diffusers' are.
        compute: Where they run; in half precision under autocast.
        timestep_told: What the UNets are told of a timestep, None being latents without noise.
        added: What they are told of latents and prompts beside embeddings, as diffusers' `added_cond_kwargs`.
    """

    text: TextEncoders
    framed: Tensor
    unets: Sequence[Any]
    compute: Compute
    timestep_told: Callable[[int | None], float | None] = lambda timestep: timestep
    added: Callable[[Tensor, Condition], dict[str, Tensor] | None] = lambda *_: None

    def condition(self, vectors: Tensor) -> Condition:
        """What the UNet is told by prompts of learned vectors.

        Args:
            vectors: (u, N, D).

        Returns:
            What they tell, u prompts.

        Raises:
            ModelError: Memory runs out.
        """
        with self._running(len(vectors)):
            return self.text.encode(fill(self.framed, vectors), vectors.shape[1])

    def condition_of_text(self, text: str) -> Condition:
        """The same of a text."""
        with self._running(1):
            return self.text.encode_texts([text])

    def tap(self, index: int, latents: Tensor, timestep: int | None, condition: Condition) -> Tensor:
        """The maps of one layer.

        Args:
            index: Of the layer, among those that are trained.
            latents: (p, 4, h, w), noisy.
            timestep: Of their noise; None without.
            condition: What is told of each latent, p prompts.

        Returns:
            Maps (p, C, H, W).

        Raises:
            ModelError: Memory runs out; it names the batch size to try.
        """
        inputs = latents.to(self.compute.device, self.compute.dtype)
        told = condition.each(Tensor.to, self.compute.dtype)
        step, added = self.timestep_told(timestep), self.added(inputs, told)
        with self._running(len(latents)):
            found: Tensor = self.unets[index](
                inputs, step, encoder_hidden_states=told.embeddings, added_cond_kwargs=added, return_dict=False
            )[0]
        return found

    @contextlib.contextmanager
    def _running(self, size: int) -> Iterator[None]:
        device, dtype = self.compute.device.type, self.compute.dtype
        half = dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(device, dtype) if half else contextlib.nullcontext(), saying_batch_size(size):
            yield


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """What a validation tells the UNet.

    Args:
        of_pairs: Whether each pair has a prompt of its own; else those of a category share one.
        condition: From a layer, by its place among those that are trained, and a pair to one prompt.
    """

    of_pairs: bool
    condition: Callable[[int, MatchingPair], Condition]


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What is learned, through what.

    Args:
        settings: All that decides what training ends in.
        networks: Frozen.
        prompts: One set per layer.
        noisy: Hands out the noisy latents of steps.
    """

    settings: TuningSettings
    networks: Networks
    prompts: Sequence[PromptSet]
    noisy: LoadNoisy

    @property
    def prompted(self) -> Prompted:
        """The prompts as they are when they are asked for."""

        def condition(layer: int, pair: MatchingPair) -> Condition:
            return self.networks.condition(self.prompts[layer].vectors([pair])[0])

        return Prompted(self.settings.mode.rules.of_pairs, condition)


def batch_loss(learner: Learner, pairs: Sequence[MatchingPair], count: int, step: int) -> tuple[Tensor, int]:
    """The loss of a batch, or of a part of it. A pair's loss is the mean over its points; an image that several pairs
    share goes through the UNet once per layer and prompt, and all queries into a target share one product per layer.

    Args:
        learner: What is learned.
        pairs: In the resized frame.
        count: Pairs of the whole batch.
        step: Decides the noise.

    Returns:
        The sum of the pairs' losses over `count`, a scalar, and how many UNet passes were made.
    """
    settings, matching, device = learner.settings, learner.settings.matching, learner.networks.compute.device
    dtype = wide(learner.networks.compute.dtype)
    maps, ends = batch_maps(learner, pairs, step)
    images = [layered(own, settings.weights, matching) for own in zip(*maps, strict=True)]

    def together(points: Iterable[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.concatenate([*points])).to(device, dtype)

    described: dict[int, tuple[Tensor, ...]] = {}
    for source, members in _grouped(start for start, _ in ends).items():
        points = together(pairs[index].source_points for index in members)
        found = describe_points(images[source], points, matching)
        counts = [len(pairs[index].source_points) for index in members]
        parts = zip(*(own.split(counts) for own in (*found.layers, found.lengths)), strict=True)
        described |= zip(members, parts, strict=True)
    total = torch.zeros((), dtype=dtype, device=device)
    for target, members in _grouped(end for _, end in ends).items():
        *layers, lengths = (torch.cat(own) for own in zip(*(described[index] for index in members), strict=True))
        counts = [len(pairs[index].target_points) for index in members]
        shares = torch.from_numpy(np.repeat(1 / np.array(counts), counts)).to(device, dtype)
        points = together(pairs[index].target_points for index in members)
        cells = pixels_to_cells(points, matching.image_size, images[target].size, matching.geometry)
        found_there = correlations(Descriptors(tuple(layers), lengths), images[target])
        total = total + (keypoint_losses(found_there, cells, settings.kernel, matching.beta) * shares).sum()
    return total / count, len(images) * len(maps)


def batch_maps(
    learner: Learner, pairs: Sequence[MatchingPair], step: int
) -> tuple[Sequence[Tensor], Sequence[tuple[int, int]]]:
    """The networks' part of `batch_loss`: each distinct prompt once through the text encoder, each distinct image and
    prompt once through each layer's UNet.

    Returns:
        Maps (passes, C, h, w) per layer, and for each pair the places of its source and its target among the passes.
    """
    passes: dict[tuple[str, int], int] = {}  # an image, and which of the batch's prompts it goes with
    maps: list[Tensor] = []
    ends: list[tuple[int, int]] = []
    networks = learner.networks
    for layer, timestep in enumerate(learner.settings.timesteps):
        vectors, which = learner.prompts[layer].vectors(pairs)
        if layer == 0:  # every layer's prompts are of the same mode, so the passes are the same
            for pair, prompt in zip(pairs, which, strict=True):
                start = passes.setdefault((pair.source, prompt), len(passes))
                ends.append((start, passes.setdefault((pair.target, prompt), len(passes))))
        latents = torch.from_numpy(np.stack([learner.noisy(image, timestep, step) for image, _ in passes]))
        chosen = torch.tensor([prompt for _, prompt in passes], device=networks.compute.device)
        # not indexed: a shared prompt's gradients would be summed in whatever order threads take
        condition = networks.condition(vectors).each(torch.index_select, 0, chosen)
        maps.append(networks.tap(layer, latents, timestep, condition))
    return maps, ends


def _grouped(keys: Iterable[Any]) -> dict[Any, list[int]]:
    """The places of each key, in order."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


ALPHA = 0.1
"""Model selection is by nn PCK@0.1, image average (docs/method.md, Settings)."""


@torch.no_grad()
def validate(
    learner: Learner, pairs: Sequence[MatchingPair], noisy: LoadNoisy, prompted: Prompted
) -> tuple[float, NDArray[np.float64]]:
    """What model selection goes by: PCK of pairs, at the validation's timesteps, with one noise draw.

    Args:
        learner: What is learned.
        pairs: In the resized frame.
        noisy: Hands out the noisy latents of validations, always the same.
        prompted: With which prompts.

    Returns:
        Each pair's PCK, (pairs,), fractions, behind their sum.
    """
    settings, networks, total = learner.settings, learner.networks, 0.0
    values = np.zeros(len(pairs))
    timesteps = settings.validation_timesteps
    of_layers = zip(map(str, settings.layers), timesteps, settings.weights, strict=True)
    tried = [Configuration(tuple(LayerSpec(*of_layer) for of_layer in of_layers), settings.matching)]
    # images of pairs of a category share a prompt, unless prompts are made from pairs
    groups = _grouped(index if prompted.of_pairs else pair.category for index, pair in enumerate(pairs))
    for members in groups.values():
        group = [pairs[index] for index in members]
        images = sorted({image for pair in group for image in (pair.source, pair.target)})
        maps: dict[tuple[str, str, int | None], Tensor] = {}
        for index, (layer, timestep) in enumerate(zip(settings.layers, timesteps, strict=True)):
            condition = prompted.condition(index, group[0])
            for batch in chunks(images, networks.compute.batch_size):
                latents = torch.from_numpy(np.stack([noisy(image, timestep, 0) for image in batch]))
                found = networks.tap(index, latents, timestep, condition.expanded(len(batch)))
                maps |= {(image, str(layer), timestep): own for image, own in zip(batch, found, strict=True)}
        scores = score_grid(group, MapsInMemory(maps), tried, ["nn"], [ALPHA], networks.compute.device)
        values[members] = own = scores.of_pairs(0, "nn", ALPHA)
        total += float(own.sum())
    return total, values
