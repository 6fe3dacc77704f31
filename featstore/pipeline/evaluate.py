"""Evaluation of a dataset's split: pairs in the resized frame, matched from maps, with everything that the numbers
depend on."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from featstore.backbones.base import Compute
from featstore.datasets.agreement import agreeing
from featstore.datasets.pictures import image_key, original_size
from featstore.datasets.records import Dataset, Pair, canonical_split, select_categories, to_resized_frame
from featstore.errors import DatasetError, ImageError
from featstore.pair_list import describe_list
from featstore.pipeline.distributed import ALONE, Processes, Shares, by_target
from featstore.progress import Progress
from featstore.store.keys import AnyExtractor, Extractor, PixelExtractor, Stored
from featstore.store.store import Store
from matcher.evaluate import evaluate
from matcher.maps import LayerSpec, MapSource
from matcher.match import MatchSettings
from matcher.pairs import Frame, MatchingPair, PixelFrame
from matcher.pck import MatchedPair, PckTable, tabulate, to_json
from matcher.readout import Readout

AnyPair = TypeVar("AnyPair", Pair, MatchingPair)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is measured: readouts, alphas (fractions of theta), and how maps become matches. frame: in which distances
    are measured, None for each readout's own."""

    layers: tuple[LayerSpec, ...]
    readouts: tuple[Readout, ...]
    alphas: tuple[float, ...]
    settings: MatchSettings
    frame: Frame | None = None

    @property
    def pixels(self) -> PixelFrame | None:
        """The frame as the matcher takes it."""
        return None if self.frame is None else PixelFrame(self.frame, self.settings.image_size)

    def frame_of(self, readout: Readout) -> Frame:
        """In which a readout is measured."""
        return readout.frame if self.frame is None else self.frame


@dataclass(frozen=True, slots=True)
class Result:
    """A PCK table with what it was measured on. features: where the maps came from, for the record. matched: the pairs
    and what was predicted. notes: what is odd about the list, as `featstore.pair_list.note_oddities` said."""

    dataset: str
    split: str
    scoring: Scoring
    features: Mapping[str, Any]
    matched: tuple[MatchedPair, ...]
    table: PckTable
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `dualsd eval --json` writes it; PCK values are fractions."""
        layers, settings = self.scoring.layers, self.scoring.settings
        return {
            "dataset": self.dataset,
            "split": self.split,
            **describe_list(self.split, [match.pair for match in self.matched]),
            "layers": [int(layer.layer) if layer.timestep is not None else layer.layer for layer in layers],
            "t": [layer.timestep for layer in layers],
            "weights": [layer.weight for layer in layers],
            "geometry": settings.geometry.value,
            "frame": common_frame(self.scoring.readouts) if self.scoring.frame is None else self.scoring.frame.value,
            "frames": {readout.value: self.scoring.frame_of(readout).value for readout in self.scoring.readouts},
            "image_size": settings.image_size,
            "upsample": settings.upsample,
            "upsample_align": settings.upsample_align.value,
            "beta": settings.beta,
            "sigma": settings.sigma,
            "window": settings.window,
            "window_beta": settings.window_beta,
            "features": dict(self.features),
            "notes": list(self.notes),
            "results": to_json(self.table),
        }


def tabulated(
    dataset: str, split: str, scoring: Scoring, features: Mapping[str, Any], matched: Sequence[MatchedPair]
) -> Result:
    """Matches with their table. Raises `MatchError` where there is no pair."""
    table = tabulate(matched, scoring.alphas, scoring.pixels)
    return Result(dataset, canonical_split(split), scoring, features, tuple(matched), table)


def common_frame(readouts: Sequence[Readout]) -> str:
    """The frame in which points, theta and distances are measured; `per readout` where readouts differ."""
    frames = {readout.frame.value for readout in readouts}
    return frames.pop() if len(frames) == 1 else "per readout"


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
) -> list[MatchingPair]:
    """The pairs as the matcher takes them; `size_of` gives an image's original (width, height).

    They are held against the images first (`featstore.datasets.agreement`), which notes slips and raises `DatasetError`
    for what cannot be meant.
    """
    return [
        to_resized_frame(pair, dataset.theta_rule, size_of(pair.source), size_of(pair.target), image_size)
        for pair in agreeing(dataset, pairs, size_of, progress.note)
    ]


def in_frame_of_store(store: Store, dataset: Dataset, pairs: Sequence[Pair], progress: Progress) -> list[MatchingPair]:
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


def without_images(pairs: Sequence[AnyPair], unreadable: Sequence[ImageError]) -> tuple[AnyPair, ...]:
    """The pairs that need none of some images."""
    bad = {error.image_id for error in unreadable}
    return tuple(pair for pair in pairs if pair.source not in bad and pair.target not in bad)


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
) -> Result:
    """Match every pair and tabulate PCK. Each process matches its share, and all get the whole."""

    def match(own: Sequence[MatchingPair]) -> list[MatchedPair]:
        progress.start("matching", len(own), "pairs")
        return evaluate(own, maps, scoring.layers, scoring.readouts, scoring.settings, device, on_pair=progress.advance)

    matched = match_shares(pairs, by_target(pairs, processes.count), processes, match)
    return tabulated(dataset.name, split, scoring, features, matched)


def match_shares(
    pairs: Sequence[MatchingPair],
    shares: Shares,
    processes: Processes,
    match: Callable[[Sequence[MatchingPair]], Sequence[MatchedPair]],
) -> list[MatchedPair]:
    """All pairs matched, in their order, of which each process matches its share. Raises `ProcessError` where another
    process ended early."""
    own = match([pairs[index] for index in shares[processes.rank]])
    parts = processes.gather([matched.predictions for matched in own])
    predictions = {
        index: found
        for share, part in zip(shares, parts, strict=True)
        for index, found in zip(share, part, strict=True)
    }
    return [MatchedPair(pair, predictions[index]) for index, pair in enumerate(pairs)]
