"""Stage 2 without a disk: maps of a few images at a time, made from their latents and kept in memory only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.load import load_unet
from featstore.backbones.unet import CutUNet
from featstore.errors import StoreError
from featstore.pipeline.compute import Compute
from featstore.pipeline.maps import LayerEmbeddings, Passes
from featstore.pipeline.needed import model_of
from featstore.pipeline.noisy import noisy_latent
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import Stored
from featstore.store.overlap import reads_ahead
from featstore.store.row_encoding import RowEncoding, encoding_for
from featstore.store.rows import Row
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.maps import LayerSpec, read_ahead


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
