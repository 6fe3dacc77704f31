"""What is known of a list of pairs besides its scores: a hash that tells it from any other list, and what is odd about
its photographs."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featstore.datasets.records import MIRRORED, Dataset, canonical_split
from featstore.progress import Progress
from matcher.pairs import FramePoints, MatchingPair, Pairs

HASH_DIGITS = 12
"""Hex digits of a list's hash: no two of a million lists share one but by a chance of 1 in 500."""

TRAINING = "trn"


def list_hash(split: str, pairs: Sequence[MatchingPair]) -> str:
    """The hash of a list (docs/numbers.md, The hash of a list): equal wherever the same points of the same pairs are
    scored against the same thresholds, in whichever order, on whichever machine.

    Raises `MatchError` for a pair that is not known in the original frame.
    """
    digest = hashlib.sha256(f"{canonical_split(split)}\n".encode())
    for line in sorted(map(_line, pairs)):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:HASH_DIGITS]


def describe_list(split: str, pairs: Sequence[MatchingPair]) -> dict[str, Any]:
    """What every result says of its list: `n_pairs`, `n_points`, `pairs_hash`. Raises what `list_hash` raises."""
    points = int(Pairs.of(pairs).counts.sum())
    return {"n_pairs": len(pairs), "n_points": points, "pairs_hash": list_hash(split, pairs)}


def spell_list(split: str, pairs: Sequence[MatchingPair]) -> str:
    """The same as the header of a table has it."""
    about = describe_list(split, pairs)
    return f"{about['n_pairs']} pairs, {about['n_points']} points, list {about['pairs_hash']}"


def _line(pair: MatchingPair) -> str:
    frame = pair.in_original_frame()
    sizes = " ".join(map(str, (*frame.source_size, *frame.target_size)))
    points = " ".join(sorted(_points(frame.source_points, frame.target_points)))
    return "\t".join((pair.category, pair.source, pair.target, sizes, f"{frame.theta:.2f}", points))


def _points(source: FramePoints, target: FramePoints) -> list[str]:
    return [",".join(f"{number:.2f}" for number in row) for row in np.hstack([source, target]).tolist()]


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
        others = [split for split in dataset.splits if split != TRAINING]
        found += [
            sentence
            for split in (others if TRAINING in splits else splits)
            if split in others
            for sentence in overlap(dataset, split, keys)
        ]
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
    return (
        f"{len(shared)} of {len(own)} photographs of {dataset.name} {split} are in {TRAINING} as well, e.g. "
        f"{shared[0]}; prompts that were learned on {TRAINING} have seen them.",
    )
