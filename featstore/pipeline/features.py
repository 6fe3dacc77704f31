"""The one loop from images to feature maps: batches of inputs, a pass of a backbone's networks each, the mean over an
image's noise draws. Commands, Python and pairs' evaluation differ in where inputs come from and where maps go: into a
store, or into memory. What is kept of images beside maps is made here as well: latents and DINOv2's tokens."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Compute, MapKey, NetworkName, Networks
from featstore.backbones.dino import load_dino
from featstore.backbones.noise import Latents, posterior_noise
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.pictures import decode, image_key, resize_to_square
from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.plan import (
    FoundBackbone,
    MapRequest,
    PlannedPasses,
    Work,
    missing_latents,
    missing_rows,
    noisy_latent,
    sharing_a_pass,
)
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import LATENTS, PATCH_TOKENS, AnyExtractor, Extractor, map_path
from featstore.store.pack import unpack
from featstore.store.rows import ENCODINGS, REQUESTS, RowArray, is_finite, row_writer
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.configuration import LayerSpec
from matcher.maps import read_ahead

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks

Item = TypeVar("Item")
Made = tuple[Item, MapKey, Tensor]
"""A map (C, h, w), float32 on the CPU, with whose it is and its (layer, timestep)."""

DECODERS = 4
"""Threads that decode and resize the images of a batch; Pillow lets go of the interpreter while it does."""


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`items` in order, `size` at a time; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def padded(batch: Tensor, size: int) -> Tensor:
    """A batch (b, ...) filled up with zeros to (size, ...).

    Libraries choose their algorithm by the batch's size, and results then differ in the last bits: a resumed run would
    not end in the same store as one that was never interrupted.
    """
    missing = size - len(batch)
    return batch if missing <= 0 else torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])


@dataclass(frozen=True, slots=True, eq=False)
class Batch(Generic[Item]):
    """What goes through networks together. items: images, or images of pairs. inputs: (items * draws, ...), an item's
    draws side by side. draws: of each item. size: that the batch is filled up to. is_last: whether the items have no
    further draws in the next batch."""

    items: Sequence[Item]
    inputs: NDArray[Any]
    draws: int
    size: int
    is_last: bool


@torch.no_grad()
def passes(
    networks: Networks,
    keys: Sequence[MapKey],
    batches: Iterable[Batch[Item]],
    condition: Callable[[str, Sequence[Item]], Tensor] | None,
    device: torch.device,
    progress: Progress,
) -> Iterator[Made[Item]]:
    """The loop: each item's maps.

    Args:
        networks: what the inputs go through.
        keys: (layer, timestep) of the maps that are taken, all from one pass at one timestep.
        batches: of inputs; an item's draws stand in one batch or in successive ones of the same items.
        condition: gives prompt embeddings (items, 77, D) for the first layer; None for networks without text.
        device: of the networks.
        progress: is advanced by inputs.

    Returns:
        The mean over the item's draws, of each key.
    """
    sums: dict[str, Tensor] = {}
    draws, (first, timestep) = 0, keys[0]
    for batch in batches:
        told = None if condition is None else condition(first, batch.items).repeat_interleave(batch.draws, dim=0)
        maps = networks.features(
            padded(torch.from_numpy(batch.inputs).to(device), batch.size),
            timestep,
            None if told is None else padded(told, batch.size),
            [layer for layer, _ in keys],
        )
        for layer, features in maps.items():
            own = features[: len(batch.inputs)].float()  # the padding falls off here
            part = own.unflatten(0, (len(batch.items), batch.draws)).sum(dim=1)
            sums[layer] = part if layer not in sums else sums[layer] + part
        draws += batch.draws
        progress.advance(len(batch.inputs))
        if batch.is_last:
            means = {layer: (total / draws).cpu() for layer, total in sums.items()}
            for index, item in enumerate(batch.items):
                for layer, mean in means.items():
                    yield item, (layer, timestep), mean[index]
            sums, draws = {}, 0


def noisy_batches(
    items: Sequence[Item], ensemble: int, batch_size: int, load: Callable[[Item, int], NDArray[Any]], ahead: int = 0
) -> Iterator[Batch[Item]]:
    """Batches of noisy latents, which hold whole images where they fit, so that one image's draws are averaged where
    they were computed. load: the noisy latents (c, h, w) of an item's draw. ahead: batches that are read meanwhile."""
    draws_a_pass = min(ensemble, batch_size)
    items_a_pass = max(batch_size // ensemble, 1)
    places = (
        (batch, draws) for batch in chunks(items, items_a_pass) for draws in chunks(range(ensemble), draws_a_pass)
    )

    def latents(place: tuple[Sequence[Item], Sequence[int]]) -> NDArray[Any]:
        return np.stack([load(item, draw) for item in place[0] for draw in place[1]])

    for (batch, draws), loaded in read_ahead(places, latents, ahead):
        yield Batch(batch, loaded, len(draws), items_a_pass * draws_a_pass, draws[-1] == ensemble - 1)


def pixel_batches(work: Work, rows: Sequence[int], size: int, bad: list[ImageError]) -> Iterator[Batch[int]]:
    """Batches of images as networks take them: decoded, resized to squares (3, size, size) in [-1, 1]. bad: grows by
    the images that cannot be read, which no batch holds; progress is advanced by those. Raises `StoreError` for one
    whose file is not what the store was made from."""
    ids, keys = work.store.images.ids, work.store.images.keys
    records = {record.id: record for record in work.dataset.images()}

    def pixels_of(row: int) -> NDArray[np.float32] | ImageError:
        image: ImageRecord | None = records.get(ids[row])
        if image is None:
            return ImageError(ids[row], f"The image {ids[row]!r} is no longer in the dataset.")
        try:
            data = work.dataset.read(image)
            if image_key(image, data) != keys[row]:
                raise StoreError(
                    f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
                )
            return resize_to_square(decode(image, data), size)
        except ImageError as error:
            return error

    at_once = work.compute.batch_size
    with ThreadPoolExecutor(DECODERS) as pool:
        for batch in chunks(rows, at_once):
            good = []
            for row, outcome in zip(batch, pool.map(pixels_of, batch), strict=True):
                if isinstance(outcome, ImageError):
                    bad.append(outcome)
                    work.progress.advance()
                else:
                    good.append((row, outcome))
            if good:
                yield Batch([row for row, _ in good], np.stack([pixels for _, pixels in good]), 1, at_once, True)


def diffusion_maps(
    networks: Networks,
    parts: Iterable[PlannedPasses[Item]],
    noisy: Callable[[Item, int, int], NDArray[Any]],
    condition: Callable[[str, Sequence[Item]], Tensor],
    ensemble: int,
    compute: Compute,
    progress: Progress,
    ahead: int = 0,
) -> Iterator[Made[Item]]:
    """Maps of a diffusion model, part by part.

    Args:
        networks: of the model.
        parts: passes that share a timestep and a prompt.
        noisy: the noisy latents (c, h, w) of an item at a timestep and draw.
        condition: prompt embeddings (items, 77, D) of a layer.
        ensemble: draws that are averaged.
        compute: where the networks are.
        progress: is advanced by passes.
        ahead: batches of noisy latents that are read while passes are made.
    """
    for part in parts:

        def load(item: Item, draw: int, timestep: int = part.timestep) -> NDArray[Any]:
            return noisy(item, timestep, draw)

        batches = noisy_batches(part.rows, ensemble, compute.batch_size, load, ahead)
        yield from passes(networks, part.keys, batches, condition, compute.device, progress)


def pixel_maps(
    found: FoundBackbone, networks: Networks, work: Work, rows: Sequence[int], bad: list[ImageError]
) -> Iterator[Made[int]]:
    """Maps of a backbone that sees images alone, of image rows. bad: see `pixel_batches`."""
    batches = pixel_batches(work, rows, found.extractor.size, bad)
    return passes(networks, found.keys, batches, None, work.compute.device, work.progress)


def told_of(
    store: Store, networks: "DiffusionNetworks", prompt: Prompts, categories: Collection[str]
) -> Callable[[str, Sequence[int]], Tensor]:
    """Prompt embeddings (b, 77, D) of a layer and image rows of some categories, made once; those that layers share
    are made once for all."""
    known = tuple(sorted(categories))

    made: dict[str | None, Mapping[str, Tensor]] = {}

    def told(layer: str, rows: Sequence[int]) -> Tensor:
        key = layer if prompt.differ_by_layer else None
        if key not in made:
            made[key] = prompt.embeddings(int(layer), known, networks.tokenizer, networks.text_encoder)
        return torch.stack([made[key][store.images.categories[row]] for row in rows])

    return told


def noisy_of(store: Store) -> Callable[[int, int, int], NDArray[Any]]:
    """The cached noisy latents (c, h, w) of (image row, timestep, draw)."""
    array_at = cache(store.noisy)

    def load(row: int, timestep: int, draw: int) -> NDArray[Any]:
        array = array_at(timestep)
        assert array is not None, "noisy latents are made before maps"
        return array.read((row, draw))

    return load


def extract_maps(
    work: Work,
    networks: "DiffusionNetworks",
    extractor: Extractor,
    prompt: Prompts,
    parts: Sequence[PlannedPasses[int]],
) -> None:
    """Make the maps of some passes from cached noisy latents, and keep them."""
    store, ensemble = work.store, extractor.ensemble
    unpack(store, [map_path(extractor, *key) for part in parts for key in part.keys], work.progress)
    told = told_of(store, networks, prompt, {store.images.categories[row] for part in parts for row in part.rows})
    work.progress.start("UNet passes", sum(len(part.rows) for part in parts) * ensemble, "passes")
    noisy, ahead = noisy_of(store), REQUESTS
    keep(store, extractor, diffusion_maps(networks, parts, noisy, told, ensemble, work.compute, work.progress, ahead))


def keep(store: Store, extractor: AnyExtractor, maps: Iterable[Made[int]]) -> None:
    """Write maps of image rows under an extractor's name."""
    arrays: dict[MapKey, RowArray] = {}
    with row_writer() as write:
        for row, key, features in maps:
            if key not in arrays:
                channels, height, width = features.shape
                arrays[key] = store.require_maps(extractor, *key, (channels, height, width))
            write(arrays[key], (row,), features.numpy())


def encode_images(work: Work, model: Model, rows: Sequence[int]) -> tuple[int, list[ImageError]]:
    """Every image goes through the VAE once: latents of those of `rows` that have none (how many were encoded, what was
    wrong with the others).

    The VAE is loaded only where a row is missing. What was written stays when a later image fails.
    """
    store, compute = work.store, work.compute
    missing = missing_latents(store, rows)
    if not missing:
        return 0, []
    unpack(store, [LATENTS], work.progress)
    array = store.latents()
    networks = model.load(compute)
    work.progress.start("encoding images (VAE)", len(missing), "images")
    encoded, bad = 0, list[ImageError]()
    with row_writer() as write:
        for batch in pixel_batches(work, missing, store.header.image_size, bad):
            drawn = None
            if store.header.latents is Latents.SAMPLE:
                keys = [store.images.keys[row] for row in batch.items]
                noise = np.stack([posterior_noise(store.header.seed, key, array.row_shape) for key in keys])
                drawn = padded(torch.from_numpy(noise), batch.size).to(compute.device)
            latents = networks.encode(padded(torch.from_numpy(batch.inputs), batch.size).to(compute.device), drawn)
            for row, values in zip(batch.items, latents.cpu().numpy(), strict=False):  # the padding falls off here
                write(array, (row,), values)
            encoded += len(batch.items)
            work.progress.advance(len(batch.items))
    return encoded, bad


def cache_patch_tokens(work: Work, dino: NetworkName, folder: Path, rows: Sequence[int]) -> RowArray:
    """DINOv2's tokens (1 + patches, width) of the images of `rows`, mirrored where the image is; those that are there
    stay.

    Raises `StoreError` where the store has those of another DINOv2, `ImageError` for an image that cannot be read.
    """
    store = work.store
    store.objects.sweep([PATCH_TOKENS])
    known = store.patch_tokens(dino)
    if known is not None and not missing_rows(known, rows):
        return known
    unpack(store, [PATCH_TOKENS], work.progress)
    network = load_dino(folder, work.compute.device, work.compute.dtype)
    array = store.require_patch_tokens(dino, network.tokens_shape)
    missing = missing_rows(array, rows)
    records = {record.id: record for record in work.dataset.images()}
    work.progress.start("DINOv2 tokens", len(missing), "images")
    with row_writer() as write:
        for batch in chunks(missing, work.compute.batch_size):
            images = [records[store.images.ids[row]] for row in batch]
            tokens = network.tokens([decode(image, work.dataset.read(image)) for image in images])
            for row, own in zip(batch, tokens, strict=True):
                write(array, (row,), own.numpy())
            work.progress.advance(len(batch))
    return array


@dataclass(frozen=True, slots=True)
class MapStream:
    """Maps without a disk: the networks, loaded once, and what to make of a few images at a time. wanted: of the
    diffusion model. others: other backbones, each with its networks."""

    work: Work
    networks: "DiffusionNetworks"
    told: Callable[[str, Sequence[int]], Tensor]
    wanted: tuple[MapKey, ...]
    others: tuple[tuple[FoundBackbone, Networks], ...]
    request: MapRequest

    def maps_of(self, rows: Sequence[int], progress: Progress) -> "EncodedMaps":
        """All wanted maps of the images of `rows`, whose latents are cached, as `cache maps` keeps them. Raises
        `ImageError` where another backbone's image cannot be read."""
        work, store, ensemble = replace(self.work, progress=progress), self.work.store, self.request.ensemble
        groups = sharing_a_pass(self.wanted, self.request.told.differ_by_layer)
        total = len(rows) * (len(groups) * ensemble + len(self.others))
        progress.start("UNet passes" if self.wanted else "passes", total, "passes")
        latents = store.latents()
        stored = read_ahead(rows if groups else (), lambda row: latents.read((row,)), REQUESTS)
        clean = {row: values.astype(np.float32) for row, values in stored}

        def noisy(row: int, timestep: int, draw: int) -> NDArray[np.float16]:
            return noisy_latent(store, clean[row], row, timestep, draw).astype(STORED_DTYPE)

        parts = [PlannedPasses(keys, tuple(rows)) for keys in groups]
        bad: list[ImageError] = []
        made = chain(
            diffusion_maps(self.networks, parts, noisy, self.told, ensemble, work.compute, progress),
            *(pixel_maps(found, networks, work, rows, bad) for found, networks in self.others),
        )
        encoding, ids = ENCODINGS[self.request.encoding], store.images.ids
        maps = {(ids[row], *key): encoding.round(features.numpy()) for row, key, features in made}
        if bad:
            raise bad[0]
        return EncodedMaps(maps)


@dataclass(frozen=True, slots=True)
class EncodedMaps:
    """Maps in memory (a `matcher.maps.MapSource`), as they would lie on the disk, keyed by (image id, layer name,
    timestep)."""

    rows: Mapping[tuple[str, str, int | None], NDArray[Any]]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w), float16. Raises `StoreError` where the model overflowed."""
        row = self.rows[image, layer.layer, layer.timestep]
        if not is_finite(row):
            at = "" if layer.timestep is None else f" at t = {layer.timestep}"
            raise StoreError(
                f"The map of {image!r}, layer {layer.layer}{at}, is not finite in {row.dtype}: the model "
                "overflowed; try --dtype float32."
            )
        return torch.from_numpy(row)
