"""Stage 1, second half: noise is added to the cached latents at each timestep, and kept. No network is run."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.backbone.load import load_scheduler
from featstore.backbone.location import ModelLocation
from featstore.backbone.noise import noise
from featstore.progress import Progress
from featstore.stages.plan import missing_noisy
from featstore.store.keys import noisy_path
from featstore.store.overlap import reads_ahead, row_writer
from featstore.store.pack import unpack
from featstore.store.store import Store
from matcher.read_ahead import read_ahead


def add_noise(
    store: Store,
    location: ModelLocation,
    rows: Sequence[int],
    timesteps: Sequence[int],
    draws: int,
    progress: Progress,
) -> int:
    """Noisy latents of the images of `rows` at each timestep, `draws` draws each: how many were made.

    The noise of a draw depends on (seed, image key, timestep, draw) alone. Latents of `rows` must be cached.
    """
    missing = {step: part for step in timesteps if (part := missing_noisy(store, rows, step, draws))}
    total = sum(len(part) for part in missing.values())
    if total == 0:
        return 0
    unpack(store, [noisy_path(timestep) for timestep in missing], progress)
    scheduler = load_scheduler(location)
    latents = store.latents()
    progress.start("adding noise", total, "latents")
    with row_writer(store.path) as write:
        for timestep, part in missing.items():
            array = store.require_noisy(timestep, draws)
            wanted: dict[int, list[int]] = {}
            for row, draw in part:
                wanted.setdefault(row, []).append(draw)
            for row, stored in read_ahead(wanted, lambda row: latents.read((row,)), reads_ahead(store.path)):
                clean = stored.astype(np.float32)
                for draw in wanted[row]:
                    write(array, (row, draw), noisy_latent(scheduler, store, clean, row, timestep, draw))
                    progress.advance()
    return total


def noisy_latent(
    scheduler: object, store: Store, clean: NDArray[np.float32], row: int, timestep: int, draw: int
) -> NDArray[np.float32]:
    """One draw of an image's noisy latents, (4, h, w), of its clean ones."""
    drawn = noise(store.header.seed, store.images.keys[row], timestep, draw, clean.shape)
    mixed: torch.Tensor = scheduler.add_noise(  # type: ignore[attr-defined]
        torch.from_numpy(clean)[None], torch.from_numpy(drawn)[None], torch.tensor([timestep])
    )
    return mixed[0].numpy()
