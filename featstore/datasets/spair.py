"""SPair-71k (Min et al. 2019) as distributed: 1,800 photographs, 70,958 annotated pairs, 18 categories.

<root>/JPEGImages/<category>/<stem>.jpg
<root>/PairAnnotation/{trn,val,test}/<line>.json
<root>/Layout/large/{trn,val,test}.txt        lines like 000001-2008_002719-2008_004100:aeroplane
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from featstore.datasets.reading import (
    all_lists,
    entry_names,
    is_file,
    read_image,
    read_lines,
    sorted_images,
    split_list,
)
from featstore.datasets.records import ImageRecord, Pair, ThetaRule, in_both
from featstore.datasets.spair_annotation import read_annotation
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import is_plain, shown

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
        photographs = _Photographs(self.root, {})
        return sorted_images(
            (photographs.record(entry, stem), entry.where)
            for path in lists
            for entry in _entries(path)
            for stem in (entry.source, entry.target)
        )

    def pairs(self, split: str) -> tuple[Pair, ...]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        folder = self.root / "PairAnnotation" / split
        there = entry_names(folder)
        photographs = _Photographs(self.root, {})
        pairs = tuple(_pair(entry, _annotation_file(folder, there, entry), photographs) for entry in _entries(path))
        if not pairs:
            raise DatasetError(f"{path} lists no pairs; restore the file from SPair-71k.")
        return pairs

    def notes(self) -> tuple[str, ...]:
        return ()

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


def _entries(path: Path) -> Iterator[_Entry]:
    for number, line in read_lines(path):
        match = _LINE.fullmatch(line) if is_plain(line) else None
        if match is None:
            raise DatasetError(
                f"{path}, line {number}: {shown(line)} is not <number>-<source>-<target>:<category>; "
                "restore the file from SPair-71k."
            )
        yield _Entry(line, f"{path}, line {number}", match["source"], match["target"], match["category"])


@dataclass(frozen=True, slots=True)
class _Photographs:
    """The image files of a root; each category's folder is listed once instead of asked for each of 71k pairs."""

    root: Path
    names: dict[str, frozenset[str]]

    def record(self, entry: _Entry, stem: str) -> ImageRecord:
        category = entry.category
        if category not in self.names:
            # A category of '..' would list another folder than JPEGImages'.
            folder = self.root / "JPEGImages" / category
            self.names[category] = frozenset() if category.startswith(".") else entry_names(folder)
        file = f"JPEGImages/{category}/{stem}.jpg"
        if f"{stem}.jpg" not in self.names[category]:
            raise DatasetError(
                f"{entry.where}: names the image {shown(file)}, which is not in {self.root}; "
                "restore the image or remove the line."
            )
        return ImageRecord(id=f"{category}/{stem}", category=category, file=file)


def _annotation_file(folder: Path, there: frozenset[str], entry: _Entry) -> Path:
    names = [f"{entry.line.replace(':', colon)}.json" for colon in _COLONS]
    found = [name for name in names if name in there]
    if not found:
        kind = DatasetError if there else UnmarkedError  # whoever wants the images alone unpacks no annotations
        raise kind(f"{entry.where}: its annotation {folder / names[0]} is not there; restore it or remove the line.")
    if len(found) > 1:
        raise DatasetError(
            f"{entry.where}: its annotation is there {len(found)} times, as {' and '.join(found)}, in {folder}; "
            "remove all but one."
        )
    return folder / found[0]


def _pair(entry: _Entry, path: Path, photographs: _Photographs) -> Pair:
    source = photographs.record(entry, entry.source)
    target = photographs.record(entry, entry.target)
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
        category=entry.category,
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


def _check_agreement(entry: _Entry, path: Path, names_by_field: Mapping[str, str]) -> None:
    expected = {
        "src_imname": f"{entry.source}.jpg",
        "trg_imname": f"{entry.target}.jpg",
        "category": entry.category,
    }
    for field, value in expected.items():
        if names_by_field[field] != value:
            raise DatasetError(
                f"{path}: its {field} is {shown(names_by_field[field])} where {entry.where} says {value!r}; "
                "restore both from SPair-71k."
            )
