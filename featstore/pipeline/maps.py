"""Stage 2: noisy latents and a prompt through the UNet, as far as the layers need, to feature maps that are kept."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.load import load_text_encoder, load_tokenizer, load_unet
from featstore.backbones.location import ModelLocation
from featstore.backbones.unet import CutUNet
from featstore.pipeline.batches import chunks, padded
from featstore.pipeline.compute import Compute
from featstore.pipeline.plan import MapPlan
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import Extractor, map_path
from featstore.store.overlap import reads_ahead, row_writer
from featstore.store.pack import unpack
from featstore.store.rows import Row, RowArray
from featstore.store.store import Store
from matcher.maps import read_ahead


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
