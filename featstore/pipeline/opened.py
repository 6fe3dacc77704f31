"""What a config names, opened: the store, its data set, the prompts, how maps are made; and the pairs of a split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featstore.backbones.base import Asked, MapKey
from featstore.backbones.layers import timesteps_for, unet_layers
from featstore.config import ENSEMBLE, EvalConfig, GridConfig, KeptMapsConfig
from featstore.datasets.records import Dataset, Pair
from featstore.errors import DatasetError, ImageError
from featstore.pipeline.build import check_unchanged
from featstore.pipeline.defaults import check_kept, choose_compute, dataset_of
from featstore.pipeline.distributed import Processes, join_processes
from featstore.pipeline.pairs import images_of, in_resized_frame, note_oddities
from featstore.pipeline.plan import MapRequest
from featstore.pipeline.prompt_choice import PromptChoice, TypedPrompts, choose_for_store
from featstore.progress import Progress, Silent, tell_left_out
from featstore.store.keys import RAW, AnyExtractor, Extractor, PixelExtractor
from featstore.store.store import Store, open_store
from matcher.pairs import Pairs


@dataclass(frozen=True, slots=True)
class Opened:
    """What maps are made of.

    Args:
        store: Where they are kept.
        dataset: Whose images the store is of.
        choice: What the UNet is told.
        names: Of the layers.
        request: How they are made.
    """

    store: Store
    dataset: Dataset
    choice: PromptChoice
    names: tuple[str, ...]
    request: MapRequest

    def keys(self, timesteps: Sequence[int] | None) -> tuple[MapKey, ...]:
        """Each layer with its timestep, of those asked for or the usual ones. Raises `InputError` where counts
        disagree."""
        return tuple(zip(self.names, timesteps_for(self.names, timesteps, self.choice.timesteps), strict=True))

    def describe(self, extractor: Extractor | None, others: Mapping[str, PixelExtractor]) -> dict[str, Any]:
        """Where maps came from, for the record.

        Args:
            extractor: Under whose name the UNet's are kept, None for those that are not.
            others: The same of other backbones, by family.
        """
        about: dict[str, Any] = {}
        if unet_layers(self.names):
            header = self.store.header
            about = {
                **self.choice.describe(),
                "ensemble": self.request.ensemble,
                "model": header.model_id,
                "model_revision": header.model_revision,
                "model_fingerprint": header.model_fingerprint,
                "dtype": self.request.compute.dtype_name,
                "latents": header.latents.value,
                "seed": header.seed,
                "extractor": None if extractor is None else extractor.key,
                **_describe_encoding(extractor),
            }
        for family, own in others.items():
            about |= {
                family: own.network.id,
                f"{family}_fingerprint": own.network.fingerprint,
                f"{family}_size": own.size,
                "dtype": own.dtype,
                f"{family}_extractor": own.key,
                **_describe_encoding(own),
            }
        return about


def _describe_encoding(extractor: AnyExtractor | None) -> dict[str, str]:
    """Of float16, which is the rule, nothing."""
    return {} if extractor is None or extractor.encoding == RAW else {"encoding": extractor.encoding}


def open_asked(config: KeptMapsConfig | EvalConfig | GridConfig, progress: Progress) -> Opened:
    """Open what a config names; which prompts are used is told.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    compute, store = choose_compute(config.device, config.dtype, config.batch_size), open_store(config.store)
    choice = choose_for_store(store, TypedPrompts.of(config))
    if choice.prompts is None:
        check_kept(config.encoding, "prompts of pairs (cpm)")
    names = config.layers or choice.layers
    if unet_layers(names):
        progress.tell(choice.line)
    others = {"dino": Asked(config.dino, config.dino_size)}
    request = MapRequest(choice.prompts, config.ensemble or ENSEMBLE, compute, config.encoding, others)
    return Opened(store, dataset_of(store, config.root), choice, names, request)


@dataclass(frozen=True, slots=True)
class PairsToMatch:
    """The pairs of a split, and the processes that match them.

    Args:
        split: Its name.
        count: Pairs in the list.
        rows: Of the images that this process makes maps of, in the store.
        pairs: In the store's frame, those whose images could be read when it was built.
        notes: What is odd about the list.
        processes: That have met.
        progress: Of the main process.
    """

    split: str
    count: int
    rows: list[int]
    pairs: Pairs
    notes: tuple[str, ...]
    processes: Processes
    progress: Progress

    def without(self, unreadable: Sequence[ImageError]) -> Pairs:
        """The pairs that need none of some images; those left out are told."""
        bad, pairs = {error.image_id for error in unreadable}, self.pairs
        if bad:
            images = np.array([image not in bad for image in pairs.images], dtype=bool)
            pairs = pairs.take(images[pairs.source] & images[pairs.target])
        tell_left_out(self.progress, unreadable, self.count, len(pairs))
        return pairs


def take_pairs(opened: Opened, split: str, pairs: Sequence[Pair], progress: Progress) -> PairsToMatch:
    """Bring pairs into the store's frame. The processes meet here, once what was asked for is found to be right. Of
    images that were not readable when the store was built the sizes are not known; whoever makes their maps says why.

    Raises:
        InputError: In one of its kinds: for categories without prompts, images that have changed, annotations that
            cannot be meant.
    """
    store, dataset = opened.store, opened.dataset
    opened.choice.check_categories({pair.category for pair in pairs})
    images, known = images_of(pairs), store.images
    processes = join_processes()
    processes.check_same(dict(opened.choice.describe()), "prompts")  # the newest run's, which another may be just now
    progress = progress if processes.is_main else Silent()
    share = processes.part.of(images)
    check_unchanged(store, dataset, share, progress)
    readable = [pair for pair in pairs if known.sizes[[known.row(pair.source), known.row(pair.target)]].all()]
    if not readable:
        raise DatasetError(f"No pair of {dataset.name} {split} is left: each needs an image that could not be read.")
    framed = in_resized_frame(dataset, readable, known.size, store.header.image_size, progress)
    notes = note_oddities(dataset, [split], images, known.known_keys, progress)
    return PairsToMatch(split, len(pairs), [*map(known.row, share)], framed, notes, processes, progress)
