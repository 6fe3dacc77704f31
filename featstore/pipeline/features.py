"""The one loop from images to feature maps: batches of inputs, a pass of a backbone's networks each, the mean over an
image's noise draws. Commands, Python and pairs' evaluation differ in where inputs come from and where maps go: into a
store, or into memory. What is kept of images beside maps is made here as well: latents and DINOv2's tokens.

All runs at once: inputs are loaded ahead of the networks in threads (`loaded`), results leave a GPU while it computes
the next (`brought`), rows are encoded and written behind (`row_writer`). What that holds in memory is bounded in each
of the three places.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from featstore.backbones.base import Compute, Condition, Finishing, MapKey, NetworkName, Networks, joined
from featstore.backbones.dino import load_dino
from featstore.backbones.models import Model
from featstore.backbones.noise import Latents, posterior_noise
from featstore.backbones.registry import block_of
from featstore.datasets.pictures import decode, image_key, resize_to_square
from featstore.datasets.records import ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.plan import (
    FoundBackbone,
    MapRequest,
    Noisy,
    PlannedPasses,
    Work,
    missing_latents,
    missing_rows,
    noisy_latents,
    sharing_a_pass,
)
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import LATENTS, PATCH_TOKENS, AnyExtractor, Extractor, map_path
from featstore.store.pack import unpack
from featstore.store.rows import ENCODINGS, RowArray, is_finite, row_writer
from featstore.store.store import Store
from matcher.configuration import LayerSpec
from matcher.maps import read_ahead

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks

Item = TypeVar("Item")
Value = TypeVar("Value")
Made = tuple[Item, MapKey, Tensor]
"""A map (C, h, w), on the CPU, with whose it is and its (layer, timestep)."""

KEPT_AS = torch.float16
"""In which maps that a store keeps leave the device."""

LEAST_AHEAD = 8
"""Images whose inputs are loaded ahead of the networks, at least."""


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
class Pass(Generic[Item]):
    """What goes through networks together. items: images, or images of pairs. keys: (layer, timestep) of the maps that
    are taken, all at one timestep; none of latents. draws: of each item's noise; one of what has no noise. size: inputs
    that it is filled up to. is_last: whether the items have no further draws in the next pass."""

    items: Sequence[Item]
    keys: Sequence[MapKey]
    draws: Sequence[int]
    size: int
    is_last: bool


Batch = tuple[Pass[Item], NDArray[Any]]
"""A pass and its inputs (items * draws, ...), an item's draws side by side: noisy latents, or pictures (3, S, S) of 0
to 255."""


def loaded(
    planned: Iterable[Pass[Item]], load: Callable[[Pass[Item], Item], Value], at_once: int
) -> Iterator[tuple[Pass[Item], list[Value]]]:
    """Each pass with what `load` gives for its items. Those of the next passes are loaded in threads meanwhile: of two
    passes of `at_once` items, or of `LEAST_AHEAD` items where these are more."""
    for_threads, for_networks = tee(planned)
    places = ((own, item) for own in for_threads for item in own.items)
    values = read_ahead(places, lambda place: load(*place), max(2 * at_once, LEAST_AHEAD))
    for own in for_networks:
        yield own, [value for _, value in islice(values, len(own.items))]


def on_device(inputs: NDArray[Any], device: torch.device) -> Tensor:
    """The inputs of a batch where networks take them: pictures of 0 to 255 in [-1, 1], latents as they are."""
    values = torch.from_numpy(inputs)
    if device.type == "cuda":
        # from ordinary memory the copy would wait for all that the device has still to compute
        values = values.pin_memory().to(device, non_blocking=True)
    values = values.to(device)
    # divided by a tensor of the device: by a number CUDA multiplies with its inverse, which rounds otherwise
    pictures = values.dtype is torch.uint8
    return values.float().div_(torch.full((), 127.5, device=device)).sub_(1) if pictures else values


def brought(made: Iterable[tuple[Item, Sequence[Tensor]]]) -> Iterator[tuple[Item, Sequence[Tensor]]]:
    """What was made on a device, as it arrives on the CPU. From CUDA it is copied to pinned memory while the next is
    computed, and so comes one later; two results are held at most."""
    waiting: tuple[Item, Sequence[Tensor], torch.cuda.Event] | None = None
    for item, values in made:
        if values[0].device.type != "cuda":
            yield item, [own.cpu() for own in values]
            continue
        copies = [torch.empty_like(own, device="cpu", pin_memory=True).copy_(own, non_blocking=True) for own in values]
        copied = torch.cuda.current_stream(values[0].device).record_event()
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[:2]
        waiting = item, copies, copied
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[:2]


@torch.no_grad()
def passes(
    networks: Networks,
    batches: Iterable[Batch[Item]],
    condition: Callable[[str, Sequence[Item]], Condition] | None,
    device: torch.device,
    progress: Progress,
    kept: torch.dtype = torch.float32,
) -> Iterator[Made[Item]]:
    """The loop: each item's maps.

    Args:
        networks: what the inputs go through.
        batches: of inputs; an item's draws stand in one batch or in successive ones of the same items.
        condition: tells what networks are told of items, for the first layer; None for networks without text.
        device: of the networks.
        progress: is advanced by inputs.
        kept: the dtype in which maps leave the device; means over draws are float32.

    Returns:
        The mean over the item's draws, of each of its passes' keys.
    """

    def means() -> Iterator[tuple[Pass[Item], Sequence[Tensor]]]:
        sums: dict[str, Tensor] = {}
        draws = 0
        for own, inputs in batches:
            (first, timestep), each = own.keys[0], len(own.draws)
            told = None
            if condition is not None:
                told = condition(first, own.items).each(Tensor.repeat_interleave, each, 0).each(padded, own.size)
            maps = networks.features(
                padded(on_device(inputs, device), own.size),
                timestep,
                told,
                [layer for layer, _ in own.keys],
            )
            for layer, features in maps.items():
                # the padding falls off here
                part = features[: len(inputs)].float().unflatten(0, (len(own.items), each)).sum(dim=1)
                sums[layer] = part if layer not in sums else sums[layer] + part
            draws += each
            progress.advance(len(inputs))
            if own.is_last:
                averaged = {layer: sums[layer] / draws for layer, _ in own.keys}
                if isinstance(networks, Finishing):
                    averaged = {layer: networks.finished(layer, timestep, mean) for layer, mean in averaged.items()}
                yield own, [averaged[layer].to(kept) for layer, _ in own.keys]
                sums, draws = {}, 0

    for own, found in brought(means()):
        for index, item in enumerate(own.items):
            for key, mean in zip(own.keys, found, strict=True):
                yield item, key, mean[index]


def diffusion_maps(
    networks: Networks,
    parts: Iterable[PlannedPasses[Item]],
    noisy: Noisy[Item],
    condition: Callable[[str, Sequence[Item]], Condition],
    ensemble: int,
    compute: Compute,
    progress: Progress,
    kept: torch.dtype = torch.float32,
) -> Iterator[Made[Item]]:
    """Maps of a diffusion model, part by part. Passes hold whole images where they fit, so that one image's draws are
    averaged where they were computed.

    Args:
        networks: of the model.
        parts: passes that share a timestep and a prompt.
        noisy: hands out noisy latents.
        condition: what networks are told of items, for a layer.
        ensemble: draws that are averaged.
        compute: where the networks are.
        progress: is advanced by passes.
        kept: see `passes`.
    """
    draws_a_pass = min(ensemble, compute.batch_size)
    items_a_pass = max(compute.batch_size // ensemble, 1)
    planned = (
        Pass(items, part.keys, draws, items_a_pass * draws_a_pass, draws[-1] == ensemble - 1)
        for part in parts
        for items in chunks(part.rows, items_a_pass)
        for draws in chunks(range(ensemble), draws_a_pass)
    )

    def latents(own: Pass[Item], item: Item) -> NDArray[Any]:
        return noisy(item, own.keys[0][1], own.draws)

    batches = ((own, np.concatenate(values)) for own, values in loaded(planned, latents, items_a_pass))
    return passes(networks, batches, condition, compute.device, progress, kept)


def _image_passes(rows: Sequence[int], keys: Sequence[MapKey], at_once: int) -> Iterator[Pass[int]]:
    """Of images that go through networks as they are."""
    return (Pass(items, keys, (0,), at_once, is_last=True) for items in chunks(rows, at_once))


def pixel_batches(
    work: Work, rows: Sequence[int], size: int, bad: list[ImageError], keys: Sequence[MapKey] = ()
) -> Iterator[Batch[int]]:
    """Batches of images, decoded and made squares as those of the store, (3, size, size) of 0 to 255. bad: grows by the
    images that cannot be read, which no batch holds; progress is advanced by those. Raises `StoreError` for one whose
    file is not what the store was made from."""
    known = work.store.images
    records = {record.id: record for record in work.dataset.images()}

    def pixels_of(_: Pass[int], row: int) -> NDArray[np.uint8] | ImageError:
        image: ImageRecord | None = records.get(known.ids[row])
        if image is None:
            return ImageError(known.ids[row], f"The image {known.ids[row]!r} is no longer in the dataset.")
        try:
            data = work.dataset.read(image)
            if image_key(image, data) != known.keys[row]:
                raise StoreError(
                    f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
                )
            return resize_to_square(decode(image, data), size, work.store.header.pad)
        except ImageError as error:
            return error

    at_once = work.compute.batch_size
    for own, outcomes in loaded(_image_passes(rows, keys, at_once), pixels_of, at_once):
        faults = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
        bad += faults
        work.progress.advance(len(faults))
        good = [(row, found) for row, found in zip(own.items, outcomes, strict=True) if isinstance(found, np.ndarray)]
        if good:
            yield replace(own, items=[row for row, _ in good]), np.stack([pixels for _, pixels in good])


def pixel_maps(
    found: FoundBackbone, networks: Networks, work: Work, rows: Sequence[int], bad: list[ImageError]
) -> Iterator[Made[int]]:
    """Maps of a backbone that sees images alone, of image rows. bad: see `pixel_batches`."""
    batches = pixel_batches(work, rows, found.extractor.size, bad, found.keys)
    return passes(networks, batches, None, work.compute.device, work.progress, KEPT_AS)


def told_of(
    store: Store, networks: "DiffusionNetworks", prompt: Prompts, categories: Collection[str]
) -> Callable[[str, Sequence[int]], Condition]:
    """What networks are told of a layer and image rows of some categories, made once; what layers share is made once
    for all."""
    known = tuple(sorted(categories))

    made: dict[str | None, Mapping[str, Condition]] = {}

    def told(layer: str, rows: Sequence[int]) -> Condition:
        key = layer if prompt.differ_by_layer else None
        if key not in made:
            made[key] = prompt.embeddings(block_of(layer), known, networks.text)
        return joined([made[key][store.images.categories[row]] for row in rows])

    return told


def extract_maps(
    work: Work,
    networks: "DiffusionNetworks",
    extractor: Extractor,
    prompt: Prompts,
    parts: Sequence[PlannedPasses[int]],
) -> None:
    """Make the maps of some passes, of images whose latents are cached, and keep them."""
    store, ensemble = work.store, extractor.ensemble
    unpack(store, [map_path(extractor, *key) for part in parts for key in part.keys], work.progress)
    told = told_of(store, networks, prompt, {store.images.categories[row] for part in parts for row in part.rows})
    work.progress.start("UNet passes", sum(len(part.rows) for part in parts) * ensemble, "passes")
    noisy = noisy_latents(store, {part.timestep for part in parts})
    keep(store, extractor, diffusion_maps(networks, parts, noisy, told, ensemble, work.compute, work.progress, KEPT_AS))


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
    work.progress.wait("loading the model")
    networks = model.load(compute)
    work.progress.start("encoding images (VAE)", len(missing), "images")
    bad = list[ImageError]()

    def latents() -> Iterator[tuple[Sequence[int], Sequence[Tensor]]]:
        for own, pixels in pixel_batches(work, missing, store.header.image_size, bad):
            drawn = None
            if store.header.latents is Latents.SAMPLE:
                keys = [store.images.keys[row] for row in own.items]
                noise = np.stack([posterior_noise(store.header.seed, key, array.row_shape) for key in keys])
                drawn = padded(on_device(noise, compute.device), own.size)
            found = networks.encode(padded(on_device(pixels, compute.device), own.size), drawn)
            yield own.items, [found[: len(own.items)].half()]  # the padding falls off here
            work.progress.advance(len(own.items))

    encoded = 0
    with row_writer() as write:
        for rows, (found,) in brought(latents()):
            for row, values in zip(rows, found.numpy(), strict=True):
                write(array, (row,), values)
            encoded += len(rows)
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

    def picture(_: Pass[int], row: int) -> Image.Image:
        image = records[store.images.ids[row]]
        return decode(image, work.dataset.read(image))

    at_once = work.compute.batch_size
    with row_writer() as write:
        for own, pictures in loaded(_image_passes(missing, (), at_once), picture, at_once):
            for row, tokens in zip(own.items, network.tokens(pictures), strict=True):
                write(array, (row,), tokens.numpy())
            work.progress.advance(len(own.items))
    return array


@dataclass(frozen=True, slots=True)
class MapStream:
    """Maps without a disk: the networks, loaded once, and what to make of a few images at a time. wanted: of the
    diffusion model, of which `noisy` hands out the noisy latents. others: other backbones, each with its networks."""

    work: Work
    networks: "DiffusionNetworks"
    noisy: Noisy[int]
    told: Callable[[str, Sequence[int]], Condition]
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
        parts = [PlannedPasses(keys, tuple(rows)) for keys in groups]
        bad: list[ImageError] = []
        made = chain(
            diffusion_maps(self.networks, parts, self.noisy, self.told, ensemble, work.compute, progress, KEPT_AS),
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
