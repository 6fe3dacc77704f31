"""SPair-71k as published (Min et al. 2019): 1,800 photographs of 18 categories, keypoints, boxes, difficulty flags.

<root>/Layout/large/{trn,val,test}.txt                  lines `000001-2008_002719-2008_004100:aeroplane`
<root>/JPEGImages/<category>/<stem>.jpg
<root>/PairAnnotation/<split>/<line>.json               the pair's keypoints, boxes and flags; where no ':' can be in a
                                                        file's name, '_' (or what WSL writes) is in its place
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from featstore.datasets.listed import ImageFinder, ListedDataset, ListedPair, repeated_pairs
from featstore.datasets.reading import Row, Tree, is_file, is_folder, read_bytes, read_lines
from featstore.datasets.records import LARGEST_COORDINATE, Difficulty, Pair, Points, ThetaRule, canonical_split
from featstore.errors import DatasetError, UnmarkedError
from featstore.parsing import sentence_of
from featstore.plain_text import is_plain, nfc, one_line, shown


def _keypoint_name(value: Any) -> str:
    """An id, which SPair-71k numbers from 0, as a name."""
    name = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not name.strip() or not is_plain(name):
        raise ValueError("an id of a keypoint is a number or a plain text")
    return name


_Coordinate = Annotated[float, Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]
_Number = Annotated[float | None, Field(allow_inf_nan=True)]
_Points = list[Annotated[list[_Number], Field(min_length=2, max_length=2)] | None]
_Box = Annotated[tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate], Field(strict=False)]
_Size = Annotated[tuple[_Coordinate, ...], Field(strict=False, min_length=2, max_length=3)]


class _Flags(BaseModel):
    """The difficulty flags."""

    model_config = ConfigDict(strict=True)
    viewpoint: int = Field(alias="viewpoint_variation", ge=0, le=2)
    scale: int = Field(alias="scale_variation", ge=0, le=2)
    truncation: int = Field(alias="truncation", ge=0, le=3)
    occlusion: int = Field(alias="occlusion", ge=0, le=3)


class _Annotation(BaseModel):
    """What an annotation says and is read. Boxes are [x1, y1, x2, y2], sizes [width, height, channels]; the published
    files have sizes, which nothing but a check needs. Points are of the original images; null, or two values that are
    null or NaN each, where a keypoint is absent."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    src_imname: str
    trg_imname: str
    category: str
    kps_ids: list[Annotated[Any, AfterValidator(_keypoint_name)]]
    src_kps: _Points
    trg_kps: _Points
    src_bndbox: _Box
    trg_bndbox: _Box
    src_imsize: _Size | None = None
    trg_imsize: _Size | None = None


def _wrong(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path}: {what}; restore the file from SPair-71k.")


def _read_annotation(path: Path) -> tuple[_Annotation, Difficulty | None]:
    """What an annotation says, and its flags where it has any. Raises `DatasetError` naming the file and the field for
    whatever is malformed."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or undecodable text
        raise DatasetError(f"{path} is no valid JSON ({one_line(error)}); restore it from SPair-71k.") from error
    try:
        annotation = _Annotation.model_validate(content)
        if not content.keys() & {field.alias for field in _Flags.model_fields.values()}:
            return annotation, None
        return annotation, Difficulty(**dict(_Flags.model_validate(content)))
    except ValidationError as error:
        raise _wrong(path, sentence_of(error, "")) from error


def _points(path: Path, annotation: _Annotation, field: str) -> Points:
    """(n, 2), NaN where a keypoint is absent."""
    listed = getattr(annotation, field)
    if len(listed) != len(annotation.kps_ids):
        raise _wrong(path, f"{field} has {len(listed)} points where kps_ids has {len(annotation.kps_ids)}")
    points = np.array([point or (None, None) for point in listed], dtype=np.float64).reshape(-1, 2)
    if (np.abs(points) > LARGEST_COORDINATE).any() or (np.isnan(points[:, 0]) != np.isnan(points[:, 1])).any():
        raise _wrong(
            path, f"{field} has a point that is not two finite numbers [x, y] of pixels, nor null for an absent one"
        )
    return points


_LINE = re.compile(r"(?P<number>\d+)-(?P<source>[^-:/\\]+)-(?P<target>[^-:/\\]+):(?P<category>[^:/\\]+)")

_COLONS = (":", "_", "\uf03a")
"""What stands for the colon in annotations' names: itself, what zip programs put in its place on Windows, and what
Windows' Linux subsystem does."""


