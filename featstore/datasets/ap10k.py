"""AP-10K (Yu et al. 2021) as a benchmark of correspondence (GeoAware-SC, Zhang et al. 2024): 54 species of 23 families,
17 keypoints, pairs within a species, between species of a family, and between families.

As it is distributed, from which images, splits and pairs follow by the rules of GeoAware-SC's notebook:

    <root>/annotations/ap10k-{train,val,test}-split1.json       in COCO's form
    <root>/data/<file_name>                                     or where the notebook puts them, as below
    <root>/is_crowd.txt                                         images with many animals; comes with GeoAware-SC's code

As that notebook writes it, which is read where the above is not there:

    <root>/JPEGImages/<family>/<species>/<image id, 12 digits>.jpg
    <root>/ImageAnnotation/<family>/<species>/<image id>.json   keypoints (x, y, v), bbox, width, height
    <root>/PairAnnotation/<split>/<image id>-<image id>:<category>.json

The notebook takes images in the order in which a disk lists them, so every disk has other splits and pairs; by the
rules here they are sorted. Nobody here has read AP-10K's own files: docs/datasets.md.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, combinations, groupby
from pathlib import Path
from random import Random
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.coco import CocoAnnotation, CocoFile, CocoObject, Size, by_id, image_in, marks_of, read_json
from featstore.datasets.drawn import Drawn, DrawnDataset, MarkedImage
from featstore.datasets.listed import find_root
from featstore.datasets.reading import Entry, Tree, entries, is_file, is_folder, read_text, subfolders
from featstore.datasets.records import ImageRecord
from featstore.datasets.spair import COLONS
from featstore.errors import DatasetError
from featstore.plain_text import shown

KEYPOINTS = (
    "left_eye", "right_eye", "nose", "neck", "root_of_tail", "left_shoulder", "left_elbow", "left_front_paw",
    "right_shoulder", "right_elbow", "right_front_paw", "left_hip", "left_knee", "left_back_paw", "right_hip",
    "right_knee", "right_back_paw",
)  # fmt: skip
"""By their ids, from 0."""

SPLITS = {"trn": "trn", "val": "val", "test": "test"} | {
    f"{part}-cross-{kind}": f"{part}_cross_{kind}" for kind in ("species", "family") for part in ("val", "test")
}
"""The folders of `PairAnnotation` by the split's name. Pairs of `cross-species` are of a family, those of
`cross-family` of the category of that name, which GeoAware-SC calls `all`."""

CROSS_FAMILY = "cross-family"

_SEED = 42
_COMMON = 3
"""What a pair's keypoints must come to: visible in both counts 1, hidden in one 1/2, in both 1/4."""

_FILES = {part: f"annotations/ap10k-{part}-split1.json" for part in ("train", "test", "val")}
"""In the order in which their annotations are joined."""

_EXPECTED = f"{_FILES['train']}, or PairAnnotation beside ImageAnnotation and JPEGImages"

_CROWDS = "is_crowd.txt"
_PAIR = re.compile(f"([0-9]{{12}})-([0-9]{{12}})[{''.join(COLONS)}](.+)")


@dataclass(frozen=True)
class Animal(MarkedImage):
    """An image with its number, the animal's family, and v / 2 of all keypoints, (17,)."""

    number: int
    family: str
    seen: NDArray[np.float64]

    @property
    def species(self) -> str:
        """The category."""
        return self.record.category


class _ImageAnnotation(CocoObject):
    """What is needed of a file of `ImageAnnotation`."""

    width: int
    height: int


Parts = Mapping[str, Mapping[tuple[str, str], list[Animal]]]
"""By part of the data (trn, val, test), family and species, sorted."""

_Lot = tuple[str, Animal, Animal, str]
"""A split, and a pair of it with its category."""


