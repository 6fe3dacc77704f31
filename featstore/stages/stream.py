"""Stage 2 without a disk: maps of a few images at a time, made from their latents and kept in memory only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbone.load import load_scheduler, load_unet
from featstore.backbone.unet import CutUNet
from featstore.progress import Progress
from featstore.prompts.text import TextPrompt
from featstore.stages.compute import Compute
from featstore.stages.maps import Passes, prompt_embeddings
from featstore.stages.needed import model_of
from featstore.stages.noisy import noisy_latent
from featstore.store.rows import Row
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.maps import MapsInMemory


@dataclass(frozen=True, slots=True)
class MapStream:
    """The networks, loaded once, and what to make: `wanted` (layer, timestep)."""

    store: Store
    unet: CutUNet
    scheduler: Any
    prompts: dict[str, Tensor]
    wanted: tuple[tuple[int, int], ...]
    ensemble: int
    compute: Compute

    def maps_of(self, rows: Sequence[int], progress: Progress) -> MapsInMemory:
        """All wanted maps of the images of `rows`, whose latents are cached: float16, as `cache maps` keeps them."""
        by_timestep: dict[int, list[int]] = {}
        for layer, timestep in self.wanted:
            by_timestep.setdefault(timestep, []).append(layer)
        progress.start("UNet passes", len(rows) * len(by_timestep) * self.ensemble, "passes")
        latents = self.store.latents()
        clean = {row: latents.read((row,)).astype(np.float32) for row in rows}
        maps: dict[tuple[str, str, int | None], Tensor] = {}
        for timestep, layers in by_timestep.items():

            def noisy(place: Row, timestep: int = timestep) -> NDArray[np.float16]:
                row, draw = place
                made = noisy_latent(self.scheduler, self.store, clean[row], row, timestep, draw)
                return made.astype(STORED_DTYPE)

            passes = Passes(self.unet, noisy, self.prompts, self.store.images.categories, self.ensemble)
            for row, made in passes.of(timestep, layers, rows, self.compute, progress):
                for layer, mean in made.items():
                    maps[self.store.images.ids[row], str(layer), timestep] = mean.to(torch.float16)
        return MapsInMemory(maps)


def open_stream(
    store: Store,
    categories: Sequence[str],
    wanted: Sequence[tuple[int, int]],
    prompt: TextPrompt,
    ensemble: int,
    compute: Compute,
) -> MapStream:
    """Load what making maps takes. Raises `ModelError` and `StoreError` where the store's model is not at hand."""
    location = model_of(store).location
    return MapStream(
        store,
        CutUNet(load_unet(location, compute.device, compute.dtype), max(layer for layer, _ in wanted)),
        load_scheduler(location),
        prompt_embeddings(location, prompt, categories, compute),
        tuple(wanted),
        ensemble,
        compute,
    )
