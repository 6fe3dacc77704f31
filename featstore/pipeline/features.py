"""Batches of equal size, so that a row does not depend on which rows a run happened to compute with it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Compute
from featstore.backbones.diffusion_networks import CutUNet, load_text_encoder, load_tokenizer, load_unet
from featstore.backbones.model_file import ModelLocation
from featstore.datasets.pictures import decode, image_key, resize_to_square
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError
from featstore.pipeline.needed import model_of
from featstore.pipeline.noisy import noisy_latent
from featstore.pipeline.plan import MapPlan
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import Extractor, Stored, map_path
from featstore.store.overlap import reads_ahead, row_writer
from featstore.store.pack import unpack
from featstore.store.row_encoding import RowEncoding, encoding_for
from featstore.store.rows import Row, RowArray
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.maps import LayerSpec, read_ahead

Item = TypeVar("Item")


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


DECODERS = 4
"""Threads that decode and resize the images of a batch; Pillow lets go of the interpreter while it does."""


@dataclass(frozen=True, slots=True, eq=False)
class PixelBatch:
    """rows: of the images that could be read. pixels: theirs, (3, size, size) in [-1, 1] each. bad: what was wrong with
    the others."""

    rows: tuple[int, ...]
    pixels: tuple[NDArray[np.float32], ...]
    bad: tuple[ImageError, ...]


def pixel_batches(
    store: Store, dataset: Dataset, rows: Sequence[int], size: int, batch_size: int
) -> Iterator[PixelBatch]:
    """The images of `rows` as squares of `size` pixels a side, `batch_size` at a time.

    Raises `StoreError` for one whose file is not what the store was made from.
    """
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
            outcomes = list(zip(batch, pool.map(pixels_of, batch), strict=True))
            good = [(row, outcome) for row, outcome in outcomes if not isinstance(outcome, ImageError)]
            yield PixelBatch(
                tuple(row for row, _ in good),
                tuple(pixels for _, pixels in good),
                tuple(outcome for _, outcome in outcomes if isinstance(outcome, ImageError)),
            )


def _pixels(key: str, dataset: Dataset, image: ImageRecord, size: int) -> NDArray[np.float32]:
    data = dataset.read(image)
    if image_key(image, data) != key:
        raise StoreError(
            f"The file of image {image.id!r} has changed since `cache build`: run `dualsd cache build` again."
        )
    return resize_to_square(decode(image, data), size)


def extract_maps(
    store: Store,
    location: ModelLocation,
    extractor: Extractor,
    prompt: Prompts,
    plan: MapPlan,
    compute: Compute,
    progress: Progress,
) -> None:
    """Make the maps of a plan from cached noisy latents: raw UNet features, averaged over the noise draws."""
    if not plan.parts:
        return
    unpack(store, [map_path(extractor, layer, part.timestep) for part in plan.parts for layer in part.layers], progress)
    categories = {store.images.categories[row] for part in plan.parts for row in part.rows}
    embeddings = LayerEmbeddings(location, prompt, categories, compute)
    last = max(layer for part in plan.parts for layer in part.layers)
    unet = CutUNet(load_unet(location, compute.device, compute.dtype), last)
    progress.start("UNet passes", plan.images * extractor.ensemble, "passes")
    ahead = reads_ahead(store.path)
    with row_writer(store.path) as write:
        for part in plan.parts:
            arrays: dict[int, RowArray] = {}
            noisy = store.noisy(part.timestep)
            assert noisy is not None, "noisy latents are made before maps"
            prompts = embeddings.of(part.layers[0])
            passes = Passes(unet, noisy.read, prompts, store.images.categories, extractor.ensemble, ahead)
            for row, maps in passes.of(part.timestep, part.layers, part.rows, compute, progress):
                for layer, mean in maps.items():
                    if layer not in arrays:
                        channels, height, width = mean.shape
                        arrays[layer] = store.require_maps(extractor, layer, part.timestep, (channels, height, width))
                    write(arrays[layer], (row,), mean.numpy())


@dataclass(frozen=True, slots=True)
class Passes:
    """UNet passes over images. noisy: the noisy latents (4, h, w) of (image row, draw) at the timestep. prompts:
    embeddings (77, D) by category, categories: of each image row. ensemble: draws that are averaged. ahead: batches of
    noisy latents that are read while passes are made."""

    unet: CutUNet
    noisy: Callable[[Row], NDArray[np.float16]]
    prompts: Mapping[str, Tensor]
    categories: Sequence[str]
    ensemble: int
    ahead: int = 0

    @torch.no_grad()
    def of(
        self, timestep: int, layers: Sequence[int], rows: Sequence[int], compute: Compute, progress: Progress
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Each row with its maps by layer, (C, h, w) float32 on the CPU, the mean over its draws."""
        # A batch holds whole images where they fit, so that one image's draws are averaged where they were computed.
        draws_a_pass = min(self.ensemble, compute.batch_size)
        images_a_pass = max(compute.batch_size // self.ensemble, 1)
        draws_in_turn = tuple(chunks(range(self.ensemble), draws_a_pass))
        places = ((batch, draws) for batch in chunks(rows, images_a_pass) for draws in draws_in_turn)
        loaded = read_ahead(places, self._latents, self.ahead)
        for batch in chunks(rows, images_a_pass):
            embeddings = torch.stack([self.prompts[self.categories[row]] for row in batch])  # (b, 77, D)
            sums: dict[int, Tensor] = {}
            for draws in draws_in_turn:
                _, latents = next(loaded)
                full = images_a_pass * draws_a_pass
                maps = self.unet.tap(
                    padded(torch.from_numpy(latents).to(compute.device), full),
                    timestep,
                    padded(embeddings.repeat_interleave(len(draws), dim=0), full),
                    layers,
                )
                for layer, features in maps.items():
                    part = features[: len(latents)].float().unflatten(0, (len(batch), len(draws))).sum(dim=1)
                    sums[layer] = part if layer not in sums else sums[layer] + part
                progress.advance(len(latents))
            means = {layer: (total / self.ensemble).cpu() for layer, total in sums.items()}
            for index, row in enumerate(batch):
                yield row, {layer: mean[index] for layer, mean in means.items()}

    def _latents(self, place: tuple[Sequence[int], Sequence[int]]) -> NDArray[np.float16]:
        """Noisy latents (b * d, 4, h, w) of a batch's images and draws."""
        batch, draws = place
        return np.stack([self.noisy((row, draw)) for row in batch for draw in draws])


class LayerEmbeddings:
    """Prompt embeddings of some categories, layer by layer; those that layers share are made once."""

    def __init__(self, location: ModelLocation, prompt: Prompts, categories: Collection[str], compute: Compute) -> None:
        self._prompt, self._categories = prompt, tuple(sorted(categories))
        self._tokenizer = load_tokenizer(location)
        self._encoder = load_text_encoder(location, compute.device, compute.dtype)
        self._made: dict[int | None, dict[str, Tensor]] = {}

    def of(self, layer: int) -> dict[str, Tensor]:
        """Embeddings (77, D) by category."""
        key = layer if self._prompt.differ_by_layer else None
        if key not in self._made:
            self._made[key] = self._prompt.embeddings(layer, self._categories, self._tokenizer, self._encoder)
        return self._made[key]


@dataclass(frozen=True, slots=True)
class MapStream:
    """The networks, loaded once, and what to make: `wanted` (layer, timestep). share_passes: whether layers have common
    prompts."""

    store: Store
    unet: CutUNet
    prompts: LayerEmbeddings
    share_passes: bool
    wanted: tuple[tuple[int, int], ...]
    ensemble: int
    compute: Compute
    stored: Stored

    def maps_of(self, rows: Sequence[int], progress: Progress) -> "EncodedMaps":
        """All wanted maps of the images of `rows`, whose latents are cached, as `cache maps` keeps them."""
        parts: dict[tuple[int, int | None], list[int]] = {}
        for layer, timestep in self.wanted:
            parts.setdefault((timestep, None if self.share_passes else layer), []).append(layer)
        progress.start("UNet passes", len(rows) * len(parts) * self.ensemble, "passes")
        latents = self.store.latents()
        stored = read_ahead(rows, lambda row: latents.read((row,)), reads_ahead(self.store.path))
        clean = {row: values.astype(np.float32) for row, values in stored}
        maps: dict[tuple[str, str, int | None], NDArray[Any]] = {}
        encoding = encoding_for(self.stored.value)
        for (timestep, _), layers in parts.items():

            def noisy(place: Row, timestep: int = timestep) -> NDArray[np.float16]:
                row, draw = place
                made = noisy_latent(self.store, clean[row], row, timestep, draw)
                return made.astype(STORED_DTYPE)

            passes = Passes(self.unet, noisy, self.prompts.of(layers[0]), self.store.images.categories, self.ensemble)
            for row, made in passes.of(timestep, layers, rows, self.compute, progress):
                for layer, mean in made.items():
                    maps[self.store.images.ids[row], str(layer), timestep] = encoding.encode(mean.numpy())
        return EncodedMaps(encoding, maps)


@dataclass(frozen=True, slots=True)
class EncodedMaps:
    """Maps in memory (a `matcher.maps.MapSource`), as they would lie on the disk, keyed by (image id, layer name,
    timestep)."""

    encoding: RowEncoding
    rows: Mapping[tuple[str, str, int | None], NDArray[Any]]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w), float16, or float32 of one that is kept as int8. Raises `StoreError` where the model
        overflowed."""
        row = self.rows[image, layer.layer, layer.timestep]
        if not self.encoding.is_row(row):
            raise StoreError(
                f"The map of {image!r}, layer {layer.layer} at t = {layer.timestep}, is not finite in "
                f"{self.encoding.dtype}: the model overflowed; try --dtype float32."
            )
        return torch.from_numpy(self.encoding.decode(row))


def open_stream(
    store: Store,
    categories: Sequence[str],
    wanted: Sequence[tuple[int, int]],
    prompt: Prompts,
    ensemble: int,
    compute: Compute,
    stored: Stored = Stored.FLOAT16,
) -> MapStream:
    """Load what making maps takes. Raises `ModelError` and `StoreError` where the store's model is not at hand."""
    store.header.schedule.check_timesteps(timestep for _, timestep in wanted)
    location = model_of(store).location
    return MapStream(
        store,
        CutUNet(load_unet(location, compute.device, compute.dtype), max(layer for layer, _ in wanted)),
        LayerEmbeddings(location, prompt, categories, compute),
        not prompt.differ_by_layer,
        tuple(wanted),
        ensemble,
        compute,
        stored,
    )
