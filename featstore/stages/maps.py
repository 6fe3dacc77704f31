"""Stage 2: noisy latents and a prompt through the UNet, as far as the layers need, to feature maps that are kept."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbone.load import load_text_encoder, load_tokenizer, load_unet
from featstore.backbone.location import ModelLocation
from featstore.backbone.unet import CutUNet
from featstore.progress import Progress
from featstore.prompts.text import TextPrompt, encode_texts
from featstore.stages.batches import chunks, padded
from featstore.stages.compute import Compute
from featstore.stages.plan import MapPlan
from featstore.store.keys import Extractor
from featstore.store.rows import Row, RowArray
from featstore.store.store import Store


def extract_maps(
    store: Store,
    location: ModelLocation,
    extractor: Extractor,
    prompt: TextPrompt,
    plan: MapPlan,
    compute: Compute,
    progress: Progress,
) -> None:
    """Make the maps of a plan from cached noisy latents: raw UNet features, averaged over the noise draws."""
    if not plan.rows:
        return
    categories = {store.images.categories[row] for rows in plan.rows.values() for row in rows}
    prompts = prompt_embeddings(location, prompt, categories, compute)
    last = max(layer for layers in plan.layers.values() for layer in layers)
    unet = CutUNet(load_unet(location, compute.device, compute.dtype), last)
    progress.start("UNet passes", plan.images * extractor.ensemble, "passes")
    for timestep, rows in plan.rows.items():
        layers = plan.layers[timestep]
        arrays: dict[int, RowArray] = {}
        noisy = store.noisy(timestep)
        assert noisy is not None, "noisy latents are made before maps"
        passes = Passes(unet, noisy.read, prompts, store.images.categories, extractor.ensemble)
        for row, maps in passes.of(timestep, layers, rows, compute, progress):
            for layer, mean in maps.items():
                if layer not in arrays:
                    channels, height, width = mean.shape
                    arrays[layer] = store.require_maps(extractor, layer, timestep, (channels, height, width))
                arrays[layer].write((row,), mean.numpy())


@dataclass(frozen=True, slots=True)
class Passes:
    """UNet passes over images. noisy: the noisy latents (4, h, w) of (image row, draw) at the timestep. prompts:
    embeddings (77, D) by category, categories: of each image row. ensemble: draws that are averaged."""

    unet: CutUNet
    noisy: Callable[[Row], NDArray[np.float16]]
    prompts: Mapping[str, Tensor]
    categories: Sequence[str]
    ensemble: int

    @torch.no_grad()
    def of(
        self, timestep: int, layers: Sequence[int], rows: Sequence[int], compute: Compute, progress: Progress
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Each row with its maps by layer, (C, h, w) float32 on the CPU, the mean over its draws."""
        # A batch holds whole images where they fit, so that one image's draws are averaged where they were computed.
        draws_a_pass = min(self.ensemble, compute.batch_size)
        images_a_pass = max(compute.batch_size // self.ensemble, 1)
        for batch in chunks(rows, images_a_pass):
            embeddings = torch.stack([self.prompts[self.categories[row]] for row in batch])  # (b, 77, D)
            sums: dict[int, Tensor] = {}
            for draws in chunks(range(self.ensemble), draws_a_pass):
                latents = np.stack([self.noisy((row, draw)) for row in batch for draw in draws])  # (b * d, 4, h, w)
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


def prompt_embeddings(
    location: ModelLocation, prompt: TextPrompt, categories: Collection[str], compute: Compute
) -> dict[str, Tensor]:
    """Prompt embeddings (77, D) by category; every distinct text is encoded once."""
    texts = sorted({prompt.text(category) for category in categories})
    encoder = load_text_encoder(location, compute.device, compute.dtype)
    embeddings = dict(zip(texts, encode_texts(load_tokenizer(location), encoder, texts), strict=True))
    return {category: embeddings[prompt.text(category)] for category in sorted(categories)}
