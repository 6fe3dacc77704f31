"""PF-Pascal (Ham et al. 2018): 2,941 / 308 / 299 pairs of PASCAL VOC photographs, 20 categories.

SD4Match's layout, and that of the lists as they are distributed beside the images:

    <root>/{trn,val,test}_pairs.csv                                  source_image,target_image,class[,flip]
    <root>/PF-dataset-PASCAL/JPEGImages/<stem>.jpg
    <root>/PF-dataset-PASCAL/Annotations/<category>/<stem>.mat       kps (n, 2), NaN where a keypoint is absent

    PF-dataset-PASCAL/{trn,val,test}_pairs_pf_pascal.csv             <root> being this folder or its parent

The training list is `train_...` as well as `trn_...`; NCNet has the lists in a folder `image_pairs`.

`class` counts the categories from 1. Pairs of the training list with `flip` 1 are of mirrored images, which are images
of their own.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featstore.datasets.listed import ImageFinder, ListedDataset, ListedPair, repeated_pairs
from featstore.datasets.mat_file import read_keypoints
from featstore.datasets.pictures import stored_size
from featstore.datasets.reading import Row, Tree, check_inside, is_file, is_folder, read_rows
from featstore.datasets.records import ImageRecord, Pair, Points, ThetaRule
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import nfc

CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The categories in the order in which the lists number them, from 1."""


class PfPascalDataset(ListedDataset):
    """PF-Pascal in the folder `root`."""

    name = "pf-pascal"
    about = "PF-Pascal (Ham et al. 2018), SD4Match's or NCNet's lists"
    theta_rule = ThetaRule.IMAGE
    expected = (
        "{trn,val,test}_pairs.csv beside or in PF-dataset-PASCAL (or {trn,val,test}_pairs_pf_pascal.csv; train for "
        "trn; or in image_pairs)"
    )
    folders = ("pf-pascal", "PF-PASCAL", "PF-Pascal", "pfpascal", "PF-dataset-PASCAL")

    @classmethod
    def find_lists(cls, root: Path) -> dict[str, Path]:
        """The list files that a folder holds. Raises `DatasetError` where a split has two lists of other pairs."""
        if _data_folder(root) is None:
            return {}
        lists: dict[str, Path] = {}
        for split, prefixes in {"trn": ("trn", "train"), "val": ("val",), "test": ("test",)}.items():
            names = [f"{prefix}_{rest}.csv" for rest in ("pairs", "pairs_pf_pascal") for prefix in prefixes]
            paths = [root / folder / name for name in names for folder in ("", "PF-dataset-PASCAL", "image_pairs")]
            found = [path for path in paths if is_file(path)]
            for other in found[1:]:
                if _content(found[0]) != _content(other):
                    raise DatasetError(
                        f"{found[0]} and {other} are both lists of {split}, but of different pairs; remove one of them."
                    )
            lists |= {split: found[0]} if found else {}
        return lists

    def listed(self, path: Path) -> list[ListedPair]:
        """The pairs that a list names."""
        finder, folder = ImageFinder(Tree(self.root)), _in_data_folder(self.root, "JPEGImages")
        return [ListedPair(row, *(_image(finder, folder, row, column) for column in _IMAGES)) for row in _rows(path)]

    def pairs(self, split: str) -> tuple[Pair, ...]:
        """The pairs in the list's order, each once."""
        annotations, listed = _Annotations(Tree(self.root)), self.listed(self.list_of(split))
        repeated = repeated_pairs(listed)
        return tuple(_pair(own, annotations) for own in listed if own.row.line not in repeated)


DATASET = PfPascalDataset


def _content(path: Path) -> set[tuple[str, ...]]:
    """What tells one list from another: as for images, only files' names count."""
    return {
        (
            *(nfc(check_inside(row.text(column), row.where).name) for column in _IMAGES),
            f"{row.number('class'):g}",
            str(_is_mirrored(row)),
        )
        for row in _rows(path)
    }


def _data_folder(root: Path) -> str | None:
    """Where images and annotations are: a folder of `root`, or `root` itself ("")."""
    return next((name for name in ("PF-dataset-PASCAL", "") if is_folder(root / name / "JPEGImages")), None)


def _in_data_folder(root: Path, path: str) -> str:
    """A path below it, relative to `root`."""
    return f"{_data_folder(root) or ''}/{path}".lstrip("/")


_IMAGES = ("source_image", "target_image")


def _rows(path: Path) -> tuple[Row, ...]:
    # Only the training list has the column; without it there, mirrored pairs would pass for plain ones.
    flip = ("flip",) if path.name.startswith("tr") else ()
    return read_rows(path, (*_IMAGES, "class", *flip))


def _image(finder: ImageFinder, folder: str, row: Row, column: str) -> ImageRecord:
    number = row.number("class")
    if number not in range(1, len(CATEGORIES) + 1):
        raise DatasetError(
            f"{row.where}: class is {number:g} where 1 (aeroplane) to {len(CATEGORIES)} (tvmonitor) is known; "
            "correct the row."
        )
    # As SD4Match, only the file's name counts: lists differ in the folders that they put before it.
    name = check_inside(row.text(column), row.where).name
    return finder.find(row, f"{folder}/{name}", CATEGORIES[int(number) - 1], _is_mirrored(row))


def _is_mirrored(row: Row) -> bool:
    if "flip" not in row.values:
        return False
    flip = row.number("flip")
    if flip not in (0, 1):
        raise DatasetError(f"{row.where}: flip is {flip:g} where 0 (as stored) or 1 (mirrored) is known; correct it.")
    return flip == 1


@dataclass(frozen=True, slots=True)
class _Annotations:
    """Keypoints by annotation and widths by image file, each read once a listing: images recur in many pairs."""

    tree: Tree
    keypoints: dict[Path, Points] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def file(self, image: ImageRecord) -> Path:
        """Where the annotation of an image lies."""
        root, stem = self.tree.root, Path(image.file).stem
        wanted = _in_data_folder(root, f"Annotations/{image.category}/{stem}.mat")
        return root / (self.tree.find(wanted) or wanted)

    def points(self, row: Row, image: ImageRecord) -> Points:
        """All keypoints of an image, (n, 2), NaN where absent, in pixels of the image as the record reads it."""
        path = self.file(image)
        if path not in self.keypoints:
            if not is_file(path):
                kind = DatasetError if is_folder(path.parents[1]) else UnmarkedError
                raise kind(
                    f"{row.where}: the annotation {path} of the image {image.id} is not there; restore it or remove "
                    "the row."
                )
            self.keypoints[path] = read_keypoints(path)
        points = self.keypoints[path]
        if not image.mirrored:
            return points
        if image.file not in self.widths:
            self.widths[image.file] = stored_size(image, self.tree.root / image.file)[0]
        return np.stack([self.widths[image.file] - points[:, 0], points[:, 1]], axis=1)


def _pair(listed: ListedPair, annotations: _Annotations) -> Pair:
    source, target = listed.source, listed.target
    source_points, target_points = (annotations.points(listed.row, image) for image in (source, target))
    if len(source_points) != len(target_points):
        raise DatasetError(
            f"{listed} has {len(source_points)} keypoints in the source's annotation and {len(target_points)} in the "
            "target's; correct the annotations or remove the row."
        )
    names = [str(number + 1) for number in range(len(source_points))]
    return listed.pair(
        source_points, target_points, names, (str(annotations.file(source)), str(annotations.file(target)))
    )
