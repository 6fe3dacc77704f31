"""Stage 1: every image goes through the VAE once, and its latents are kept."""

from collections.abc import Sequence

import numpy as np
import torch

from featstore.backbones.latents import Latents
from featstore.backbones.load import load_vae_encoder
from featstore.backbones.location import ModelLocation
from featstore.backbones.noise import posterior_noise
from featstore.backbones.vae import encode
from featstore.datasets.records import Dataset
from featstore.errors import ImageError
from featstore.pipeline.batches import padded
from featstore.pipeline.compute import Compute
from featstore.pipeline.pixels import pixel_batches
from featstore.pipeline.plan import missing_latents
from featstore.progress import Progress
from featstore.store.keys import LATENTS
from featstore.store.overlap import row_writer
from featstore.store.pack import unpack
from featstore.store.store import Store


def encode_images(
    store: Store,
    dataset: Dataset,
    location: ModelLocation,
    rows: Sequence[int],
    compute: Compute,
    progress: Progress,
) -> tuple[int, list[ImageError]]:
    """Latents of the images of `rows`: (how many were encoded, what was wrong with the others).

    The VAE is loaded only where a row is missing. What was written stays when a later image fails.
    """
    missing = missing_latents(store, rows)
    if not missing:
        return 0, []
    unpack(store, [LATENTS], progress)
    array = store.latents()
    vae = load_vae_encoder(location, compute.device, compute.dtype)
    progress.start("encoding images (VAE)", len(missing), "images")
    encoded, bad = 0, list[ImageError]()
    with row_writer(store.path) as write:
        for batch in pixel_batches(store, dataset, missing, store.header.image_size, compute.batch_size):
            bad.extend(batch.bad)
            if batch.rows:
                latents = encode(
                    vae,
                    padded(torch.from_numpy(np.stack(batch.pixels)), compute.batch_size).to(compute.device),
                    _posterior_noise(store, batch.rows, array.row_shape, compute),
                )
                for row, values in zip(batch.rows, latents.cpu().numpy(), strict=False):  # the padding falls off here
                    write(array, (row,), values)
                encoded += len(batch.rows)
            progress.advance(len(batch.rows) + len(batch.bad))
    return encoded, bad


def _posterior_noise(
    store: Store, rows: Sequence[int], shape: tuple[int, ...], compute: Compute
) -> torch.Tensor | None:
    if store.header.latents is Latents.MEAN:
        return None
    noise = [posterior_noise(store.header.seed, store.images.keys[row], shape) for row in rows]
    return padded(torch.from_numpy(np.stack(noise)), compute.batch_size).to(compute.device)
