"""Lists of pairs: which are matched, in which frame; a list's hash, and what is odd about its photographs."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from featstore.config import ThetaName
from featstore.datasets.agreement import agreeing
from featstore.datasets.pictures import image_key, original_size
from featstore.datasets.records import (
    MIRRORED,
    AnnotatedPairs,
    Dataset,
    SizeOf,
    ThetaRule,
    canonical_split,
    to_resized_frame,
)
from featstore.errors import DatasetError
from featstore.plain_text import nfc
from featstore.progress import Progress
from matcher.configuration import Pad
from matcher.pairs import MatchingPair, Pairs

_NAMED = 20
"""Photographs that a sentence names; more are counted."""

HASH_DIGITS = 12
"""Hex digits of a list's hash: no two of a million lists share one but by a chance of 1 in 500."""

TRAINING = "trn"


def choose_pairs(dataset: Dataset, split: str, categories: Collection[str]) -> AnnotatedPairs:
    """The pairs of a split, of some categories or (where none is named) of all.

    Args:
        dataset: the data set that they are of.
        split: its name.
        categories: in either Unicode normal form.

    Raises:
        DatasetError: for a split without pairs, and for a category that none is of (listing those that there are).
    """
    pairs = dataset.pairs(canonical_split(split))
    if not pairs:
        raise DatasetError(f"The split {split!r} of {dataset.name} has no pairs: choose another --split.")
    known, wanted = pairs.occurring, {nfc(category) for category in categories}
    if unknown := sorted(wanted - known.keys()):
        what = f"has no category {', '.join(map(repr, unknown))} among its {len(pairs)} pairs"
        raise DatasetError(f"{dataset.name} {what}; choose from {', '.join(known)}.")
    return pairs.take(np.any([known[category] for category in wanted], axis=0)) if wanted else pairs


def default_split(dataset: Dataset) -> str:
    """The split that is reported on: `test`, else the dataset's last."""
    return "test" if "test" in dataset.splits else dataset.splits[-1]


def images_of(*lists: AnnotatedPairs) -> list[str]:
    """The ids of the images that occur in lists of pairs, sorted."""
    return sorted({image for pairs in lists for image in pairs.occurring_images})


def in_resized_frame(
    dataset: Dataset,
    pairs: AnnotatedPairs,
    size_of: SizeOf,
    image_size: int,
    progress: Progress,
    pad: Pad = Pad.STRETCH,
    theta: ThetaName | None = None,
) -> Pairs:
    """The pairs as the matcher takes them, held against the images first (`featstore.datasets.agreement`), which notes
    slips.

    Args:
        dataset: the data set that they are of.
        pairs: in pixels of the original images.
        size_of: an image's original (width, height).
        image_size: side of the resized images in pixels.
        progress: where slips are noted.
        pad: how images were made squares.
        theta: what theta is measured on, None for the data set's own rule.

    Raises:
        DatasetError: for what cannot be meant, and a theta that cannot be measured.
    """
    if theta == "box" and np.isnan(pairs.boxes[:, 1]).all():
        raise DatasetError(f"{dataset.name} has no boxes to measure theta on: take --theta image or keypoints.")
    agreed = agreeing(dataset, pairs, size_of, progress.note)
    rule = dataset.theta_rule if theta is None else RULES[theta]
    return to_resized_frame(agreed, rule, size_of, image_size, pad)


RULES: Mapping[ThetaName, ThetaRule] = {
    "box": ThetaRule.BOX,
    "image": ThetaRule.IMAGE,
    "keypoints": ThetaRule.KEYPOINTS,
}
"""What theta is measured on, by what `--theta` takes."""


def rule_name(rule: ThetaRule) -> ThetaName:
    """As `--theta` has it."""
    return next(name for name, own in RULES.items() if own is rule)


def keys_from_files(dataset: Dataset, images: Collection[str]) -> dict[str, str]:
    """The keys of images' contents by id, as a store has them."""
    wanted = set(images)
    return {image.id: image_key(image, dataset.read(image)) for image in dataset.images() if image.id in wanted}


def sizes_from_files(dataset: Dataset, images: Collection[str]) -> dict[str, tuple[int, int]]:
    """Original (width, height) of images by id, read from the files' headers."""
    wanted = set(images)
    return {image.id: original_size(image, dataset.read(image)) for image in dataset.images() if image.id in wanted}


def choose_some(pairs: AnnotatedPairs, count: int | None) -> AnnotatedPairs:
    """`count` of the pairs, drawn without replacement by a fixed seed, in their order; all where there are no more or
    none is said."""
    if count is None or count >= len(pairs):
        return pairs
    drawn = np.random.default_rng(0).choice(len(pairs), size=count, replace=False)
    return pairs.take(np.sort(drawn))