class SpairDataset(ListedDataset):
    """SPair-71k in the folder `root`."""

    name = "spair"
    about = "SPair-71k (Min et al. 2019), the large lists"
    theta_rule = ThetaRule.BOX
    expected = "Layout/large/{trn,val,test}.txt"
    folders = ("SPair-71k", "SPair-71K", "spair-71k", "spair", "SPair")

    @classmethod
    def find_lists(cls, root: Path) -> dict[str, Path]:
        """The list files that a folder holds."""
        lists = {split: root / "Layout" / "large" / f"{split}.txt" for split in ("trn", "val", "test")}
        return {split: path for split, path in lists.items() if is_file(path)}

    def listed(self, path: Path) -> list[ListedPair]:
        """The pairs that a list names; a row's values are `line`, `source`, `target` and `category`."""
        finder = ImageFinder(Tree(self.root))
        found = []
        for number, line in read_lines(path):
            match = _LINE.fullmatch(line) if is_plain(line) else None
            if match is None:
                raise DatasetError(
                    f"{path}, line {number}: {shown(line)} is not <number>-<source>-<target>:<category>; "
                    "restore the file from SPair-71k."
                )
            row, category = Row(path, number, {"line": line, **match.groupdict()}), match["category"]
            source, target = (
                finder.find(row, f"JPEGImages/{category}/{match[role]}.jpg", category) for role in ("source", "target")
            )
            found.append(ListedPair(row, source, target))
        return found

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs in the list's order, each once. Raises `DatasetError` where one stands twice with other
        annotations."""
        path = self.list_of(split)
        folder, tree, listed = f"PairAnnotation/{canonical_split(split)}", Tree(self.root), self.listed(path)
        repeated = repeated_pairs(listed)
        pairs = {own.row.line: _pair(own, _annotation_file(tree, folder, own.row)) for own in listed}
        for line, first in repeated.items():
            if not _is_same(pairs.pop(line), pairs[first]):
                raise DatasetError(
                    f"{path}, line {line}: names the pair of line {first}, but its annotation has other keypoints or "
                    "boxes; remove one of the lines."
                )
        if not pairs:
            raise DatasetError(f"{path} lists no pairs; restore the file from SPair-71k.")
        return tuple(pairs.values())


DATASET = SpairDataset


def _annotation_file(tree: Tree, folder: str, row: Row) -> Path:
    names = [f"{row.values['line'].replace(':', colon)}.json" for colon in _COLONS]
    found = [path for name in names if (path := tree.find(f"{folder}/{name}")) is not None]
    if not found:
        # whoever wants the images alone unpacks no annotations
        kind = DatasetError if is_folder(tree.root / folder) else UnmarkedError
        raise kind(
            f"{row.where}: its annotation {tree.root / folder / names[0]} is not there; restore it or remove the line."
        )
    if len(found) > 1:
        raise DatasetError(
            f"{row.where}: its annotation is there {len(found)} times, as "
            f"{' and '.join(Path(path).name for path in found)}, in {tree.root / folder}; remove all but one."
        )
    return tree.root / found[0]


def _pair(listed: ListedPair, path: Path) -> Pair:
    annotation, difficulty = _read_annotation(path)
    _check_names(path, annotation, listed.row)
    names = annotation.kps_ids
    if len(set(names)) != len(names):
        raise _wrong(path, "kps_ids names a keypoint twice")
    source_points, target_points = (_points(path, annotation, field) for field in ("src_kps", "trg_kps"))
    return replace(
        listed.pair(source_points, target_points, names, (str(path), str(path))),
        source_box=annotation.src_bndbox,
        target_box=annotation.trg_bndbox,
        difficulty=difficulty,
        source_size=_size(annotation.src_imsize),
        target_size=_size(annotation.trg_imsize),
    )


def _size(stated: tuple[float, ...] | None) -> tuple[float, float] | None:
    return None if stated is None else (stated[0], stated[1])


def _check_names(path: Path, annotation: _Annotation, row: Row) -> None:
    """Raise `DatasetError` where an annotation is of other images than the list says."""
    source, target, category = (row.values[name] for name in ("source", "target", "category"))
    expected = {"src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "category": category}
    for field, value in expected.items():
        found = getattr(annotation, field)
        if nfc(found) != nfc(value):
            raise DatasetError(
                f"{path}: its {field} is {shown(found)} where {row.where} says {value!r}; restore both from SPair-71k."
            )


def _is_same(one: Pair, other: Pair) -> bool:
    same_points = np.array_equal(one.source_points, other.source_points) and np.array_equal(
        one.target_points, other.target_points
    )
    return same_points and (one.source_box, one.target_box) == (other.source_box, other.target_box)
