"""Stage 2: noisy latents and a prompt through the UNet, as far as the layers need, to feature maps that are kept."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
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
from featstore.store.rows import RowArray
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
    prompts = _prompt_embeddings(store, location, prompt, plan, compute)
    last = max(layer for layers in plan.layers.values() for layer in layers)
    unet = CutUNet(load_unet(location, compute.device, compute.dtype), last)
    progress.start("UNet passes", plan.images * extractor.ensemble, "passes")
    for timestep, rows in plan.rows.items():
        layers = plan.layers[timestep]
        arrays: dict[int, RowArray] = {}
        for row, maps in _passes(store, unet, timestep, layers, rows, extractor.ensemble, prompts, compute, progress):
            for layer, mean in maps.items():
                if layer not in arrays:
                    channels, height, width = mean.shape
                    arrays[layer] = store.require_maps(extractor, layer, timestep, (channels, height, width))
                arrays[layer].write((row,), mean.numpy())


@torch.no_grad()
def _passes(
    store: Store,
    unet: CutUNet,
    timestep: int,
    layers: Sequence[int],
    rows: Sequence[int],
    ensemble: int,
    prompts: Mapping[str, Tensor],
    compute: Compute,
    progress: Progress,
) -> Iterator[tuple[int, dict[int, Tensor]]]:
    """Each row with its maps, (C, h, w) float32 on the CPU, the mean over its draws."""
    noisy = store.noisy(timestep)
    assert noisy is not None, "noisy latents are made before maps"
    # A batch holds whole images where they fit, so that one image's draws are averaged where they were computed.
    draws_a_pass = min(ensemble, compute.batch_size)
    images_a_pass = max(compute.batch_size // ensemble, 1)
    for batch in chunks(rows, images_a_pass):
        embeddings = torch.stack([prompts[store.images.categories[row]] for row in batch])  # (b, 77, D)
        sums: dict[int, Tensor] = {}
        for draws in chunks(range(ensemble), draws_a_pass):
            latents = np.stack([noisy.read((row, draw)) for row in batch for draw in draws])  # (b * d, 4, h, w)
            full = images_a_pass * draws_a_pass
            maps = unet.tap(
                padded(torch.from_numpy(latents).to(compute.device), full),
                timestep,
                padded(embeddings.repeat_interleave(len(draws), dim=0), full),
                layers,
            )
            for layer, features in maps.items():
                part = features[: len(latents)].float().unflatten(0, (len(batch), len(draws))).sum(dim=1)
                sums[layer] = part if layer not in sums else sums[layer] + part
            progress.advance(len(latents))
        means = {layer: (total / ensemble).cpu() for layer, total in sums.items()}
        for index, row in enumerate(batch):
            yield row, {layer: mean[index] for layer, mean in means.items()}


def _prompt_embeddings(
    store: Store, location: ModelLocation, prompt: TextPrompt, plan: MapPlan, compute: Compute
) -> dict[str, Tensor]:
    """Prompt embeddings (77, D) by category; every distinct text is encoded once."""
    categories = sorted({store.images.categories[row] for rows in plan.rows.values() for row in rows})
    texts = sorted({prompt.text(category) for category in categories})
    encoder = load_text_encoder(location, compute.device, compute.dtype)
    embeddings = dict(zip(texts, encode_texts(load_tokenizer(location), encoder, texts), strict=True))
    return {category: embeddings[prompt.text(category)] for category in categories}
