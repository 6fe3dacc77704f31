"""The one loop from images to feature maps: batches of inputs, a pass of a backbone's networks each, the mean over an
image's noise draws. Commands, Python and pairs' evaluation differ in where inputs come from and where maps go."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Compute, MapKey, Networks
from featstore.datasets.pictures import decode, image_key, resize_to_square
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.plan import MapPlan, PlannedPasses
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import AnyExtractor, Extractor, map_path
from featstore.store.pack import unpack
from featstore.store.rows import RowArray, reads_ahead, row_writer
from featstore.store.store import Store
from matcher.maps import read_ahead

if TYPE_CHECKING:
    from featstore.backbones.diffusion_networks import DiffusionNetworks

Item = TypeVar("Item")

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
    if missing <= 0:
        return batch
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])


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
    timestep: int | None,
    layers: Sequence[str],
    batches: Iterable[Batch[Item]],
    condition: Callable[[Sequence[Item]], Tensor] | None,
    device: torch.device,
    progress: Progress,
) -> Iterator[tuple[Item, dict[str, Tensor]]]:
    """The loop: each item with its maps by layer.

    Args:
        networks: what the inputs go through.
        timestep: of the noise, None for networks that know none.
        layers: whose maps are taken, all from one pass.
        batches: of inputs; an item's draws stand in one batch or in successive ones of the same items.
        condition: gives prompt embeddings (items, 77, D); None for networks without text.
        device: of the networks.
        progress: is advanced by inputs.

    Returns:
        Maps (C, h, w), float32 on the CPU, the mean over the item's draws.
    """
    sums: dict[str, Tensor] = {}
    draws = 0
    for batch in batches:
        told = None if condition is None else condition(batch.items).repeat_interleave(batch.draws, dim=0)
        maps = networks.features(
            padded(torch.from_numpy(batch.inputs).to(device), batch.size),
            timestep,
            None if told is None else padded(told, batch.size),
            layers,
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
                yield item, {layer: mean[index] for layer, mean in means.items()}
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


def pixel_batches(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    size: int,
    batch_size: int,
    bad: list[ImageError],
    progress: Progress,
) -> Iterator[Batch[int]]:
    """Batches of images as networks take them: decoded, resized to squares (3, size, size) in [-1, 1]. bad: grows by
    the images that cannot be read, which no batch holds; `progress` is advanced by those. Raises `StoreError` for one
    whose file is not what the store was made from."""
    records = {record.id: record for record in dataset.images()}

    def pixels_of(row: int) -> NDArray[np.float32] | ImageError:
        image = records.get(store.images.ids[row])
        if image is None:
            gone = store.images.ids[row]
            return ImageError(gone, f"The image {gone!r} is no longer in the dataset.")
        try:
            return _pixels(store.images.keys[row], dataset, image, size)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(DECODERS) as pool:
        for batch in chunks(rows, batch_size):
            good = []
            for row, outcome in zip(batch, pool.map(pixels_of, batch), strict=True):
                if isinstance(outcome, ImageError):
                    bad.append(outcome)
                    progress.advance()
                else:
                    good.append((row, outcome))
            if good:
                yield Batch([row for row, _ in good], np.stack([pixels for _, pixels in good]), 1, batch_size, True)


def _pixels(key: str, dataset: Dataset, image: ImageRecord, size: int) -> NDArray[np.float32]:
    data = dataset.read(image)
    if image_key(image, data) != key:
        raise StoreError(
            f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
        )
    return resize_to_square(decode(image, data), size)


def diffusion_maps(
    networks: Networks,
    parts: Iterable[PlannedPasses[Item]],
    noisy: Callable[[Item, int, int], NDArray[Any]],
    condition: Callable[[str, Sequence[Item]], Tensor],
    ensemble: int,
    compute: Compute,
    progress: Progress,
    ahead: int = 0,
) -> Iterator[tuple[Item, MapKey, Tensor]]:
    """Maps (C, h, w) of a diffusion model, part by part: (item, (layer, timestep), map).

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
        timestep, first = part.timestep, part.layers[0]
        assert timestep is not None, "layers of a diffusion model have timesteps"

        def load(item: Item, draw: int, timestep: int = timestep) -> NDArray[Any]:
            return noisy(item, timestep, draw)

        def told(items: Sequence[Item], layer: str = first) -> Tensor:
            return condition(layer, items)

        batches = noisy_batches(part.rows, ensemble, compute.batch_size, load, ahead)
        for item, maps in passes(networks, timestep, part.layers, batches, told, compute.device, progress):
            for layer, features in maps.items():
                yield item, (layer, timestep), features


