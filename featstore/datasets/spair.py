"""One annotation of SPair-71k: a JSON file about a pair, checked field by field."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from featstore.datasets.reading import (
    ListedPair,
    Tree,
    all_lists,
    is_file,
    is_folder,
    note_repeated,
    read_bytes,
    read_image,
    read_lines,
    repeated_pairs,
    sorted_images,
    split_list,
)
from featstore.datasets.records import (
    LARGEST_COORDINATE,
    Box,
    Difficulty,
    ImageRecord,
    Pair,
    Points,
    ThetaRule,
    canonical_split,
    in_both,
)
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import is_plain, nfc, one_line, shown

_LEVELS = {"viewpoint_variation": 2, "scale_variation": 2, "truncation": 3, "occlusion": 3}
"""The highest value of each difficulty flag; the lowest is 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """What an annotation says.

    names_by_field: the text fields `src_imname`, `trg_imname` and `category`. keypoints: n names.
    source_points, target_points: (n, 2), pixels of the original images, NaN where a keypoint is absent. source_size,
    target_size: (width, height) of the images, None where the file does not state them. difficulty: None where the
    file has no flags.
    """

    names_by_field: Mapping[str, str]
    keypoints: tuple[str, ...]
    source_points: Points
    target_points: Points
    source_box: Box
    target_box: Box
    source_size: tuple[float, float] | None
    target_size: tuple[float, float] | None
    difficulty: Difficulty | None


def read_annotation(path: Path) -> Annotation:
    """Raises `DatasetError` naming the file and the field for whatever is malformed."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or undecodable text
        raise DatasetError(f"{path} is no valid JSON ({one_line(error)}); restore it from SPair-71k.") from error
    if not isinstance(content, dict):
        raise _wrong(path, "its content is no JSON object")
    keypoints = _keypoint_names(path, content)
    return Annotation(
        names_by_field={field: _text(path, content, field) for field in ("src_imname", "trg_imname", "category")},
        keypoints=keypoints,
        source_points=_points(path, content, "src_kps", len(keypoints)),
        target_points=_points(path, content, "trg_kps", len(keypoints)),
        source_box=_box(path, content, "src_bndbox"),
        target_box=_box(path, content, "trg_bndbox"),
        source_size=_size(path, content, "src_imsize"),
        target_size=_size(path, content, "trg_imsize"),
        difficulty=_difficulty(path, content),
    )


def _wrong(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path}: {what}; restore the file from SPair-71k.")


def _field(path: Path, content: Mapping[str, Any], field: str) -> Any:
    if field not in content:
        raise _wrong(path, f"it has no field {field}")
    return content[field]


def _text(path: Path, content: Mapping[str, Any], field: str) -> str:
    value = _field(path, content, field)
    if not isinstance(value, str):
        raise _wrong(path, f"{field} is no text")
    return value


def _keypoint_names(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """The ids, which SPair-71k numbers from 0, as names."""
    ids = _field(path, content, "kps_ids")
    if not isinstance(ids, list) or not all(map(_is_id, ids)):
        raise _wrong(path, "kps_ids is no list of keypoint ids")
    names = tuple(str(item) for item in ids)
    if len(set(names)) != len(names):
        raise _wrong(path, "kps_ids names a keypoint twice")
    return names


def _is_id(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return False
    return bool(text := str(value).strip()) and is_plain(text)


def _points(path: Path, content: Mapping[str, Any], field: str, count: int) -> Points:
    value = _field(path, content, field)
    if not isinstance(value, list):
        raise _wrong(path, f"{field} is no list of points")
    if len(value) != count:
        raise _wrong(path, f"{field} has {len(value)} points where kps_ids has {count}")
    numbers = [number for point in value if isinstance(point, list) and len(point) == 2 for number in point]
    if len(numbers) != 2 * count or not all(map(_is_coordinate, numbers)):
        numbers = [number for point in value for number in _point(path, field, point)]
    return np.array(numbers, dtype=np.float64).reshape(count, 2)


def _point(path: Path, field: str, point: object) -> tuple[float, float]:
    """One of points among which some are absent: null, or two values that are null or NaN each."""
    if point is None or (isinstance(point, list) and len(point) == 2 and all(map(_is_absent, point))):
        return math.nan, math.nan
    if not isinstance(point, list) or len(point) != 2 or not all(map(_is_coordinate, point)):
        raise _wrong(
            path, f"{field} has a point that is not two finite numbers [x, y] of pixels, nor null for an absent one"
        )
    return point[0], point[1]


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _size(path: Path, content: Mapping[str, Any], field: str) -> tuple[float, float] | None:
    """Of [width, height, channels]; the published files have it, and nothing but a check needs it."""
    value = content.get(field)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) not in (2, 3) or not all(map(_is_coordinate, value)):
        raise _wrong(path, f"{field} is not [width, height, channels] in pixels")
    return float(value[0]), float(value[1])


def _box(path: Path, content: Mapping[str, Any], field: str) -> Box:
    value = _field(path, content, field)
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_coordinate, value)):
        raise _wrong(path, f"{field} is not four finite numbers [x1, y1, x2, y2] of pixels")
    x1, y1, x2, y2 = map(float, value)
    return x1, y1, x2, y2


def _is_coordinate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_COORDINATE


def _brief(value: object) -> str:
    """A value for a sentence; what is no scalar may be of any size and depth, and is not looked into."""
    return repr(str(value)[:40]) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _difficulty(path: Path, content: Mapping[str, Any]) -> Difficulty | None:
    if not any(field in content for field in _LEVELS):
        return None
    for field, highest in _LEVELS.items():
        value = _field(path, content, field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
            raise _wrong(path, f"{field} is {_brief(value)} where 0 to {highest} is known")
    return Difficulty(
        viewpoint=content["viewpoint_variation"],
        scale=content["scale_variation"],
        truncation=content["truncation"],
        occlusion=content["occlusion"],
    )


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
