"""PF-Willow (Ham et al. 2016) in SD4Match's layout: 100 photographs, 10 keypoints each, 900 pairs, 10 categories.

<root>/test_pairs.csv                              imageA,imageB,XA1..XA10,YA1..YA10,XB1..XB10,YB1..YB10
                                                   nan or empty where a keypoint is absent
<root>/PF-dataset/<category>/<file>.png            categories like car(G)
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from featstore.datasets.listed import (
    ImageFinder,
    ListedDataset,
    ListedPair,
    refuse_other_category,
    refuse_repeated,
)
from featstore.datasets.reading import Row, Tree, check_inside, is_file, is_folder, read_rows
from featstore.datasets.records import ImageRecord, Pair, Points, ThetaRule
from featstore.errors import DatasetError
from featstore.plain_text import shown

_KEYPOINTS = tuple(str(number) for number in range(1, 11))
_COLUMNS = ("imageA", "imageB", *(f"{axis}{side}{name}" for side in "AB" for axis in "XY" for name in _KEYPOINTS))


class PfWillowDataset(ListedDataset):
    """PF-Willow in the folder `root`."""

    name = "pf-willow"
    about = "PF-Willow (Ham et al. 2016), SD4Match's lists"
    theta_rule = ThetaRule.KEYPOINTS
    expected = "test_pairs.csv"
    folders = ("pf-willow", "PF-WILLOW", "PF-Willow", "pfwillow")

    @classmethod
    def find_lists(cls, root: Path) -> dict[str, Path]:
        """The list file that a folder holds."""
        path = root / "test_pairs.csv"
        # PF-Pascal's list has the same name in SD4Match's layout; the folders beside it tell them apart.
        is_pascal = is_folder(root / "PF-dataset-PASCAL") and not is_folder(root / "PF-dataset")
        return {"test": path} if is_file(path) and not is_pascal else {}

    def listed(self, path: Path) -> list[ListedPair]:
        """The pairs that the list names."""
        finder = ImageFinder(Tree(self.root))
        return [
            ListedPair(row, _image(finder, row, "imageA"), _image(finder, row, "imageB"))
            for row in read_rows(path, _COLUMNS)
        ]

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs in the list's order. Raises `DatasetError` where one stands twice."""
        listed = self.listed(self.list_of(split))
        refuse_repeated(listed)
        return tuple(map(_pair, listed))


DATASET = PfWillowDataset


def _image(finder: ImageFinder, row: Row, column: str) -> ImageRecord:
    path = check_inside(row.text(column), row.where)
    if len(path.parts) < 2:
        raise DatasetError(
            f"{row.where}: {column} is {shown(str(path))}, without its category's folder; "
            "list it as PF-dataset/<category>/<file>."
        )
    return finder.find(row, str(path), path.parts[-2])


def _pair(listed: ListedPair) -> Pair:
    refuse_other_category(listed)
    row = listed.row
    source_points, target_points = _points(row, "A"), _points(row, "B")
    pair = listed.pair(source_points, target_points, _KEYPOINTS, (row.where, row.where))
    shown = dict(zip(_KEYPOINTS, map(tuple, target_points.tolist()), strict=True))
    only = {name: point for name, point in shown.items() if name not in pair.names and not np.isnan(point).any()}
    return replace(pair, target_only=only)


def _points(row: Row, side: str) -> Points:
    """(10, 2) of the image that `side`, A or B, stands for; NaN where a keypoint is absent."""
    absent = (np.nan, np.nan)
    return np.array([row.point(f"X{side}{name}", f"Y{side}{name}") or absent for name in _KEYPOINTS])
