"""What a training step reads: pairs in a seeded order, and their noisy latents."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.noise import generator
from featstore.errors import TuningError
from featstore.pipeline.plan import noisy_latent
from featstore.store.overlap import REQUESTS
from featstore.store.rows import RowArray
from featstore.store.store import Store


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


FRESH = 1_000_000
"""Draws from this number on are never cached: `--noise fresh` takes one per step."""


Latent = NDArray[np.float16] | NDArray[np.float32]


class NoisySource(Protocol):
    """Hands out noisy latents."""

    def load(self, image: str, timestep: int, step: int) -> Latent:
        """(4, h, w) of an image; a function of its arguments and the seed."""


class CachedNoise:
    """One of the store's draws of each image and step."""

    def __init__(self, store: Store, timesteps: tuple[int, ...], draws: int, seed: int) -> None:
        arrays = {timestep: store.noisy(timestep) for timestep in timesteps}
        self._arrays: dict[int, RowArray] = {}
        for timestep, array in arrays.items():
            if array is None:
                raise TuningError(f"{store.path} has no noisy latents at t = {timestep}.")
            self._arrays[timestep] = array
        self._store, self._draws, self._seed = store, draws, seed

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float16]:
        """See `NoisySource.load`."""
        draw = int(generator(f"draw|{self._seed}|{image}|{step}").integers(self._draws))
        found: NDArray[np.float16] = self._arrays[timestep].read((self._store.images.row(image), draw))
        return found


class NoiseAhead:
    """A source on object storage, read in threads before it is asked: the next step's while this one is computed."""

    def __init__(self, source: NoisySource, timesteps: tuple[int, ...]) -> None:
        self._source, self._timesteps = source, tuple(dict.fromkeys(timesteps))
        self._readers = ThreadPoolExecutor(REQUESTS, thread_name_prefix="noise-ahead")
        self._under_way: dict[tuple[str, int, int], Future[Latent]] = {}

    def expect(self, images: Iterable[str], step: int) -> None:
        """Begin to read what `load` will be asked for at a step. What was read for steps before the last is let go."""
        self._under_way = {key: read for key, read in self._under_way.items() if key[2] >= step - 1}
        for image in dict.fromkeys(images):
            for timestep in self._timesteps:
                key = image, timestep, step
                if key not in self._under_way:
                    self._under_way[key] = self._readers.submit(self._source.load, *key)

    def load(self, image: str, timestep: int, step: int) -> Latent:
        """See `NoisySource.load`."""
        read = self._under_way.get((image, timestep, step))
        return self._source.load(image, timestep, step) if read is None else read.result()


class FreshNoise:
    """Noise of its own for each image, timestep and step."""

    def __init__(self, store: Store) -> None:
        self._store, self._latents = store, store.latents()

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float32]:
        """See `NoisySource.load`."""
        row = self._store.images.row(image)
        clean = self._latents.read((row,)).astype(np.float32)
        return noisy_latent(self._store, clean, row, timestep, FRESH + step)
