"""Stage 1: every image goes through the VAE once, and its latents are kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from featstore.backbones.base import Compute, ModelLocation, NetworkName
from featstore.backbones.diffusion_networks import encode, load_vae_encoder
from featstore.backbones.dino import load_dino
from featstore.backbones.noise import Latents, posterior_noise
from featstore.datasets.pictures import decode
from featstore.datasets.records import Dataset
from featstore.errors import ImageError
from featstore.pipeline.features import chunks, padded, pixel_batches
from featstore.pipeline.plan import missing_latents
from featstore.progress import Progress
from featstore.store.keys import LATENTS, PATCH_TOKENS
from featstore.store.pack import unpack
from featstore.store.rows import RowArray, row_writer
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
        size, at_once = store.header.image_size, compute.batch_size
        for batch in pixel_batches(store, dataset, missing, size, at_once, bad, progress):
            pixels = padded(torch.from_numpy(batch.inputs), batch.size).to(compute.device)
            latents = encode(vae, pixels, _posterior_noise(store, batch.items, array.row_shape, compute))
            for row, values in zip(batch.items, latents.cpu().numpy(), strict=False):  # the padding falls off here
                write(array, (row,), values)
            encoded += len(batch.items)
            progress.advance(len(batch.items))
    return encoded, bad


def _posterior_noise(
    store: Store, rows: Sequence[int], shape: tuple[int, ...], compute: Compute
) -> torch.Tensor | None:
    if store.header.latents is Latents.MEAN:
        return None
    noise = [posterior_noise(store.header.seed, store.images.keys[row], shape) for row in rows]
    return padded(torch.from_numpy(np.stack(noise)), compute.batch_size).to(compute.device)


def cache_patch_tokens(
    store: Store,
    dataset: Dataset,
    dino: NetworkName,
    folder: Path,
    rows: Sequence[int],
    compute: Compute,
    progress: Progress,
) -> RowArray:
    """Tokens (1 + patches, width) of the images of `rows`, mirrored where the image is; those that are there stay.

    Raises `StoreError` where the store has those of another DINOv2, `ImageError` for an image that cannot be read.
    """
    known = store.patch_tokens(dino)
    if known is not None and all(known.present()[list(rows)]):
        return known
    unpack(store, [PATCH_TOKENS], progress)
    network = load_dino(folder, compute.device, compute.dtype)
    array = store.require_patch_tokens(dino, network.tokens_shape)
    present = array.present()
    missing = [row for row in rows if not present[row]]
    records = {record.id: record for record in dataset.images()}
    progress.start("DINOv2 tokens", len(missing), "images")
    with row_writer(store.path) as write:
        for batch in chunks(missing, compute.batch_size):
            images = [records[store.images.ids[row]] for row in batch]
            tokens = network.tokens([decode(image, dataset.read(image)) for image in images])
            for row, own in zip(batch, tokens, strict=True):
                write(array, (row,), own.numpy())
            progress.advance(len(batch))
    return array
