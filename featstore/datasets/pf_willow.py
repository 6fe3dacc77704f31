"""PF-Willow (Ham et al. 2016) in SD4Match's layout: 100 photographs, 10 keypoints each, 900 pairs, 10 categories.

<root>/test_pairs.csv                              imageA,imageB,XA1..XA10,YA1..YA10,XB1..XB10,YB1..YB10
                                                   nan or empty where a keypoint is absent
<root>/PF-dataset/<category>/<file>.png            categories like car(G)
"""

from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np

from featstore.datasets.reading import (
    ListedPair,
    Row,
    Tree,
    all_lists,
    check_inside,
    is_file,
    is_folder,
    read_image,
    read_rows,
    refuse_repeated,
    sorted_images,
    split_list,
)
from featstore.datasets.records import ImageRecord, Pair, Points, ThetaRule, in_both
from featstore.errors import DatasetError
from featstore.plain_text import nfc, shown

EXPECTED = "test_pairs.csv"
"""The list file that a root of this dataset holds, for error sentences."""

_KEYPOINTS = tuple(str(number) for number in range(1, 11))
_COLUMNS = ("imageA", "imageB", *(f"{axis}{side}{name}" for side in "AB" for axis in "XY" for name in _KEYPOINTS))


def find_lists(root: Path) -> dict[str, Path]:
    """The list files that `root` holds, by split."""
    path = root / "test_pairs.csv"
    # PF-Pascal's list has the same name in SD4Match's layout; the folders beside it tell them apart.
    is_pascal = is_folder(root / "PF-dataset-PASCAL") and not is_folder(root / "PF-dataset")
    return {"test": path} if is_file(path) and not is_pascal else {}


@dataclass(frozen=True, slots=True)
class PfWillowDataset:
    """PF-Willow in the folder `root`. See `featstore.datasets.records.Dataset`."""

    root: Path

    @property
    def name(self) -> str:
        return "pf-willow"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(find_lists(self.root))

    @property
    def theta_rule(self) -> ThetaRule:
        return ThetaRule.KEYPOINTS

    def images(self) -> tuple[ImageRecord, ...]:
        (path,) = all_lists(find_lists(self.root), EXPECTED, self.root)
        rows, tree = read_rows(path, _COLUMNS), Tree(self.root)
        return sorted_images((_record(tree, row, column), row.where) for row in rows for column in _COLUMNS[:2])

    def pairs(self, split: str) -> tuple[Pair, ...]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        rows, tree = read_rows(path, _COLUMNS), Tree(self.root)
        pairs = tuple(_pair(tree, row) for row in rows)
        refuse_repeated(
            [ListedPair(path, row.line, pair.source, pair.target) for row, pair in zip(rows, pairs, strict=True)]
        )
        return pairs

    def members(self, split: str) -> frozenset[str]:
        split_list(find_lists(self.root), split, EXPECTED, self.root)
        return frozenset(image.id for image in self.images())

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (what is odd about the list is refused)
        return ()

    def read(self, image: ImageRecord) -> bytes:
        return read_image(self.root, image)


def _record(tree: Tree, row: Row, column: str) -> ImageRecord:
    path = check_inside(row.text(column), row.where)
    if len(path.parts) < 2:
        raise DatasetError(
            f"{row.where}: {column} is {shown(str(path))}, without its category's folder; "
            "list it as PF-dataset/<category>/<file>."
        )
    found = tree.find(str(path))
    if found is None or not is_file(tree.root / found):
        raise DatasetError(
            f"{row.where}: names the image {shown(str(path))}, which is not in {tree.root}; restore the image or "
            "remove the row."
        )
    category = nfc(path.parts[-2])
    return ImageRecord(id=f"{category}/{nfc(path.stem)}", category=category, file=found)


def _pair(tree: Tree, row: Row) -> Pair:
    source, target = _record(tree, row, "imageA"), _record(tree, row, "imageB")
    if source.category != target.category:
        raise DatasetError(
            f"{row.where}: pairs {source.id} with {target.id}, which is of another category; remove the row."
        )
    source_points, target_points = _points(row, "A"), _points(row, "B")
    common = in_both(source_points, target_points)
    if not common.any():
        raise DatasetError(
            f"{row.where}: the pair {source.id} -> {target.id} has no keypoint that both images show; remove the row."
        )
    only = ~np.isnan(target_points).any(axis=1) & ~common
    return Pair(
        source=source.id,
        target=target.id,
        category=source.category,
        source_points=source_points[common],
        target_points=target_points[common],
        names=tuple(compress(_KEYPOINTS, common)),
        source_place=row.where,
        target_place=row.where,
        target_only={_KEYPOINTS[place]: tuple(target_points[place].tolist()) for place in np.flatnonzero(only)},
    )


def _points(row: Row, side: str) -> Points:
    """(10, 2) of the image that `side`, A or B, stands for; NaN where a keypoint is absent."""
    absent = (np.nan, np.nan)
    return np.array([row.point(f"X{side}{name}", f"Y{side}{name}") or absent for name in _KEYPOINTS])
