"""Stage 1: every image goes through the VAE once, and its latents are kept."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.backbone.latents import Latents
from featstore.backbone.load import load_vae_encoder
from featstore.backbone.location import ModelLocation
from featstore.backbone.noise import posterior_noise
from featstore.backbone.vae import encode
from featstore.datasets.pixels import decode, image_key, resize_to_square
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.progress import Progress
from featstore.stages.batches import chunks, padded
from featstore.stages.compute import Compute
from featstore.stages.plan import missing_latents
from featstore.store.keys import LATENTS
from featstore.store.pack import unpack
from featstore.store.store import Store

DECODERS = 4
"""Threads that decode and resize the images of a batch; Pillow lets go of the interpreter while it does."""


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
    records = {record.id: record for record in dataset.images()}
    gone = [row for row in missing if store.images.ids[row] not in records]
    missing = [row for row in missing if row not in set(gone)]
    array = store.latents()
    vae = load_vae_encoder(location, compute.device, compute.dtype)
    progress.start("encoding images (VAE)", len(missing), "images")
    encoded, bad = 0, [_gone(store.images.ids[row]) for row in gone]
    with ThreadPoolExecutor(DECODERS) as pool:
        for batch in chunks(missing, compute.batch_size):
            images = [records[store.images.ids[row]] for row in batch]
            pixels, good = [], []
            for row, outcome in zip(batch, pool.map(lambda image: _pixels(store, dataset, image), images), strict=True):
                if isinstance(outcome, ImageError):
                    bad.append(outcome)
                else:
                    pixels.append(outcome)
                    good.append(row)
            if good:
                latents = encode(
                    vae,
                    padded(torch.from_numpy(np.stack(pixels)), compute.batch_size).to(compute.device),
                    _posterior_noise(store, good, compute),
                )
                for row, values in zip(good, latents.cpu().numpy(), strict=False):  # the padding falls off here
                    array.write((row,), values)
                encoded += len(good)
            progress.advance(len(batch))
    return encoded, bad


def _gone(image: str) -> ImageError:
    return ImageError(image, f"The image {image!r} is no longer in the dataset.")


def _pixels(store: Store, dataset: Dataset, image: ImageRecord) -> NDArray[np.float32] | ImageError:
    """One image, (3, S, S) in [-1, 1], or what is wrong with it."""
    try:
        data = dataset.read(image)
        if image_key(image, data) != store.images.keys[store.images.row(image.id)]:
            raise StoreError(
                f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
            )
        return resize_to_square(decode(image, data), store.header.image_size)
    except ImageError as error:
        return error


def _posterior_noise(store: Store, rows: Sequence[int], compute: Compute) -> torch.Tensor | None:
    if store.header.latents is Latents.MEAN:
        return None
    shape = store.latents().row_shape
    noise = [posterior_noise(store.header.seed, store.images.keys[row], shape) for row in rows]
    return padded(torch.from_numpy(np.stack(noise)), compute.batch_size).to(compute.device)