class Ap10kDataset(DrawnDataset):
    """AP-10K in the folder `root`."""

    name = "ap10k"
    about = "AP-10K (Yu et al. 2021), GeoAware-SC's pairs within species, across species, across families"

    @classmethod
    def open(cls, root: Path | None) -> Self:
        """The data set in `root`, or in its sub-folder of the usual name. Raises `DatasetError` where it is not."""
        return cls(find_root(cls.name, "ap-10k", _EXPECTED, root, lambda own: _is_original(own) or _is_prepared(own)))

    def draw(self) -> Mapping[str, Sequence[Drawn]]:
        """The pairs by the rules, or, where only those are there, as prepared; by the name of a pair's file."""
        return _by_rule(self.root) if _is_original(self.root) else _as_prepared(self.root)

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (of the whole)
        """That pairs as prepared are there and not taken."""
        if not (_is_original(self.root) and _is_prepared(self.root)):
            return ()
        what = f"The pairs of {self.root} follow from its annotations, not from PairAnnotation"
        advice = "whose pairs depend on the disk that they were written on; a root without annotations gives those"
        return (f"{what}, {advice}.",)


DATASET = Ap10kDataset


def _is_original(root: Path) -> bool:
    return is_file(root / _FILES["train"])


def _is_prepared(root: Path) -> bool:
    return is_folder(root / "PairAnnotation") and is_folder(root / "ImageAnnotation")


def _animal(place: str, record: ImageRecord, number: int, family: str, found: CocoObject, size: Size) -> Animal:
    """An image with what stands of it at `place`."""
    return Animal(record, marks_of(place, KEYPOINTS, found, size), number, family, np.array(found.keypoints[2::3]) / 2)


# By GeoAware-SC's rules


def _by_rule(root: Path) -> Mapping[str, Sequence[Drawn]]:
    parts = _parts(_animals(root))
    found: dict[str, list[tuple[Animal, Animal, str]]] = {split: [] for split in SPLITS}
    for split, one, two, category in chain(_within_species(parts), _across_species(parts), _across_families(parts)):
        found[split].append((one, two, category))
    for own in found.values():
        own.sort(key=lambda pair: (pair[0].number, pair[1].number, pair[2]))
    return found


def _animals(root: Path) -> Iterator[Animal]:
    """The images that count: of each the first annotation, whatever other animals it shows. Raises `DatasetError` where
    a file is missing or malformed."""
    if not is_file(root / _CROWDS):
        what = f"{root} has no {_CROWDS}, GeoAware-SC's list of images that show many animals"
        raise DatasetError(f"{what}; copy it from github.com/Junyi42/GeoAware-SC, as other pairs follow without it.")
    crowds = set(read_text(root / _CROWDS).split())
    files = {root / file: read_json(CocoFile, root / file) for file in _FILES.values()}
    train, tree = next(iter(files)), Tree(root)
    images = {image.id: image for content in files.values() for image in content.images}
    categories = by_id(train, "categories", files[train].categories)
    first: dict[int, tuple[Path, int, CocoAnnotation]] = {}
    for path, content in files.items():
        for place, own in enumerate(content.annotations):
            if own.image_id in images and own.category_id in categories:
                first.setdefault(own.image_id, (path, place, own))
    for number, (path, place, own) in first.items():
        if f"{number:012}" in crowds or (own.num_keypoints or 0) < _COMMON:
            continue
        image, species = images[number], categories[own.category_id]
        if species.supercategory is None:
            what = f"the category {species.name} has no supercategory, its family"
            raise DatasetError(f"{train}: {what}; restore the file.")
        prepared = f"JPEGImages/{species.supercategory}/{species.name}/{number:012}.jpg"
        record = image_in(tree, path, number, (f"data/{image.file_name}", prepared), species.name)
        yield _animal(f"{path}: annotations[{place}]", record, number, species.supercategory, own, image.size)


def _parts(animals: Iterable[Animal]) -> Parts:
    """The last 30 images of each species are for test, up to 20 before for val, the rest for trn."""
    parts: dict[str, dict[tuple[str, str], list[Animal]]] = {"trn": {}, "val": {}, "test": {}}
    ordered = sorted(animals, key=lambda animal: (animal.family, animal.species, animal.number))
    for kind, own in groupby(ordered, key=lambda animal: (animal.family, animal.species)):
        every = list(own)
        test = max(len(every) - 30, 0)
        val = max(test - 20, 0)
        parts["trn"][kind], parts["val"][kind], parts["test"][kind] = every[:val], every[val:test], every[test:]
    return parts


def _sharing(ours: Sequence[Animal], theirs: Sequence[Animal]) -> Iterator[tuple[Animal, Animal]]:
    """All pairs of one of ours and one of theirs that share enough keypoints, those of our first one first; of the same
    list twice each pair once."""
    if ours and theirs:
        seen, shown = (np.stack([animal.seen for animal in own]) for own in (ours, theirs))
        enough = seen @ shown.T >= _COMMON
        for one, two in np.argwhere(np.triu(enough, 1) if ours is theirs else enough):
            yield ours[one], theirs[two]


