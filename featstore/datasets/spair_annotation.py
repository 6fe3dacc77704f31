"""One annotation of SPair-71k: a JSON file about a pair, checked field by field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featstore.datasets.reading import read_bytes
from featstore.datasets.records import LARGEST_COORDINATE, Box, Difficulty, Points
from featstore.errors import DatasetError
from featstore.plain_text import is_plain, one_line

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
