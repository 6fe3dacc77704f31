"""Maps of two or more photographs that belong to no dataset and no store, kept in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from featstore.backbones.base import Compute
from featstore.backbones.diffusion_networks import (
    CutUNet,
    encode,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae_encoder,
)
from featstore.backbones.noise import Latents, noise, posterior_noise
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.pictures import decode, exif_orientation, image_key, resize_to_square
from featstore.datasets.reading import LARGEST_IMAGE, read_limited
from featstore.datasets.records import ImageRecord
from featstore.errors import DatasetError
from featstore.pipeline.features import chunks
from featstore.progress import Progress
from matcher.errors import MapError


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph from a file: its pixels as stored, the hash that keys its noise, and how a viewer turns it (EXIF's
    1, not at all, to 8)."""

    name: str
    key: str
    picture: Image.Image
    orientation: int


@dataclass(frozen=True, slots=True)
class PhotoSettings:
    """image_size: S in pixels. latents, seed, ensemble: as in a store."""

    image_size: int
    latents: Latents
    seed: int
    ensemble: int


@dataclass(frozen=True, slots=True)
class PhotoPrompt:
    """What the UNet is told of all photographs. embedding: gives (1, 77, D) for a layer. shared: whether it is the same
    for all layers, which then share passes."""

    embedding: Callable[[int, CLIPTokenizer, CLIPTextModel], Tensor]
    shared: bool


def open_photo(path: Path) -> Photo:
    """Read a photograph. Raises `DatasetError` where the file is missing, `ImageError` where it cannot be decoded."""
    try:
        data = read_limited(path, LARGEST_IMAGE)
    except OSError as error:
        raise DatasetError(f"The image {path} cannot be read: {error.strerror}.") from error
    record = ImageRecord(id=str(path), category="", file=str(path))
    return Photo(path.name, image_key(record, data), decode(record, data), exif_orientation(record, data))


def photo_maps(
    model: Model,
    photos: Sequence[Photo],
    wanted: Sequence[tuple[int, int]],
    settings: PhotoSettings,
    prompt: PhotoPrompt,
    compute: Compute,
    progress: Progress,
) -> list[Mapping[tuple[int, int], Tensor]]:
    """For each photograph its maps (C, h, w), float32, by (layer, timestep): those of a store but
    for its roundings to float16. A photograph that asks to be turned is noted (`featstore.datasets.pictures`). Raises
    `MapError` for a map that is not finite."""
    for photo in photos:
        if photo.orientation != 1:
            width, height = photo.picture.size
            progress.note(
                f"{photo.name} asks to be turned when it is shown (EXIF orientation {photo.orientation}); its pixels "
                f"are taken as stored, {width}x{height}, and points count in those."
            )
    model.schedule.check_timesteps(timestep for _, timestep in wanted)
    side = model.latent_side(settings.image_size)
    shape = (model.latent_channels, side, side)
    steps: dict[tuple[int, int | None], list[int]] = {}
    for layer, timestep in wanted:
        steps.setdefault((timestep, None if prompt.shared else layer), []).append(layer)
    progress.start("extracting features", len(photos) * (1 + len(steps) * settings.ensemble), "passes")
    vae = load_vae_encoder(model.location, compute.device, compute.dtype)
    latents = [_latents(vae, photo, shape, settings, compute) for photo in photos]
    progress.advance(len(photos))
    encoder = load_text_encoder(model.location, compute.device, compute.dtype)
    tokenizer = load_tokenizer(model.location)
    embeddings = {key: prompt.embedding(layers[0], tokenizer, encoder) for key, layers in steps.items()}
    unet = CutUNet(load_unet(model.location, compute.device, compute.dtype), max(layer for layer, _ in wanted))
    found: list[Mapping[tuple[int, int], Tensor]] = []
    for photo, clean in zip(photos, latents, strict=True):
        maps: dict[tuple[int, int], Tensor] = {}
        for key, layers in steps.items():
            timestep = key[0]
            sums: dict[int, Tensor] = {}
            for draws in chunks(range(settings.ensemble), compute.batch_size):
                drawn = np.stack([noise(settings.seed, photo.key, timestep, draw, shape) for draw in draws])
                noisy = torch.from_numpy(model.schedule.mix(clean.numpy(), drawn, timestep))
                with torch.no_grad():
                    taps = unet.tap(
                        noisy.to(compute.device), timestep, embeddings[key].expand(len(draws), -1, -1), layers
                    )
                for layer, features in taps.items():
                    sums[layer] = sums.get(layer, torch.zeros(())) + features.float().sum(dim=0).cpu()
                progress.advance(len(draws))
            for layer, total in sums.items():
                if not total.isfinite().all():
                    raise MapError(
                        f"The map of {photo.name}, layer {layer} at t = {timestep}, is not finite in "
                        f"{compute.dtype_name}: the model overflowed; try "
                        f"{'another model' if compute.dtype is torch.float32 else '--dtype float32'}."
                    )
            maps |= {(layer, timestep): total / settings.ensemble for layer, total in sums.items()}
        found.append(maps)
    return found


def _latents(
    vae: AutoencoderKL, photo: Photo, shape: tuple[int, int, int], settings: PhotoSettings, compute: Compute
) -> Tensor:
    """(1, 4, h, w), float32, on the CPU."""
    pixels = torch.from_numpy(resize_to_square(photo.picture, settings.image_size))[None].to(compute.device)
    drawn = None
    if settings.latents is Latents.SAMPLE:
        drawn = torch.from_numpy(posterior_noise(settings.seed, photo.key, shape))[None].to(compute.device)
    return encode(vae, pixels, drawn).cpu()
