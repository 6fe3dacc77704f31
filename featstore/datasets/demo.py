"""The demo dataset: drawn birds, cars, fish and persons, 128x128 pixels, with keypoints and boxes.

It ships as `featstore/assets/demo_pictures`: `<category>/<split><number>.webp`, and `annotations.json` with each
picture's visible keypoints and its object's box, in pixels. `tools/write_demo_pictures.py` draws them.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Self

from PIL import Image

from featstore.datasets.records import ImageRecord, Pair, ThetaRule, canonical_split, pair_by_name
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
        records = [record for split in SIZES for category in CATEGORIES for record in _records(category, split)]
        return tuple(sorted(records, key=lambda record: record.id))

    def pairs(self, split: str) -> tuple[Pair, ...]:
        split = canonical_split(split)
        if split not in SIZES:
            raise DatasetError(f"The demo dataset has no split {split!r}; choose one of {', '.join(SIZES)}.")
        return tuple(pair for category in CATEGORIES for pair in _pairs(category, split))

    def members(self, split: str) -> frozenset[str]:
        return frozenset(record.id for category in CATEGORIES for record in _records(category, canonical_split(split)))

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (nothing is odd about what is drawn)
        return ()

    def read(self, image: ImageRecord) -> bytes:
        """The picture as a binary PPM: a few bytes of header and the pixels, the same whatever reads or writes WebP."""
        if image.id not in _annotations() or image.file != f"{image.id}.webp":
            raise DatasetError(
                f"{image.id} ({image.file!r}) is no picture of the demo dataset; list them with images()."
            )
        with Image.open(io.BytesIO((FOLDER / image.file).read_bytes())) as picture:
            return b"P6\n%d %d\n255\n" % picture.size + picture.convert("RGB").tobytes()


@cache
def _annotations() -> Mapping[str, Any]:
    """By image id: `keypoints`, those that can be seen, (x, y) by name, and `box` of the object, in pixels."""
    read: dict[str, Any] = json.loads((FOLDER / "annotations.json").read_bytes())
    return read


def _records(category: str, split: str) -> Iterator[ImageRecord]:
    for number in range(SIZES[split]):
        name = f"{category}/{split}{number:04d}"
        yield ImageRecord(id=name, category=category, file=f"{name}.webp")


def _pairs(category: str, split: str) -> Iterator[Pair]:
    """The pairs of a category in the order of their ids, those without a common keypoint left out."""
    chosen = list(permutations(_records(category, split), 2))
    if split == "test":
        by_chance = sorted(chosen, key=lambda pair: _lot(*pair))
        chosen = sorted(by_chance[:TEST_PAIRS], key=lambda pair: (pair[0].id, pair[1].id))
    for source, target in chosen:
        ours, theirs = _annotations()[source.id], _annotations()[target.id]
        pair = pair_by_name(source, target, ours["keypoints"], theirs["keypoints"])
        if pair is not None:
            yield replace(pair, source_box=tuple(ours["box"]), target_box=tuple(theirs["box"]))


def _lot(source: ImageRecord, target: ImageRecord) -> bytes:
    """Puts pairs in an order that looks random and never changes."""
    return hashlib.sha256(f"{source.id} {target.id}".encode()).digest()


DATASET = DemoDataset
