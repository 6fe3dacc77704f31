"""SPair-71k as published (Min et al. 2019): 1,800 photographs of 18 categories, keypoints, boxes, difficulty flags.

<root>/Layout/large/{trn,val,test}.txt                  lines `000001-2008_002719-2008_004100:aeroplane`
<root>/JPEGImages/<category>/<stem>.jpg
<root>/PairAnnotation/<split>/<line>.json               the pair's keypoints, boxes and flags; where no ':' can be in a
                                                        file's name, '_' (or what WSL writes) is in its place
<root>/ImageAnnotation/<category>/<stem>.json           all keypoints that an image shows; optional, for what a target
                                                        shows and the source does not
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from featstore.datasets.listed import ListedDataset, ListedPair
from featstore.datasets.reading import Row, Tree, is_file, is_folder, read_bytes, read_text
from featstore.datasets.records import LARGEST_COORDINATE, Difficulty, ImageRecord, Marks, Pair, ThetaRule
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


def _wrong(where: Path | str, what: str) -> DatasetError:
    return DatasetError(f"{where}: {what}; restore the file from SPair-71k.")


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


def _marks(path: Path, annotation: _Annotation, role: Literal["src", "trg"]) -> Marks:
    """Of the source or the target."""
    field, names = f"{role}_kps", annotation.kps_ids
    listed, size = getattr(annotation, field), getattr(annotation, f"{role}_imsize")
    if len(listed) != len(names):
        raise _wrong(path, f"{field} has {len(listed)} points where kps_ids has {len(names)}")
    points = np.array([point or (None, None) for point in listed], dtype=np.float64).reshape(-1, 2)
    if (np.abs(points) > LARGEST_COORDINATE).any() or (np.isnan(points[:, 0]) != np.isnan(points[:, 1])).any():
        what = "a point that is not two finite numbers [x, y] of pixels, nor null for an absent one"
        raise _wrong(path, f"{field} has {what}")
    box = getattr(annotation, f"{role}_bndbox")
    return replace(Marks.of_list(names, points, str(path)), box=box, size=None if size is None else size[:2])


LINE = re.compile(r"(?P<number>\d+)-(?P<source>[^-:/\\]+)-(?P<target>[^-:/\\]+):(?P<category>[^:/\\]+)")

COLONS = (":", "_", "\uf03a")
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

    @staticmethod
    def rows(path: Path) -> Iterator[Row]:
        """The lines that are not blank; a row's values are `line`, `source`, `target` and `category`."""
        # Not splitlines(): it also breaks at separators that no editor counts as a line.
        for number, line in enumerate(map(str.strip, read_text(path).split("\n")), start=1):
            match = LINE.fullmatch(line) if is_plain(line) else None
            if match:
                yield Row(path, number, {"line": line, **match.groupdict()})
            elif line:
                what = f"{shown(line)} is not <number>-<source>-<target>:<category>"
                raise _wrong(f"{path}, line {number}", what)

    def image(self, tree: Tree, row: Row, side: int) -> ImageRecord:
        """What a row names as its source or target."""
        category, stem = row.values["category"], row.values[("source", "target")[side]]
        return tree.image(row, f"JPEGImages/{category}/{stem}.jpg", category)

    def reader(self, path: Path) -> Callable[[ListedPair], Pair | None]:
        """What reads a pair's annotation file."""
        tree, folder = Tree(self.root), f"PairAnnotation/{path.stem}"
        shown_by = cache(partial(_shown_by, tree))  # images recur in many pairs

        def read(listed: ListedPair) -> Pair:
            pair = _pair(listed, _annotation_file(tree, folder, listed.row))
            more = {name: point for name, point in shown_by(listed.target.id).items() if name not in pair.names}
            return replace(pair, target_only={**pair.target_only, **more})

        return read


DATASET = SpairDataset


class _ImageAnnotation(BaseModel):
    """What an image's own annotation says and is read: keypoints by id, null for one that it does not show."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    kps: dict[str, Annotated[tuple[_Coordinate, _Coordinate], Field(strict=False)] | None]


def _shown_by(tree: Tree, image: str) -> Mapping[str, tuple[float, float]]:
    """(x, y) by name of all keypoints that an image shows; none where it has no annotation of its own."""
    found = tree.find(f"ImageAnnotation/{image}.json")
    if found is None:
        return {}
    path = tree.root / found
    try:
        own = _ImageAnnotation.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise _wrong(path, sentence_of(error, "")) from error
    return {name: point for name, point in own.kps.items() if point is not None}


def _annotation_file(tree: Tree, folder: str, row: Row) -> Path:
    names = [f"{row.values['line'].replace(':', colon)}.json" for colon in COLONS]
    found = [path for name in names if (path := tree.find(f"{folder}/{name}")) is not None]
    if not found:
        # whoever wants the images alone unpacks no annotations
        kind = DatasetError if is_folder(tree.root / folder) else UnmarkedError
        what = f"its annotation {tree.root / folder / names[0]} is not there"
        raise kind(f"{row.where}: {what}; restore it or remove the line.")
    if len(found) > 1:
        files = " and ".join(Path(path).name for path in found)
        what = f"its annotation is there {len(found)} times, as {files}, in {tree.root / folder}"
        raise row.refusal(f"{what}; remove all but one.")
    return tree.root / found[0]


def _pair(listed: ListedPair, path: Path) -> Pair:
    ours, theirs, difficulty = read_marks(path, listed.row)
    return replace(listed.pair(ours, theirs), difficulty=difficulty)


def read_marks(path: Path, row: Row) -> tuple[Marks, Marks, Difficulty | None]:
    """What an annotation file says of the source and the target of a pair, and the flags where it has any. Raises
    `DatasetError` where it is malformed, or of another pair than `row` names."""
    annotation, difficulty = _read_annotation(path)
    _check_names(path, annotation, row)
    if len(set(annotation.kps_ids)) != len(annotation.kps_ids):
        raise _wrong(path, "kps_ids names a keypoint twice")
    return _marks(path, annotation, "src"), _marks(path, annotation, "trg"), difficulty


def _check_names(path: Path, annotation: _Annotation, row: Row) -> None:
    """Raise `DatasetError` where an annotation is of other images than the list says."""
    values = row.values
    expected = {"src_imname": f"{values['source']}.jpg", "trg_imname": f"{values['target']}.jpg"}
    for field, value in {**expected, "category": values["category"]}.items():
        found = getattr(annotation, field)
        if nfc(found) != nfc(value):
            what = f"its {field} is {shown(found)} where {row.where} says {value!r}"
            raise DatasetError(f"{path}: {what}; restore both from SPair-71k.")
