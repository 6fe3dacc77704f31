"""Evaluation of a dataset's split: pairs in the resized frame, matched from maps, with everything that the numbers
depend on."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch

from featstore.backbones.base import Compute
from featstore.datasets.agreement import agreeing
from featstore.datasets.pictures import image_key, original_size
from featstore.datasets.records import Dataset, Pair, canonical_split, select_categories, to_resized_frame
from featstore.errors import DatasetError, ImageError
from featstore.pipeline.distributed import ALONE, Processes, Shares, by_target
from featstore.pipeline.results import Evaluation as Evaluation
from featstore.pipeline.results import Scoring as Scoring
from featstore.pipeline.results import tabulated as tabulated
from featstore.progress import Progress
from featstore.store.keys import AnyExtractor, Extractor, PixelExtractor, Stored
from featstore.store.store import Store
from matcher.maps import MapSource
from matcher.pairs import MatchingPair, Pairs
from matcher.pck import Matches
from matcher.sweep import evaluate


def choose_pairs(dataset: Dataset, split: str, categories: Collection[str]) -> tuple[Pair, ...]:
    """The pairs of a split, of some categories or (where none is named) of all. Raises `DatasetError` for none."""
    pairs = dataset.pairs(canonical_split(split))
    if not pairs:
        raise DatasetError(f"The split {split!r} of {dataset.name} has no pairs: choose another --split.")
    return select_categories(pairs, dataset.name, categories) if categories else pairs


def default_split(dataset: Dataset) -> str:
    """The split that is reported on: `test`, else the dataset's last."""
    return "test" if "test" in dataset.splits else dataset.splits[-1]


def images_of(pairs: Sequence[Pair]) -> list[str]:
    """The ids of the images that occur in the pairs, sorted."""
    return sorted({image for pair in pairs for image in (pair.source, pair.target)})


def in_resized_frame(
    dataset: Dataset,
    pairs: Sequence[Pair],
    size_of: Callable[[str], tuple[int, int]],
    image_size: int,
    progress: Progress,
) -> Pairs:
    """The pairs as the matcher takes them; `size_of` gives an image's original (width, height).

    They are held against the images first (`featstore.datasets.agreement`), which notes slips and raises `DatasetError`
    for what cannot be meant.
    """
    return Pairs.of(
        to_resized_frame(pair, dataset.theta_rule, size_of(pair.source), size_of(pair.target), image_size)
        for pair in agreeing(dataset, pairs, size_of, progress.note)
    )


def in_frame_of_store(store: Store, dataset: Dataset, pairs: Sequence[Pair], progress: Progress) -> Pairs:
    """The same in a store's frame, of the pairs whose images could be read when it was built. The others' sizes are not
    known; whoever makes their maps says why."""
    known = store.images
    readable = [pair for pair in pairs if known.sizes[[known.row(pair.source), known.row(pair.target)]].all()]
    return in_resized_frame(dataset, readable, known.size, store.header.image_size, progress)


def keys_from_files(dataset: Dataset, images: Collection[str]) -> dict[str, str]:
    """The keys of images' contents by id, as a store has them."""
    wanted = set(images)
    return {image.id: image_key(image, dataset.read(image)) for image in dataset.images() if image.id in wanted}


def sizes_from_files(dataset: Dataset, images: Collection[str]) -> dict[str, tuple[int, int]]:
    """Original (width, height) of images by id, read from the files' headers."""
    wanted = set(images)
    return {image.id: original_size(image, dataset.read(image)) for image in dataset.images() if image.id in wanted}


def describe_features(
    store: Store, extractor: Extractor | None, prompt: Mapping[str, Any], ensemble: int, compute: Compute
) -> dict[str, Any]:
    """Where a store's maps came from, for the record. extractor: None for maps that were not kept. prompt: what the
    prompts were."""
    return {
        **prompt,
        "ensemble": ensemble,
        "model": store.header.model_id,
        "model_revision": store.header.model_revision,
        "model_fingerprint": store.header.model_fingerprint,
        "dtype": compute.dtype_name,
        "latents": store.header.latents.value,
        "seed": store.header.seed,
        "extractor": None if extractor is None else extractor.key,
        **_describe_stored(extractor),
    }


def describe_others(extractors: Iterable[PixelExtractor]) -> dict[str, Any]:
    """Where a store's maps of other backbones came from, for the record."""
    about: dict[str, Any] = {}
    for extractor in extractors:
        family = extractor.family
        about |= {
            family: extractor.network.id,
            f"{family}_fingerprint": extractor.network.fingerprint,
            f"{family}_size": extractor.size,
            "dtype": extractor.dtype,
            f"{family}_extractor": extractor.key,
            **_describe_stored(extractor),
        }
    return about


def _describe_stored(extractor: AnyExtractor | None) -> dict[str, str]:
    """Of float16, which is the rule, nothing."""
    kept = Stored.FLOAT16 if extractor is None else extractor.stored
    return {} if kept is Stored.FLOAT16 else {"stored": kept.value}


def unreadable(*errors: Sequence[ImageError]) -> tuple[ImageError, ...]:
    """What was wrong with images in several stages, each image once."""
    return tuple({error.image_id: error for part in errors for error in part}.values())


@overload
def without_images(pairs: Pairs, unreadable: Sequence[ImageError]) -> Pairs: ...
@overload
def without_images(pairs: Sequence[Pair], unreadable: Sequence[ImageError]) -> tuple[Pair, ...]: ...
def without_images(pairs: Pairs | Sequence[Pair], unreadable: Sequence[ImageError]) -> Pairs | tuple[Pair, ...]:
    """The pairs that need none of some images."""
    bad = {error.image_id for error in unreadable}
    if not isinstance(pairs, Pairs):
        return tuple(pair for pair in pairs if pair.source not in bad and pair.target not in bad)
    images = np.array([image not in bad for image in pairs.images], dtype=bool)
    return pairs.take(images[pairs.source] & images[pairs.target]) if bad else pairs


def score(
    dataset: Dataset,
    split: str,
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    scoring: Scoring,
    features: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
    processes: Processes = ALONE,
) -> Evaluation:
    """Match every pair and tabulate PCK. Each process matches its share, and all get the whole."""

    def match(own: Pairs) -> Matches:
        progress.start("matching", len(own), "pairs")
        return evaluate(own, maps, scoring.layers, scoring.readouts, scoring.settings, device, progress.advance)

    pairs = Pairs.of(pairs)
    matched = match_shares(pairs, by_target(pairs, processes.count), processes, match)
    return tabulated(dataset.name, split, scoring, features, matched)


def match_shares(pairs: Pairs, shares: Shares, processes: Processes, match: Callable[[Pairs], Matches]) -> Matches:
    """All pairs matched, in their order, of which each process matches its share. Raises `ProcessError` where another
    process ended early."""
    own = match(pairs.take(shares[processes.rank]))
    predictions = {name: np.empty((int(pairs.counts.sum()), 2), dtype=np.float32) for name in own.predictions}
    for share, part in zip(shares, processes.gather(dict(own.predictions)), strict=True):
        for name, found in part.items():
            predictions[name][pairs.points(share)] = found
    return Matches(pairs, predictions)
