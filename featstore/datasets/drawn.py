"""What data sets have in common whose images are annotated one by one, and whose pairs are drawn of them: AP-10K, COCO,
CUB-200."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import ClassVar

from featstore.datasets.reading import read_image
from featstore.datasets.records import AnnotatedPairs, ImageRecord, Marks, Pair, ThetaRule, canonical_split, pair_of
from featstore.errors import DatasetError

PAIRS_OF_A_SPLIT = 10_000
"""Pairs that a split has at most, about; SPair-71k's test list has 12,234."""

LEAST_PAIRS = 50
"""Pairs of a category that are drawn in any case, where there are so many."""

_TRIED = 20
"""Of so many pairs for each that is wanted it is looked whether they share a keypoint."""


@dataclass(frozen=True)
class MarkedImage:
    """An image, and what is annotated of the object in it that counts."""

    record: ImageRecord
    marks: Marks


Drawn = tuple[MarkedImage, MarkedImage, str]
"""The source and the target of a pair, and its category."""


@dataclass(frozen=True)
class DrawnDataset(ABC):
    """A data set in the folder `root`. See `featstore.datasets.records.Dataset`."""

    root: Path

    name: ClassVar[str]
    about: ClassVar[str]
    theta_rule: ClassVar[ThetaRule] = ThetaRule.BOX

    @abstractmethod
    def draw(self) -> Mapping[str, Sequence[Drawn]]:
        """The pairs of each split. Raises `DatasetError` where files are missing or malformed."""

    @cached_property
    def drawn(self) -> Mapping[str, Sequence[Drawn]]:
        """The same of splits that have any, of files as they were when they were first asked for. Raises `DatasetError`
        where there are none at all, and where two images would get one id."""
        drawn, known = {split: own for split, own in self.draw().items() if own}, dict[str, MarkedImage]()
        if not drawn:
            what = "has no two images of a category that share a keypoint"
            raise DatasetError(f"{self.root} {what}; mark the same parts in both.")
        for image in (end for pairs in drawn.values() for pair in pairs for end in pair[:2]):
            other = known.setdefault(image.record.id, image)
            if other is not image:
                both = f"{other.record.file} and {image.record.file}, which would both be the image {image.record.id}"
                raise DatasetError(f"{other.marks.place} and {image.marks.place} are of {both}; rename one of them.")
        return drawn

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that have pairs."""
        return tuple(self.drawn)

    def images(self) -> tuple[ImageRecord, ...]:
        """The images of all splits' pairs."""
        known = {end.record.id: end.record for pairs in self.drawn.values() for pair in pairs for end in pair[:2]}
        return tuple(known[identifier] for identifier in sorted(known))

    def pairs(self, split: str) -> AnnotatedPairs:
        """The pairs of a split, sorted. Raises `DatasetError` where there is no such split."""
        return AnnotatedPairs.of(_pair(*own) for own in self._of(split))

    def members(self, split: str) -> frozenset[str]:
        """See `featstore.datasets.records.Dataset`."""
        return frozenset(end.record.id for pair in self._of(split) for end in pair[:2])

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (of none in particular)
        """See `featstore.datasets.records.Dataset`."""
        return ()

    def read(self, image: ImageRecord) -> bytes:
        """The bytes of the image file."""
        return read_image(self.root, image)

    def _of(self, split: str) -> Sequence[Drawn]:
        split = canonical_split(split)
        if split not in self.drawn:
            raise DatasetError(f"{self.root} has no split {split!r}, it has {', '.join(self.splits)}; choose of these.")
        return self.drawn[split]


def _pair(one: MarkedImage, two: MarkedImage, category: str) -> Pair:
    pair = pair_of(one.record, two.record, one.marks, two.marks)
    if pair is None:
        places = f"{one.marks.place} and {two.marks.place}"
        raise DatasetError(f"{places}: both are paired, but share no keypoint; remove the pair's annotation.")
    only = {name: (x, y) for name, (x, y) in two.marks.points.items() if name not in one.marks.points}
    return replace(pair, category=category, target_only=only)


def draw_pairs(images: Sequence[MarkedImage]) -> list[Drawn]:
    """Ordered pairs of images of one category that share a keypoint: about `PAIRS_OF_A_SPLIT`, of every category as
    many (at least `LEAST_PAIRS`), drawn by a seed that is the category's name; sorted."""
    categories: dict[str, list[MarkedImage]] = {}
    for image in sorted(images, key=lambda image: image.record.id):
        categories.setdefault(image.record.category, []).append(image)
    most = max(LEAST_PAIRS, PAIRS_OF_A_SPLIT // max(len(categories), 1))
    found: list[Drawn] = []
    for category, own in categories.items():
        every = range(len(own) * (len(own) - 1))
        of_category: list[tuple[int, int]] = []
        for place in Random(category).sample(every, min(_TRIED * most, len(every))):
            source, target = divmod(place, len(own) - 1)
            target += target >= source  # no image is paired with itself
            if own[source].marks.points.keys() & own[target].marks.points.keys():
                of_category.append((source, target))
            if len(of_category) == most:
                break
        found += [(own[source], own[target], category) for source, target in sorted(of_category)]
    return found
