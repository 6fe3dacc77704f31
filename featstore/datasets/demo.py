"""The demo dataset: drawn birds, cars, fish and persons, 128x128 pixels, with keypoints and boxes.

It ships as `featstore/assets/demo_pictures`: `<category>/<split><number>.webp`, and `annotations.json` with each
picture's visible keypoints and its object's box, in pixels. `tools/write_demo_pictures.py` draws them.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby, permutations
from pathlib import Path
from typing import Any, Self

from PIL import Image

from featstore.datasets.records import AnnotatedPairs, ImageRecord, Marks, ThetaRule, canonical_split, pair_of
from featstore.errors import DatasetError

FOLDER = Path(__file__).parents[1] / "assets" / "demo_pictures"

CATEGORIES = ("bird", "car", "fish", "person")

SIZES = {"trn": 60, "val": 12, "test": 24}
"""Pictures of each category in a split."""

TEST_PAIRS = 150
"""Pairs of each category in test, of the 552 that there are; trn and val have all."""


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """The demo. See `featstore.datasets.records.Dataset`."""

    name = "demo"
    about = "drawn birds, cars, fish and persons, which come along"
    splits = tuple(SIZES)
    theta_rule = ThetaRule.BOX

    @classmethod
    def open(cls, root: Path | None) -> Self:
        """The demo. Raises `DatasetError` for a root, which it does not take."""
        if root is not None:
            raise DatasetError(f"The demo dataset comes with dualsd and takes no root; leave out {root}.")
        return cls()

    def images(self) -> tuple[ImageRecord, ...]:
        return tuple(sorted((record for split in SIZES for record in _records(split)), key=lambda record: record.id))

    def pairs(self, split: str) -> AnnotatedPairs:
        """The pairs of each category in the order of their ids, those without a common keypoint left out."""
        split = canonical_split(split)
        if split not in SIZES:
            raise DatasetError(f"The demo dataset has no split {split!r}; choose one of {', '.join(SIZES)}.")
        found: list[tuple[ImageRecord, ImageRecord]] = []
        for _, own in groupby(_records(split), key=lambda record: record.category):
            chosen = list(permutations(own, 2))
            if split == "test":
                chosen = sorted(sorted(chosen, key=_lot)[:TEST_PAIRS], key=lambda pair: (pair[0].id, pair[1].id))
            found += chosen
        pairs = (pair_of(*ends, *map(_marks, ends)) for ends in found)
        return AnnotatedPairs.of(pair for pair in pairs if pair is not None)

    def members(self, split: str) -> frozenset[str]:
        return frozenset(record.id for record in _records(canonical_split(split)))

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (nothing is odd about what is drawn)
        return ()

    def read(self, image: ImageRecord) -> bytes:
        """The picture as a binary PPM: a few bytes of header and the pixels, the same whatever reads or writes WebP."""
        if image.id not in _annotations() or image.file != f"{image.id}.webp":
            what = f"{image.id} ({image.file!r}) is no picture of the demo dataset"
            raise DatasetError(f"{what}; list them with images().")
        with Image.open(io.BytesIO((FOLDER / image.file).read_bytes())) as picture:
            return b"P6\n%d %d\n255\n" % picture.size + picture.convert("RGB").tobytes()


@cache
def _annotations() -> Mapping[str, Any]:
    """By image id: `keypoints`, those that can be seen, (x, y) by name, and `box` of the object, in pixels."""
    read: dict[str, Any] = json.loads((FOLDER / "annotations.json").read_bytes())
    return read


def _marks(image: ImageRecord) -> Marks:
    about = _annotations()[image.id]
    return Marks(about["keypoints"], box=tuple(about["box"]))


def _records(split: str) -> list[ImageRecord]:
    """The pictures of a split, category by category."""
    names = [(own, f"{own}/{split}{number:04d}") for own in CATEGORIES for number in range(SIZES[split])]
    return [ImageRecord(id=name, category=category, file=f"{name}.webp") for category, name in names]


def _lot(pair: tuple[ImageRecord, ImageRecord]) -> bytes:
    """Puts pairs in an order that looks random and never changes."""
    return hashlib.sha256(f"{pair[0].id} {pair[1].id}".encode()).digest()


DATASET = DemoDataset
