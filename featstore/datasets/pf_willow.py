"""PF-Willow (Ham et al. 2016) in SD4Match's layout: 100 photographs, 10 keypoints each, 900 pairs, 10 categories.

<root>/test_pairs.csv                              imageA,imageB,XA1..XA10,YA1..YA10,XB1..XB10,YB1..YB10
                                                   nan or empty where a keypoint is absent
<root>/PF-dataset/<category>/<file>.png            categories like car(G)
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from featstore.datasets.listed import ListedDataset, ListedPair, each_new
from featstore.datasets.reading import Row, Tree, check_inside, is_file, is_folder, read_rows
from featstore.datasets.records import ImageRecord, Marks, Pair, ThetaRule
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

    @staticmethod
    def rows(path: Path) -> Iterator[Row]:
        """The rows of the list."""
        return read_rows(path, _COLUMNS)

    def image(self, tree: Tree, row: Row, side: int) -> ImageRecord:
        """What a row names as its source or target, in its category's folder."""
        path = check_inside(row.text(_COLUMNS[side]), row.where)
        if len(path.parts) < 2:
            what = f"{_COLUMNS[side]} is {shown(str(path))}, without its category's folder"
            raise row.refusal(f"{what}; list it as PF-dataset/<category>/<file>.")
        return tree.image(row, str(path), path.parts[-2])

    def listed(self, path: Path) -> Iterator[ListedPair]:
        """What the list names. Raises `DatasetError` where a pair stands twice."""
        return each_new(super().listed(path))

    def reader(self, path: Path) -> Callable[[ListedPair], Pair]:  # noqa: ARG002  (rows hold all)
        """What takes a pair's keypoints from its row."""
        return _pair


DATASET = PfWillowDataset


def _pair(listed: ListedPair) -> Pair:
    return listed.pair(_marks(listed.row, "A"), _marks(listed.row, "B"))


def _marks(row: Row, side: str) -> Marks:
    """Of the image that `side`, A or B, stands for."""
    points = {name: row.point(f"X{side}{name}", f"Y{side}{name}") for name in _KEYPOINTS}
    return Marks({name: point for name, point in points.items() if point is not None}, row.where)
