"""Maps without a disk: those of a few images at a time, made from their latents and kept in memory only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import MapKey, Networks
from featstore.backbones.registry import is_diffusion
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, StoreError
from featstore.pipeline.features import LayerEmbeddings, diffusion_maps, pixel_batches, pixel_maps
from featstore.pipeline.needed import FoundBackbone, find_backbones, model_of
from featstore.pipeline.noisy import noisy_latent
from featstore.pipeline.plan import MapRequest, PlannedPasses, sharing_a_pass
from featstore.progress import Progress
from featstore.store.overlap import reads_ahead
from featstore.store.row_encoding import RowEncoding, encoding_for
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.configuration import LayerSpec
from matcher.maps import read_ahead


@dataclass(frozen=True, slots=True)
class MapStream:
    """The networks, loaded once, and what to make. wanted: of the diffusion model. others: other backbones, each with
    its networks."""

    store: Store
    dataset: Dataset
    networks: Networks
    prompts: LayerEmbeddings
    wanted: tuple[MapKey, ...]
    others: tuple[tuple[FoundBackbone, Networks], ...]
    request: MapRequest

    def maps_of(self, rows: Sequence[int], progress: Progress) -> "EncodedMaps":
        """All wanted maps of the images of `rows`, whose latents are cached, as `cache maps` keeps them. Raises
        `ImageError` where another backbone's image cannot be read."""
        ensemble, compute = self.request.ensemble, self.request.compute
        groups = sharing_a_pass(self.wanted, self.request.told.differ_by_layer)
        parts = [PlannedPasses(keys[0][1], tuple(layer for layer, _ in keys), tuple(rows)) for keys in groups]
        total = len(rows) * (len(parts) * ensemble + len(self.others))
        progress.start("UNet passes" if self.wanted else "passes", total, "passes")
        latents = self.store.latents()
        stored = read_ahead(rows if parts else (), lambda row: latents.read((row,)), reads_ahead(self.store.path))
        clean = {row: values.astype(np.float32) for row, values in stored}

        def noisy(row: int, timestep: int, draw: int) -> NDArray[np.float16]:
            return noisy_latent(self.store, clean[row], row, timestep, draw).astype(STORED_DTYPE)

        told = self.prompts.of_rows(self.store)
        made = [diffusion_maps(self.networks, parts, noisy, told, ensemble, compute, progress)]
        bad: list[ImageError] = []
        for found, networks in self.others:
            size = found.extractor.size
            batches = pixel_batches(self.store, self.dataset, rows, size, compute.batch_size, bad, progress)
            made.append(pixel_maps(networks, [*found.shapes], batches, compute, progress))
        encoding = encoding_for(self.request.stored.value)
        maps = {
            (self.store.images.ids[row], *key): encoding.encode(features.numpy())
            for row, key, features in chain.from_iterable(made)
        }
        if bad:
            raise bad[0]
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
            at = "" if layer.timestep is None else f" at t = {layer.timestep}"
            raise StoreError(
                f"The map of {image!r}, layer {layer.layer}{at}, is not finite in {self.encoding.dtype}: the model "
                "overflowed; try --dtype float32."
            )
        return torch.from_numpy(self.encoding.decode(row))


def open_stream(
    store: Store,
    dataset: Dataset,
    categories: Sequence[str],
    wanted: Sequence[MapKey],
    request: MapRequest,
) -> MapStream:
    """Load what making maps takes. Raises `ModelError` and `StoreError` where the store's model is not at hand."""
    own = tuple(key for key in wanted if is_diffusion(key[0]))
    store.header.schedule.check_timesteps(timestep for _, timestep in own if timestep is not None)
    compute = request.compute
    networks = model_of(store).load(compute, [layer for layer, _ in own] or ["1"])
    found = find_backbones(store, [layer for layer, _ in wanted], request)
    others = tuple((one, one.backbone.load(compute, [*one.shapes])) for one in found.values())
    return MapStream(
        store, dataset, networks, LayerEmbeddings(networks, request.told, categories), own, others, request
    )
