"""Evaluation where maps depend on the pair (cpm): they are made pair by pair and never cached."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import MapKey, Networks
from featstore.backbones.dino import locate_dino
from featstore.pipeline.features import cache_patch_tokens, chunks, diffusion_maps, noisy_of
from featstore.pipeline.needed import fill, model_of
from featstore.pipeline.opened import Opened, PairsToMatch
from featstore.pipeline.plan import PlannedPasses, Work
from featstore.pipeline.sources import MapsByLayer
from featstore.progress import Progress, Silent
from featstore.prompts.cpm import PairPrompts, check_dino, open_pair_prompts
from featstore.store.store import patch_tokens_of
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair, Pairs


def tell_pairwise_cost(progress: Progress, pairs: int, maps: int, ensemble: int) -> None:
    """What prompts cost that belong to pairs: both images of each pair take a UNet pass for every (layer, timestep) and
    noise draw, and no map is cached."""
    progress.tell(
        f"cpm's maps depend on the pair: {2 * pairs * maps * ensemble} UNet passes for {pairs} pairs "
        f"({maps} map(s) of both images, ensemble {ensemble}), none of them cached"
    )


@dataclass(frozen=True, slots=True)
class PairMaps:
    """Makes the maps of pairs. wanted: (layer, timestep). ensemble: noise draws that are averaged. others: maps of
    other backbones' layers, which do not depend on the pair, by layer."""

    work: Work
    networks: Networks
    prompts: PairPrompts
    wanted: tuple[MapKey, ...]
    ensemble: int
    others: Mapping[str, MapSource]

    @property
    def pairs_a_batch(self) -> int:
        """Whose maps are made together."""
        return max(self.work.compute.batch_size // (2 * self.ensemble), 1)

    def of(self, pairs: Sequence[MatchingPair]) -> Iterator[tuple[MatchingPair, MapSource]]:
        """Each pair with both images' maps, in order."""
        load, row = noisy_of(self.work.store), self.work.store.images.row
        for batch in chunks(pairs, self.pairs_a_batch):
            ends = [(pair.source, pair.target) for pair in batch]
            places = tuple((index, image) for index, pair in enumerate(ends) for image in dict.fromkeys(pair))
            parts = [PlannedPasses((key,), places) for key in self.wanted]
            prompts = {layer: self.prompts.of(int(layer), ends) for layer, _ in self.wanted}  # (b, 77, D) each

            def told(layer: str, items: Sequence[tuple[int, str]], prompts: Mapping[str, Tensor] = prompts) -> Tensor:
                return prompts[layer][[index for index, _ in items]]

            def noisy(item: tuple[int, str], timestep: int, draw: int) -> NDArray[Any]:
                return load(row(item[1]), timestep, draw)

            maps: list[dict[tuple[str, str, int | None], Tensor]] = [{} for _ in batch]
            compute, silent = self.work.compute, Silent()  # progress counts pairs
            made = diffusion_maps(self.networks, parts, noisy, told, self.ensemble, compute, silent)
            for (index, image), key, features in made:
                maps[index][image, *key] = features
            for pair, own_maps in zip(batch, maps, strict=True):
                own = MapsInMemory(own_maps)
                yield pair, MapsByLayer({**self.others, **{layer: own for layer, _ in self.wanted}})
                self.work.progress.advance()


def open_pair_maps(
    opened: Opened, listed: PairsToMatch, pairs: Pairs, wanted: tuple[MapKey, ...], others: Mapping[str, MapSource]
) -> PairMaps:
    """Make the latents, noisy latents and patch tokens that are missing, each process of its share of the images, and
    load the networks.

    Args:
        opened: The store, the learned prompts and how maps are made.
        listed: The processes, and who is told.
        pairs: Those whose maps are to be made.
        wanted: (layer, timestep) of the UNet.
        others: Maps of other backbones' layers, by layer.

    Raises:
        ImageError: For the first image that cannot be read.
        PromptError: For another DINOv2 than the prompts'.
        DiskFullError: Where the disk fills up.
    """
    store, learned, processes, ensemble = opened.store, opened.choice.learned, listed.processes, opened.request.ensemble
    assert learned is not None, "only learned prompts belong to pairs"
    work, model = Work(store, opened.dataset, opened.request.compute, listed.progress), model_of(store)
    rows = sorted({store.images.row(image) for image in (*pairs.grouped("source"), *pairs.grouped("target"))})
    own = processes.part.of(rows)
    steps = sorted({timestep for _, timestep in wanted if timestep is not None})
    found = locate_dino(opened.request.asked["dino"].name, model.location)
    check_dino(learned, found[0])
    bad = fill(work, model, [(own, timestep, ensemble) for timestep in steps], own)[2]
    processes.gather_bad(bad, skip_bad=False)
    tokens = cache_patch_tokens(work, *found, own)
    processes.wait()
    networks = model.load(work.compute, [layer for layer, _ in wanted])
    prompts = open_pair_prompts(learned, networks.tokenizer, networks.text_encoder, patch_tokens_of(store, tokens))
    return PairMaps(work, networks, prompts, wanted, ensemble, others)
