"""What the UNet sees in training: noisy latents from the store, or noised anew from the cached clean ones. The VAE is
not called."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.backbone.noise import generator
from featstore.errors import TuningError
from featstore.stages.noisy import noisy_latent
from featstore.store.rows import RowArray
from featstore.store.store import Store

FRESH = 1_000_000
"""Draws from this number on are never cached: `--noise fresh` takes one a step."""


class NoisySource(Protocol):
    """Hands out noisy latents."""

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float16] | NDArray[np.float32]:
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


class FreshNoise:
    """Noise of its own for each image, timestep and step."""

    def __init__(self, store: Store, scheduler: Any) -> None:
        self._store, self._scheduler = store, scheduler
        self._latents = store.latents()

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float32]:
        """See `NoisySource.load`."""
        row = self._store.images.row(image)
        clean = self._latents.read((row,)).astype(np.float32)
        return noisy_latent(self._scheduler, self._store, clean, row, timestep, FRESH + step)
