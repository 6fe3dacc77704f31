"""Evaluation where maps depend on the pair (cpm): they are made pair by pair and never cached."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featstore.backbones.base import Compute, MapKey, Networks
from featstore.backbones.dino import locate_dino
from featstore.datasets.records import Dataset
from featstore.files import sweep_partial
from featstore.pipeline.distributed import ALONE, Processes, in_blocks
from featstore.pipeline.evaluate import Evaluation, Scoring, match_shares, tabulated, unreadable
from featstore.pipeline.features import chunks, diffusion_maps, noisy_of
from featstore.pipeline.grid import Grid, done_before, score_shares
from featstore.pipeline.latents import cache_patch_tokens, encode_images
from featstore.pipeline.needed import model_of
from featstore.pipeline.noisy import add_noise, check_noise
from featstore.pipeline.plan import PlannedPasses
from featstore.progress import Progress, Silent
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.cpm import PairPrompts, check_dino, open_pair_prompts
from featstore.store.keys import LATENTS, PATCH_TOKENS, noisy_path
from featstore.store.source import MapsByLayer, StoredLedger
from featstore.store.store import Store, patch_tokens_of
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

    store: Store
    networks: Networks
    prompts: PairPrompts
    wanted: tuple[MapKey, ...]
    ensemble: int
    compute: Compute
    others: Mapping[str, MapSource]

    @property
    def pairs_a_batch(self) -> int:
        """Whose maps are made together."""
        return max(self.compute.batch_size // (2 * self.ensemble), 1)

    def of(self, pairs: Sequence[MatchingPair], progress: Progress) -> Iterator[tuple[MatchingPair, MapSource]]:
        """Each pair with both images' maps, in order."""
        load = noisy_of(self.store)
        for batch in chunks(pairs, self.pairs_a_batch):
            ends = [(pair.source, pair.target) for pair in batch]
            places = tuple((index, image) for index, pair in enumerate(ends) for image in dict.fromkeys(pair))
            parts = [PlannedPasses(timestep, (layer,), places) for layer, timestep in self.wanted]
            prompts = {layer: self.prompts.of(int(layer), ends) for layer, _ in self.wanted}  # (b, 77, D) each

            def told(layer: str, items: Sequence[tuple[int, str]], prompts: Mapping[str, Tensor] = prompts) -> Tensor:
                return prompts[layer][[index for index, _ in items]]

            def noisy(item: tuple[int, str], timestep: int, draw: int) -> NDArray[Any]:
                return load(self.store.images.row(item[1]), timestep, draw)

            maps: list[dict[tuple[str, str, int | None], Tensor]] = [{} for _ in batch]
            silent = Silent()  # progress counts pairs
            made = diffusion_maps(self.networks, parts, noisy, told, self.ensemble, self.compute, silent)
            for (index, image), key, features in made:
                maps[index][image, *key] = features
            for pair, own_maps in zip(batch, maps, strict=True):
                own = MapsInMemory(own_maps)
                yield pair, MapsByLayer({**self.others, **{layer: own for layer, _ in self.wanted}})
                progress.advance()


def open_pair_maps(
    store: Store,
    dataset: Dataset,
    pairs: Sequence[MatchingPair],
    wanted: tuple[MapKey, ...],
    learned: LearnedPrompts,
    dino: str | None,
    ensemble: int,
    compute: Compute,
    progress: Progress,
    processes: Processes = ALONE,
    others: Mapping[str, MapSource] | None = None,
) -> PairMaps:
    """Make the latents, noisy latents and patch tokens that are missing, each process of its share of the images, and
    load the networks. dino: where the DINOv2 lies; by default the model's own, else `facebook/dinov2-base`. Raises the
    first `ImageError`, `PromptError` for another DINOv2 than the prompts', and `DiskFullError` where the disk
    fills up."""
    model = model_of(store)
    location = model.location
    rows = sorted({store.images.row(image) for pair in pairs for image in (pair.source, pair.target)})
    own = processes.part.of(rows)
    steps = sorted({timestep for _, timestep in wanted if timestep is not None})
    name, folder = locate_dino(dino, location)
    check_dino(learned, name)
    check_noise(store, own, steps)
    sweep_partial(store.path, [LATENTS, *map(noisy_path, steps), PATCH_TOKENS])
    bad = unreadable(*processes.gather(encode_images(store, dataset, location, own, compute, progress)[1]))
    if bad:
        raise bad[0]
    add_noise(store, own, steps, ensemble, progress)
    tokens = cache_patch_tokens(store, dataset, name, folder, own, compute, progress)
    processes.wait()
    networks = model.load(compute, [layer for layer, _ in wanted])
    prompts = open_pair_prompts(learned, networks.tokenizer, networks.text_encoder, patch_tokens_of(store, tokens))
    return PairMaps(store, networks, prompts, wanted, ensemble, compute, others or {})


def score_pairwise(
    dataset: Dataset,
    split: str,
    pairs: Sequence[MatchingPair],
    maps: PairMaps,
    scoring: Scoring,
    features: Mapping[str, Any],
    progress: Progress,
    processes: Processes = ALONE,
) -> Evaluation:
    """`featstore.pipeline.evaluate.score` where maps belong to pairs."""

    pairs = Pairs.of(pairs)

    def match(own: Pairs) -> Matches:
        progress.start("UNet passes and matching", len(own), "pairs")
        found = [
            evaluate([pair], made, scoring.layers, scoring.readouts, scoring.settings, maps.compute.device).predictions
            for pair, made in maps.of(own, progress)
        ]
        none = np.zeros((0, 2), dtype=np.float32)
        return Matches(own, {name: np.concatenate([none, *(one[name] for one in found)]) for name in scoring.readouts})

    # whole batches: those that one process would make, and so the same bits
    batches = list(chunks(range(len(pairs)), maps.pairs_a_batch))
    matched = match_shares(pairs, in_blocks(batches, [True] * len(batches), processes.count), processes, match)
    return tabulated(dataset.name, split, scoring, features, matched)


def score_grid_pairwise(
    pairs: Sequence[MatchingPair],
    open_maps: Callable[[], PairMaps],
    grid: Grid,
    ledger: StoredLedger,
    compute: Compute,
    progress: Progress,
    processes: Processes = ALONE,
) -> GridScores:
    """`matcher.grid.score_grid` where maps belong to pairs, a target image at a time; those that the ledger has are not
    made again. open_maps: called once, by all processes, where a pair is left to be scored."""
    pairs = Pairs.of(pairs)
    targets = pairs.grouped("target")
    finished = done_before(ledger, processes)
    left = [target not in finished for target in targets]
    maps = open_maps() if any(left) else None

    def score(rows: Sequence[int]) -> tuple[Sequence[int], Hits]:
        progress.start("UNet passes and matching", len(rows), "pairs")
        own, parts = pairs.grouped("target", rows), list[Hits]()
        for target, members in own.items():
            done = ledger.load(target)
            if done is None:
                assert maps is not None, "something was left"
                scored = [
                    score_grid([pair], made, grid.configurations, grid.readouts, grid.alphas, compute.device).hits
                    for pair, made in maps.of(pairs.take(members), progress)
                ]
                done = np.concatenate(scored, axis=-1)
                ledger.save(target, done)
            else:
                progress.advance(len(members))
            parts.append(done)
        return [row for members in own.values() for row in members], np.concatenate(parts, axis=-1)

    rows, hits = score_shares(in_blocks(list(targets.values()), left, processes.count), grid, processes, score)
    return grid.scores(pairs.take(rows), hits)
