"""The demo dataset: pictures of birds, cars, fish and persons drawn in code, 128x128 pixels, with keypoints. No file
is read: a picture is a function of its category, split and number (`featstore.datasets.demo_drawing`)."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np

from featstore.datasets.demo_drawing.figure import Figure, clipped
from featstore.datasets.demo_drawing.picture import SUBJECTS, compose, render
from featstore.datasets.records import ImageRecord, Pair, ThetaRule, canonical_split
from featstore.errors import DatasetError

SIZES = {"trn": 60, "val": 12, "test": 24}
"""Pictures of each category in a split."""

TEST_PAIRS = 150
"""Pairs of each category in test, of the 552 that there are; trn and val have all."""


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """The demo. See `featstore.datasets.records.Dataset`."""

    @property
    def name(self) -> str:
        return "demo"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(SIZES)

    @property
    def theta_rule(self) -> ThetaRule:
        return ThetaRule.BOX

    def images(self) -> tuple[ImageRecord, ...]:
        records = [record for split in SIZES for category in SUBJECTS for record in _records(category, split)]
        return tuple(sorted(records, key=lambda record: record.id))

    def pairs(self, split: str) -> tuple[Pair, ...]:
        split = canonical_split(split)
        if split not in SIZES:
            raise DatasetError(f"The demo dataset has no split {split!r}; choose one of {', '.join(SIZES)}.")
        return tuple(pair for category in SUBJECTS for pair in _pairs(category, split))

    def members(self, split: str) -> frozenset[str]:
        return frozenset(record.id for category in SUBJECTS for record in _records(category, canonical_split(split)))

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (nothing is odd about what is drawn)
        return ()

    def read(self, image: ImageRecord) -> bytes:
        """The picture as a binary PPM: a few bytes of header and the pixels, the same whatever writes PNG or JPEG."""
        picture = render(*_parse(image))
        return b"P6\n%d %d\n255\n" % picture.size + picture.tobytes()


def _records(category: str, split: str) -> Iterator[ImageRecord]:
    for number in range(SIZES[split]):
        yield ImageRecord(id=f"{category}/{split}{number:04d}", category=category, file=f"{category}:{split}:{number}")


def _parse(image: ImageRecord) -> tuple[str, str, int]:
    category, split, number = ([*image.file.split(":"), "", ""])[:3]
    if category not in SUBJECTS or split not in SIZES or not number.isdecimal() or int(number) >= SIZES[split]:
        raise DatasetError(f"{image.id} ({image.file!r}) is no picture of the demo dataset; list them with images().")
    return category, split, int(number)


@cache
def _figure(category: str, split: str, number: int) -> Figure:
    return compose(category, split, number)


def _pairs(category: str, split: str) -> Iterator[Pair]:
    """The pairs of a category in the order of their ids, those without a common keypoint left out."""
    chosen = list(permutations(_records(category, split), 2))
    if split == "test":
        by_chance = sorted(chosen, key=lambda pair: _lot(*pair))
        chosen = sorted(by_chance[:TEST_PAIRS], key=lambda pair: (pair[0].id, pair[1].id))
    for source, target in chosen:
        ours, theirs = _figure(*_parse(source)), _figure(*_parse(target))
        names = tuple(
            name for name in SUBJECTS[category].keypoints if name in ours.keypoints and name in theirs.keypoints
        )
        if names:
            yield Pair(
                source=source.id,
                target=target.id,
                category=category,
                source_points=np.array([ours.keypoints[name] for name in names]),
                target_points=np.array([theirs.keypoints[name] for name in names]),
                names=names,
                source_box=clipped(ours.box),
                target_box=clipped(theirs.box),
            )


def _lot(source: ImageRecord, target: ImageRecord) -> bytes:
    """Puts pairs in an order that looks random and never changes."""
    return hashlib.sha256(f"{source.id} {target.id}".encode()).digest()
