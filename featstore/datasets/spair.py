"""SPair-71k (Min et al. 2019) as distributed: 1,800 photographs, 70,958 annotated pairs, 18 categories.

<root>/JPEGImages/<category>/<stem>.jpg
<root>/PairAnnotation/{trn,val,test}/<line>.json
<root>/Layout/large/{trn,val,test}.txt        lines like 000001-2008_002719-2008_004100:aeroplane
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PurePosixPath

import numpy as np

from featstore.datasets.reading import (
    ListedPair,
    Tree,
    all_lists,
    is_file,
    is_folder,
    note_repeated,
    read_image,
    read_lines,
    repeated_pairs,
    sorted_images,
    split_list,
)
from featstore.datasets.records import ImageRecord, Pair, ThetaRule, canonical_split, in_both
from featstore.datasets.spair_annotation import read_annotation
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import is_plain, nfc, shown

EXPECTED = "Layout/large/{trn,val,test}.txt"
"""The list files that a root of this dataset holds, for error sentences."""

_LINE = re.compile(r"(?P<number>\d+)-(?P<source>[^-:/\\]+)-(?P<target>[^-:/\\]+):(?P<category>[^:/\\]+)")

_COLONS = (":", "_", "\uf03a")
"""What stands for the colon in annotations' names: itself, what zip programs put in its place on Windows, and what
Windows' Linux subsystem does."""


def find_lists(root: Path) -> dict[str, Path]:
    """The list files that `root` holds, by split."""
    lists = {split: root / "Layout" / "large" / f"{split}.txt" for split in ("trn", "val", "test")}
    return {split: path for split, path in lists.items() if is_file(path)}


@dataclass(frozen=True, slots=True)
class SpairDataset:
    """SPair-71k in the folder `root`. See `featstore.datasets.records.Dataset`."""

    root: Path

    @property
    def name(self) -> str:
        return "spair"

    @property
    def splits(self) -> tuple[str, ...]:
        """Those whose list is there."""
        return tuple(find_lists(self.root))

    @property
    def theta_rule(self) -> ThetaRule:
        return ThetaRule.BOX

    def images(self) -> tuple[ImageRecord, ...]:
        """The images that the lists of all splits name; no annotation is opened."""
        lists = all_lists(find_lists(self.root), EXPECTED, self.root)
        tree = Tree(self.root)
        return sorted_images(
            (_record(tree, entry, stem), entry.where)
            for path in lists
            for entry in _entries(path)
            for stem in (entry.source, entry.target)
        )

    def pairs(self, split: str) -> tuple[Pair, ...]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        folder = PurePosixPath("PairAnnotation", canonical_split(split))
        tree, entries = Tree(self.root), tuple(_entries(path))
        repeated = repeated_pairs(entry.pair for entry in entries)
        pairs = {entry.pair.line: _pair(tree, entry, _annotation_file(tree, folder, entry)) for entry in entries}
        for line, first in repeated.items():
            if not _is_same(pairs.pop(line), pairs[first]):
                raise DatasetError(
                    f"{path}, line {line}: names the pair of line {first}, but its annotation has other keypoints or "
                    "boxes; remove one of the lines."
                )
        if not pairs:
            raise DatasetError(f"{path} lists no pairs; restore the file from SPair-71k.")
        return tuple(pairs.values())

    def members(self, split: str) -> frozenset[str]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        return frozenset(image for entry in _entries(path) for image in (entry.pair.source, entry.pair.target))

    def notes(self, split: str | None) -> tuple[str, ...]:
        if split is None:
            return ()
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        return note_repeated([entry.pair for entry in _entries(path)])

    def read(self, image: ImageRecord) -> bytes:
        return read_image(self.root, image)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a list."""

    line: str
    where: str
    source: str
    target: str
    category: str
    pair: ListedPair


def _entries(path: Path) -> Iterator[_Entry]:
    for number, line in read_lines(path):
        match = _LINE.fullmatch(line) if is_plain(line) else None
        if match is None:
            raise DatasetError(
                f"{path}, line {number}: {shown(line)} is not <number>-<source>-<target>:<category>; "
                "restore the file from SPair-71k."
            )
        source, target, category = match["source"], match["target"], match["category"]
        pair = ListedPair(path, number, nfc(f"{category}/{source}"), nfc(f"{category}/{target}"))
        yield _Entry(line, f"{path}, line {number}", source, target, category, pair)


def _record(tree: Tree, entry: _Entry, stem: str) -> ImageRecord:
    file = f"JPEGImages/{entry.category}/{stem}.jpg"
    # A category of '..' would be another folder than JPEGImages'.
    found = None if entry.category.startswith(".") else tree.find(file)
    if found is None:
        raise DatasetError(
            f"{entry.where}: names the image {shown(file)}, which is not in {tree.root}; "
            "restore the image or remove the line."
        )
    return ImageRecord(id=nfc(f"{entry.category}/{stem}"), category=nfc(entry.category), file=found)


def _annotation_file(tree: Tree, folder: PurePosixPath, entry: _Entry) -> Path:
    names = [f"{entry.line.replace(':', colon)}.json" for colon in _COLONS]
    found = [path for name in names if (path := tree.find(str(folder / name))) is not None]
    if not found:
        # whoever wants the images alone unpacks no annotations
        kind = DatasetError if is_folder(tree.root / folder) else UnmarkedError
        raise kind(
            f"{entry.where}: its annotation {tree.root / folder / names[0]} is not there; restore it or remove the "
            "line."
        )
    if len(found) > 1:
        raise DatasetError(
            f"{entry.where}: its annotation is there {len(found)} times, as "
            f"{' and '.join(Path(path).name for path in found)}, in {tree.root / folder}; remove all but one."
        )
    return tree.root / found[0]


def _pair(tree: Tree, entry: _Entry, path: Path) -> Pair:
    source, target = _record(tree, entry, entry.source), _record(tree, entry, entry.target)
    annotation = read_annotation(path)
    _check_agreement(entry, path, annotation.names_by_field)
    common = in_both(annotation.source_points, annotation.target_points)
    if not common.any():
        raise DatasetError(
            f"{entry.where}: the pair {source.id} -> {target.id} has no common keypoint in {path}; remove the line."
        )
    return Pair(
        source=source.id,
        target=target.id,
        category=source.category,
        source_points=annotation.source_points[common],
        target_points=annotation.target_points[common],
        names=tuple(compress(annotation.keypoints, common)),
        source_box=annotation.source_box,
        target_box=annotation.target_box,
        difficulty=annotation.difficulty,
        source_size=annotation.source_size,
        target_size=annotation.target_size,
        source_place=str(path),
        target_place=str(path),
    )


def _is_same(one: Pair, other: Pair) -> bool:
    same_points = np.array_equal(one.source_points, other.source_points) and np.array_equal(
        one.target_points, other.target_points
    )
    return same_points and (one.source_box, one.target_box) == (other.source_box, other.target_box)


def _check_agreement(entry: _Entry, path: Path, names_by_field: Mapping[str, str]) -> None:
    expected = {
        "src_imname": f"{entry.source}.jpg",
        "trg_imname": f"{entry.target}.jpg",
        "category": entry.category,
    }
    for field, value in expected.items():
        if nfc(names_by_field[field]) != nfc(value):
            raise DatasetError(
                f"{path}: its {field} is {shown(names_by_field[field])} where {entry.where} says {value!r}; "
                "restore both from SPair-71k."
            )