def _within_species(parts: Parts) -> Iterator[_Lot]:
    """All pairs, in the order in which images were shuffled; for training at most 50 per image."""
    lots = Random(_SEED)
    for part in ("trn", "test", "val"):
        for (_, species), own in parts[part].items():
            shuffled = own.copy()
            lots.shuffle(shuffled)
            found = list(_sharing(shuffled, shuffled))
            count = min(50 * len(own), len(found)) if part == "trn" else len(found)
            yield from ((part, *pair, species) for pair in lots.sample(found, count))


def _across_species(parts: Parts) -> Iterator[_Lot]:
    """Of every family 400 pairs of two species for val, 900 for test; the first species is the source's."""
    lots = Random(_SEED)
    for part, most in (("val", 400), ("test", 900)):
        for family, own in groupby(parts[part].items(), key=lambda item: item[0][0]):
            found: list[tuple[Animal, Animal]] = []
            for (_, ours), (_, theirs) in combinations(own, 2):
                for _ in range(len(ours) * len(theirs)):
                    lots.random()  # the notebook draws whether to exchange both, and makes no use of it
                found += _sharing(ours, theirs)
            pairs = lots.sample(found, min(most, len(found)))
            yield from ((f"{part}-cross-species", *pair, family) for pair in pairs)


def _across_families(parts: Parts) -> Iterator[_Lot]:
    """Of every two families 30 pairs for test, 20 for val; the first family is the source's."""
    lots = Random(_SEED)
    for part, most in (("test", 30), ("val", 20)):
        families: dict[str, list[Animal]] = {}
        for (family, _), own in parts[part].items():
            families.setdefault(family, []).extend(own)
        for ours, theirs in combinations(families.values(), 2):
            found = list(_sharing(ours, theirs))
            pairs = lots.sample(found, min(most, len(found)))
            yield from ((f"{part}-{CROSS_FAMILY}", *pair, CROSS_FAMILY) for pair in pairs)


# As prepared


def _as_prepared(root: Path) -> Mapping[str, Sequence[Drawn]]:
    tree, files = Tree(root), _annotation_files(root)

    @cache  # images recur in many pairs
    def animal(stem: str) -> Animal:
        family, species, path = files[stem]
        record = tree.image(Entry(path, 0, {}), f"JPEGImages/{family}/{species}/{stem}.jpg", species)
        found = read_json(_ImageAnnotation, path)
        return _animal(str(path), record, int(stem), family, found, (found.width, found.height))

    def pairs(split: str, folder: Path) -> Iterator[Drawn]:
        for file in entries(folder):
            named = _PAIR.fullmatch(file.stem)
            if named is None or not {named[1], named[2]} <= files.keys():
                what = "not <image id>-<image id>:<category>.json of two images that ImageAnnotation has"
                raise DatasetError(f"{folder} holds {shown(file.name)}, {what}; remove the file, or restore its name.")
            one, two = animal(named[1]), animal(named[2])
            kind = split.partition("-")[2]
            category = {"": one.species, "cross-species": one.family}.get(kind, CROSS_FAMILY)
            if named[3] != ("all" if kind == CROSS_FAMILY else category):
                what = f"its category is {shown(named[3])} where its source is of {one.family}, {one.species}"
                raise DatasetError(f"{file}: {what}; remove the file, or restore its name.")
            yield one, two, category

    folders = {split: root / "PairAnnotation" / name for split, name in SPLITS.items()}
    return {split: list(pairs(split, folder)) for split, folder in folders.items() if is_folder(folder)}


def _annotation_files(root: Path) -> dict[str, tuple[str, str, Path]]:
    """Family, species and annotation file of all images by their 12 digits."""
    found: dict[str, tuple[str, str, Path]] = {}
    for species in (own for family in subfolders(root / "ImageAnnotation") for own in subfolders(family)):
        for file in (own for own in entries(species) if own.suffix == ".json"):
            other = found.setdefault(file.stem, (species.parent.name, species.name, file))[-1]
            if other != file:
                raise DatasetError(f"{other} and {file} are both of the image {file.stem}; remove one of them.")
    return found
