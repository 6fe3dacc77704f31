"""Which pairs an adapter is learned from, and which it is validated on: a data set's own lists, a part of them that is
held out, or weak labels."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from featstore.backbones.noise import generator
from featstore.config import (
    AdaptConfig,
    ThetaName,
)
from featstore.datasets.records import MIRRORED, AnnotatedPairs, Dataset
from featstore.errors import AdapterError, UnmarkedError
from featstore.pipeline.pairs import (
    TRAINING,
    choose_pairs,
    choose_some,
    default_split,
    images_of,
)
from featstore.progress import Progress
from matcher.pairs import PairList

HELD_OUT, VALIDATION_PAIRS = 0.25, 500
OF_VAL, APART = "of val", "held out"
"""What is validated on, behind "pairs"."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The pairs of a data set, apart. split: whose they are. on: what `held_out` is, in words. theta: of `pairs`, None
    for the data set's own rule."""

    pairs: AnnotatedPairs
    held_out: AnnotatedPairs
    split: str
    on: str
    theta: ThetaName | None = None


def lists_of(
    dataset: Dataset,
    config: AdaptConfig,
    keys_of: Callable[[Sequence[str]], Mapping[str, str]],
    label: Callable[[Mapping[str, Sequence[str]]], AnnotatedPairs],
    progress: Progress,
) -> Lists:
    """What is learned from and what is validated on: trn and val where a data set has both and nothing else is said,
    else a seeded part of its pairs, and pairs among what is held out of them; of weak labels all, and val.

    Args:
        dataset: Whose pairs.
        config: What is said of them.
        keys_of: Gives the keys of images' contents.
        label: Gives weak labels of images by category.
        progress: Who is told.

    Raises:
        DatasetError: It has no pairs.
        AdapterError: There are too few to hold any out, or to label.
    """
    count, wanted = config.validation_pairs or VALIDATION_PAIRS, config.categories or ()
    if config.pseudo:
        split, categories = images_to_label(dataset, wanted)
        pairs = label(categories)
        progress.tell(f"weak labels: {int(pairs.counts.sum())} matches in {len(pairs)} pairs of {split}")
        # labels are the maps' own matches, so that none can tell whether the adapter is better than the maps
        held_out = choose_pairs(dataset, "val", wanted) if "val" in dataset.splits else AnnotatedPairs.of(())
        return Lists(pairs, choose_some(held_out, count), split, OF_VAL, "image")
    whole = {TRAINING, "val"} <= set(dataset.splits)
    if whole and config.hold_out is None and config.hold_by is None:
        pairs, held_out = (choose_pairs(dataset, split, wanted) for split in (TRAINING, "val"))
        return Lists(pairs, choose_some(held_out, count), TRAINING, OF_VAL)
    split = TRAINING if TRAINING in dataset.splits else default_split(dataset)
    share = HELD_OUT if config.hold_out is None else config.hold_out
    pairs = choose_pairs(dataset, split, wanted)
    if split != TRAINING:
        progress.tell(f"{dataset.name} has no trn: learned from {split}, of which figures are then no test")
    if share == 0:
        return Lists(pairs, AnnotatedPairs.of(()), split, APART)
    kept, held_out = hold_out(pairs, share, config.hold_by or "image", config.seed or 0, keys_of(images_of(pairs)))
    return Lists(kept, choose_some(held_out, count), split, APART)


def images_to_label(dataset: Dataset, wanted: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """A split's name and its images' ids by category, of trn where there is one, or of all images where nobody has
    marked keypoints; `wanted` categories, all where none is named. Raises `DatasetError` where it has no images."""
    split = TRAINING if TRAINING in dataset.splits else default_split(dataset)
    try:
        members = dataset.members(split)
    except UnmarkedError:
        members = frozenset(image.id for image in dataset.images())
    found: dict[str, list[str]] = {}
    for image in dataset.images():
        if image.id in members and not image.mirrored and (not wanted or image.category in wanted):
            found.setdefault(image.category, []).append(image.id)
    return split, found


AnyPairs = TypeVar("AnyPairs", bound=PairList[Any])


def hold_out(
    pairs: AnyPairs, share: float, by: Literal["image", "category"], seed: int, keys: Mapping[str, str]
) -> tuple[AnyPairs, AnyPairs]:
    """Pairs to learn from, and pairs that share no image, or no category, with them; those between both are in neither.

    Args:
        pairs: All of them.
        share: Of each category's images, or of the kinds of categories, that is held out, above 0 and below 1.
        by: What is held out. Images that are the same file, or its mirror image, are held out together, whatever their
            categories; so are categories of a kind: car(G), car(M) and car(S) are cars.
        seed: Of the choice.
        keys: Of images' contents, by id, of as many as are known.

    Raises:
        AdapterError: One of both would be empty.
    """
    random = generator(f"hold out|{by}|{seed}")
    if by == "image":
        content = {name: keys.get(plain := name.removesuffix(MIRRORED), plain) for name in pairs.images}
        chosen: set[str] = set()
        for _, members in sorted(pairs.grouped("category").items()):
            own = sorted({content[name] for row in members for name in pairs.named(row)[:2]})
            left = [one for one in own if one not in chosen]
            count = max(round(share * len(own)) - (len(own) - len(left)), 0)
            chosen |= {left[place] for place in random.permutation(len(left))[:count].tolist()}
        is_held = np.array([content[image] in chosen for image in pairs.images], dtype=bool)
        source, target = is_held[pairs.source], is_held[pairs.target]
        kept, held = ~source & ~target, source & target
    else:
        kinds = sorted(set(map(kind_of, pairs.grouped("category"))))
        chosen = {kinds[place] for place in random.permutation(len(kinds))[: round(share * len(kinds))].tolist()}
        is_held = np.array([kind_of(category) in chosen for category in pairs.categories], dtype=bool)
        held = is_held[pairs.category]
        kept = ~held
    if not kept.any() or not held.any():
        what = "categories, of different kinds," if by == "category" else "images of a category"
        raise AdapterError(
            f"{len(pairs)} pairs are too few to hold {share:g} of them out by {by}: it would leave {int(kept.sum())} "
            f"to learn from and {int(held.sum())} to validate on; add {what} or take another --hold-out, 0 for none."
        )
    return pairs.take(kept), pairs.take(held)


def kind_of(category: str) -> str:
    """`car` of `car(S)`."""
    return re.sub(r"\s*\(.*\)$", "", category)