def pixel_maps(
    networks: Networks,
    layers: Sequence[str],
    batches: Iterable[Batch[Item]],
    compute: Compute,
    progress: Progress,
) -> Iterator[tuple[Item, MapKey, Tensor]]:
    """The same of a backbone that sees images alone."""
    for item, maps in passes(networks, None, layers, batches, None, compute.device, progress):
        for layer, features in maps.items():
            yield item, (layer, None), features


class LayerEmbeddings:
    """Prompt embeddings of some categories, layer by layer; those that layers share are made once."""

    def __init__(self, networks: "DiffusionNetworks", prompt: Prompts, categories: Collection[str]) -> None:
        self._networks, self._prompt, self._categories = networks, prompt, tuple(sorted(categories))
        self._made: dict[str | None, dict[str, Tensor]] = {}

    def of(self, layer: str) -> dict[str, Tensor]:
        """Embeddings (77, D) by category."""
        key = layer if self._prompt.differ_by_layer else None
        if key not in self._made:
            text = self._networks.tokenizer, self._networks.text_encoder
            self._made[key] = self._prompt.embeddings(int(layer), self._categories, *text)
        return self._made[key]

    def of_rows(self, store: Store) -> Callable[[str, Sequence[int]], Tensor]:
        """What `diffusion_maps` takes as `condition` for images of a store."""
        categories = store.images.categories
        return lambda layer, rows: torch.stack([self.of(layer)[categories[row]] for row in rows])  # (b, 77, D)


def noisy_of(store: Store) -> Callable[[int, int, int], NDArray[Any]]:
    """The cached noisy latents (c, h, w) of (image row, timestep, draw)."""
    array_at = cache(store.noisy)

    def load(row: int, timestep: int, draw: int) -> NDArray[Any]:
        array = array_at(timestep)
        assert array is not None, "noisy latents are made before maps"
        return array.read((row, draw))

    return load


def extract_maps(
    store: Store,
    networks: "DiffusionNetworks",
    extractor: Extractor,
    prompt: Prompts,
    plan: MapPlan,
    compute: Compute,
    progress: Progress,
) -> None:
    """Make the maps of a plan from cached noisy latents, and keep them."""
    if not plan.parts:
        return
    unpack(store, [map_path(extractor, layer, part.timestep) for part in plan.parts for layer in part.layers], progress)
    categories = {store.images.categories[row] for part in plan.parts for row in part.rows}
    told = LayerEmbeddings(networks, prompt, categories).of_rows(store)
    progress.start("UNet passes", plan.images * extractor.ensemble, "passes")
    ahead = reads_ahead(store.path)
    keep(
        store,
        extractor,
        diffusion_maps(networks, plan.parts, noisy_of(store), told, extractor.ensemble, compute, progress, ahead),
    )


def keep(store: Store, extractor: AnyExtractor, maps: Iterable[tuple[int, MapKey, Tensor]]) -> None:
    """Write maps of image rows under an extractor's name."""
    arrays: dict[MapKey, RowArray] = {}
    with row_writer(store.path) as write:
        for row, key, features in maps:
            if key not in arrays:
                channels, height, width = features.shape
                arrays[key] = store.require_maps(extractor, *key, (channels, height, width))
            write(arrays[key], (row,), features.numpy())
