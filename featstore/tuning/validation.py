"""How good the prompts are that are being learned: PCK on pairs that they are not learned from."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from featstore.backbone.memory import saying_batch_size
from featstore.prompts.learned import Mode
from featstore.prompts.token_embeddings import encode_token_embeddings, fill
from featstore.stages.batches import chunks
from featstore.tuning.prompt_sets import PromptSet
from featstore.tuning.settings import TuningSettings
from featstore.tuning.step import Networks
from matcher.configuration import Configuration
from matcher.grid import score_grid
from matcher.maps import LayerSpec, MapsInMemory
from matcher.pairs import MatchingPair
from matcher.readout import Readout

ALPHA = 0.1
"""Model selection is by nn PCK@0.1, image average (docs/method.md, Settings)."""

LoadNoisy = Callable[[str, int], Tensor]
"""Noisy latents (4, h, w) of an image at a timestep; always the same draw."""


@torch.no_grad()
def sum_of_pck(
    pairs: Sequence[MatchingPair],
    networks: Networks,
    prompts: Sequence[PromptSet],
    noisy: LoadNoisy,
    settings: TuningSettings,
    batch_size: int,
) -> float:
    """The sum over pairs of each pair's PCK, at the validation's timesteps, one noise draw. batch_size: images a
    pass."""
    layers = tuple(
        LayerSpec(str(layer), timestep, weight)
        for layer, timestep, weight in zip(
            settings.layers, settings.validation_timesteps, settings.weights, strict=True
        )
    )
    tried = [Configuration(layers, settings.matching)]
    total = 0.0
    for group in _sharing_a_prompt(pairs, settings.mode):
        images = sorted({image for pair in group for image in (pair.source, pair.target)})
        maps: dict[tuple[str, str, int | None], Tensor] = {}
        for index, spec in enumerate(layers):
            assert spec.timestep is not None, "layers of a diffusion model have timesteps"
            vectors, _ = prompts[index].vectors(group[:1])
            with networks.autocast():
                prompt = encode_token_embeddings(networks.text_encoder, fill(networks.framed, vectors))  # (1, 77, D)
            for batch in chunks(images, batch_size):
                latents = torch.stack([noisy(image, spec.timestep) for image in batch])
                with networks.autocast(), saying_batch_size(len(batch)):
                    found = networks.unets[index](
                        latents.to(networks.device, networks.dtype),
                        spec.timestep,
                        encoder_hidden_states=prompt.to(networks.dtype).expand(len(batch), -1, -1),
                        return_dict=False,
                    )[0]
                maps |= {(image, spec.layer, spec.timestep): own for image, own in zip(batch, found, strict=True)}
        scores = score_grid(group, MapsInMemory(maps), tried, [Readout.NN], [ALPHA], networks.device)
        total += float(scores.of_pairs(0, Readout.NN, ALPHA).sum())
    return total


def _sharing_a_prompt(pairs: Sequence[MatchingPair], mode: Mode) -> list[list[MatchingPair]]:
    """Pairs by category, whose images share a prompt; each alone where prompts are made from pairs."""
    if mode is Mode.CPM:
        return [[pair] for pair in pairs]
    groups: dict[str, list[MatchingPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.category].append(pair)
    return list(groups.values())