def choose_held_out(dataset: Dataset, count: int | None) -> AnnotatedPairs:
    """`choose_some` of val, which a training validates on; none of a dataset without."""
    return choose_some(dataset.pairs("val") if "val" in dataset.splits else AnnotatedPairs.of(()), count)


def list_hash(split: str, pairs: Sequence[MatchingPair]) -> str:
    """The hash of a list (docs/numbers.md, The hash of a list): equal wherever the same points of the same pairs are
    scored against the same thresholds, in whichever order, on whichever machine.

    Raises `MatchError` for a pair that is not known in the original frame.
    """
    digest = hashlib.sha256(f"{canonical_split(split)}\n".encode())
    columns = Pairs.of(pairs)
    names = np.stack([columns.category, columns.source, columns.target])  # (3, P), in the order of a line
    # lines begin with them: only those of one such triple are held to be sorted, not those of a whole list
    for _, rows in groupby(np.lexsort(names[::-1]).tolist(), key=lambda row: tuple(names[:, row])):
        for line in sorted(_line(columns[row]) for row in rows):
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def _line(pair: MatchingPair) -> str:
    frame = pair.in_original_frame()
    sizes = " ".join(map(str, (*frame.source_size, *frame.target_size)))
    numbers = np.hstack([frame.source_points, frame.target_points]).tolist()
    points = " ".join(sorted(",".join(f"{number:.2f}" for number in row) for row in numbers))
    return "\t".join((pair.category, pair.source, pair.target, sizes, f"{frame.theta:.2f}", points))


def describe_list(split: str, pairs: Sequence[MatchingPair]) -> dict[str, Any]:
    """What every result says of its list: `n_pairs`, `n_points`, `pairs_hash`. Raises what `list_hash` raises."""
    points = int(Pairs.of(pairs).counts.sum())
    return {"n_pairs": len(pairs), "n_points": points, "pairs_hash": list_hash(split, pairs)}


def spell_list(split: str, pairs: Sequence[MatchingPair]) -> str:
    """The same as the header of a table has it."""
    about = describe_list(split, pairs)
    return f"{about['n_pairs']} pairs, {about['n_points']} points, list {about['pairs_hash']}"


def note_oddities(
    dataset: Dataset, splits: Sequence[str], images: Sequence[str], keys: Mapping[str, str], progress: Progress
) -> tuple[str, ...]:
    """Say once what is odd about the lists of some splits and the photographs that are scored or trained on.

    Args:
        dataset: the data set that the splits are of.
        splits: names of splits.
        images: ids of the photographs.
        keys: keys of images' contents by image id, of as many as are known.
        progress: where it is said.

    Returns:
        What was said.
    """
    found = [sentence for split in splits for sentence in dataset.notes(split)]
    found += copies(dataset.name, images, keys)
    if TRAINING in dataset.splits:
        for split in dataset.splits:
            if split != TRAINING and (TRAINING in splits or split in splits):
                found += overlap(dataset, split, keys)
    said = tuple(dict.fromkeys(found))
    for sentence in said:
        progress.note(sentence)
    return said


def copies(name: str, images: Sequence[str], keys: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence where photographs are there under several names."""
    by_key: dict[str, list[str]] = {}
    for image in images:
        if image in keys:
            by_key.setdefault(keys[image], []).append(image)
    groups = [group for group in by_key.values() if len(group) > 1]
    if not groups:
        return ()
    count = sum(len(group) - 1 for group in groups)
    return (
        f"{count} of {len(images)} images of {name} are the same files as others under another name, e.g. "
        f"{groups[0][1]} as {groups[0][0]}; each name counts as an image of its own.",
    )


def overlap(dataset: Dataset, split: str, keys: Mapping[str, str]) -> tuple[str, ...]:
    """A sentence where photographs of a split, mirrored or not, are trained on as well."""

    def content(image: str) -> str:
        plain = image.removesuffix(MIRRORED)
        return keys.get(plain, plain)

    trained = set(map(content, dataset.members(TRAINING)))
    own = {content(image): image for image in sorted(dataset.members(split), reverse=True)}
    shared = sorted(own[known] for known in own.keys() & trained)
    if not shared:
        return ()
    more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
    return (
        f"{len(shared)} of {len(own)} photographs of {dataset.name} {split} are in {TRAINING} as well: "
        f"{', '.join(shared[:_NAMED])}{more}; prompts that were learned on {TRAINING} have seen them.",
    )
