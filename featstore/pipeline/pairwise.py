"""Evaluation where maps depend on the pair (cpm): they are made pair by pair and never cached."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Asked, MapKey, Networks
from featstore.backbones.dino import locate_dino
from featstore.pipeline.distributed import Processes, in_blocks
from featstore.pipeline.evaluate import Evaluation, Scoring, match_shares, tabulated, unreadable
from featstore.pipeline.features import cache_patch_tokens, chunks, diffusion_maps, noisy_of
from featstore.pipeline.grid import Grid, done_before, score_shares
from featstore.pipeline.needed import fill, model_of
from featstore.pipeline.plan import MapRequest, PlannedPasses, Work
from featstore.progress import Silent
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.cpm import PairPrompts, check_dino, open_pair_prompts
from featstore.store.ledger import StoredLedger
from featstore.store.source import MapsByLayer
from featstore.store.store import patch_tokens_of
from matcher.grid import GridScores, Hits, score_grid
from matcher.maps import MapsInMemory, MapSource
from matcher.pairs import MatchingPair, Pairs
from matcher.pck import Matches
from matcher.sweep import evaluate


def pairwise_passes(pairs: int, maps: int, ensemble: int) -> int:
    """UNet passes that pairs take: both images of each, for every (layer, timestep) and noise draw."""
    return 2 * pairs * maps * ensemble


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
    work: Work,
    pairs: Sequence[MatchingPair],
    wanted: tuple[MapKey, ...],
    learned: LearnedPrompts,
    request: MapRequest,
    processes: Processes,
    others: Mapping[str, MapSource],
) -> PairMaps:
    """Make the latents, noisy latents and patch tokens that are missing, each process of its share of the images, and
    load the networks.

    Args:
        work: the store, and what it is filled from.
        pairs: whose maps will be made.
        wanted: (layer, timestep) of the UNet's maps.
        learned: prompts of pairs.
        request: noise draws that are averaged, and where the DINOv2 lies; by default it is the model's own, else
            `facebook/dinov2-base`.
        processes: those that share the images.
        others: see `PairMaps`.

    Raises:
        ImageError: of the first image that cannot be read.
        PromptError: for another DINOv2 than the prompts'.
        DiskFullError: where the disk fills up.
    """
    store, model, ensemble = work.store, model_of(work.store), request.ensemble
    rows = sorted({store.images.row(image) for pair in pairs for image in (pair.source, pair.target)})
    own = processes.part.of(rows)
    steps = sorted({timestep for _, timestep in wanted if timestep is not None})
    found = locate_dino(request.asked.get("dino", Asked()).name, model.location)
    check_dino(learned, found[0])
    bad = unreadable(*processes.gather(fill(work, model, [(own, timestep, ensemble) for timestep in steps], own)[2]))
    if bad:
        raise bad[0]
    tokens = cache_patch_tokens(work, *found, own)
    processes.wait()
    networks = model.load(work.compute, [layer for layer, _ in wanted])
    prompts = open_pair_prompts(learned, networks.tokenizer, networks.text_encoder, patch_tokens_of(store, tokens))
    return PairMaps(work, networks, prompts, wanted, ensemble, others)


def score_pairwise(
    split: str, pairs: Pairs, maps: PairMaps, scoring: Scoring, features: Mapping[str, Any], processes: Processes
) -> Evaluation:
    """`featstore.pipeline.evaluate.score` where maps belong to pairs."""
    device = maps.work.compute.device

    def match(own: Pairs) -> Matches:
        maps.work.progress.start("UNet passes and matching", len(own), "pairs")
        found = [
            evaluate([pair], made, scoring.layers, scoring.readouts, scoring.settings, device).predictions
            for pair, made in maps.of(own)
        ]
        none = np.zeros((0, 2), dtype=np.float32)
        return Matches(own, {name: np.concatenate([none, *(one[name] for one in found)]) for name in scoring.readouts})

    # whole batches: those that one process would make, and so the same bits
    batches = list(chunks(range(len(pairs)), maps.pairs_a_batch))
    matched = match_shares(pairs, in_blocks(batches, [True] * len(batches), processes.count), processes, match)
    return tabulated(maps.work.dataset.name, split, scoring, features, matched)


def score_grid_pairwise(
    pairs: Pairs,
    open_maps: Callable[[], PairMaps],
    grid: Grid,
    ledger: StoredLedger,
    work: Work,
    processes: Processes,
) -> GridScores:
    """`matcher.grid.score_grid` where maps belong to pairs, a target image at a time; those that the ledger has are not
    made again. open_maps: called once, by all processes, where a pair is left to be scored."""
    targets = pairs.grouped("target")
    finished = done_before(ledger, processes)
    left = [target not in finished for target in targets]
    maps = open_maps() if any(left) else None

    def score(rows: Sequence[int]) -> tuple[Sequence[int], Hits]:
        work.progress.start("UNet passes and matching", len(rows), "pairs")
        own, parts = pairs.grouped("target", rows), list[Hits]()
        for target, members in own.items():
            done = ledger.load(target)
            if done is None:
                assert maps is not None, "something was left"
                scored = [
                    score_grid([pair], made, grid.configurations, grid.readouts, grid.alphas, work.compute.device).hits
                    for pair, made in maps.of(pairs.take(members))
                ]
                done = np.concatenate(scored, axis=-1)
                ledger.save(target, done)
            else:
                work.progress.advance(len(members))
            parts.append(done)
        return [row for members in own.values() for row in members], np.concatenate(parts, axis=-1)

    rows, hits = score_shares(in_blocks(list(targets.values()), left, processes.count), grid, processes, score)
    return grid.scores(pairs.take(rows), hits)
