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

from featstore.datasets.mat_file import read_keypoints
from featstore.datasets.pictures import stored_size
from featstore.datasets.reading import (
    ListedPair,
    Row,
    Tree,
    all_lists,
    check_inside,
    is_file,
    is_folder,
    note_repeated,
    read_image,
    read_rows,
    repeated_pairs,
    sorted_images,
    split_list,
)
from featstore.datasets.records import MIRRORED, ImageRecord, Pair, Points, ThetaRule, in_both
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import nfc, shown

EXPECTED = (
    "{trn,val,test}_pairs.csv beside or in PF-dataset-PASCAL (or {trn,val,test}_pairs_pf_pascal.csv; train for trn; "
    "or in image_pairs)"
)
"""The list files that a root of this dataset holds, for error sentences."""

CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The categories in the order in which the lists number them, from 1."""


def find_lists(root: Path) -> dict[str, Path]:
    """The list files that `root` holds, by split. Raises `DatasetError` where a split has two lists of other pairs."""
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


def _content(path: Path) -> set[tuple[str, ...]]:
    """What tells one list from another: as for images, only files' names count."""
    return {
        (
            *(nfc(check_inside(row.text(column), row.where).name) for column in ("source_image", "target_image")),
            f"{row.number('class'):g}",
            str(_is_mirrored(row)),
        )
        for row in _rows(path)
    }


def _data_folder(root: Path) -> str | None:
    """Where images and annotations are: a folder of `root`, or `root` itself ("")."""
    return next((name for name in ("PF-dataset-PASCAL", "") if is_folder(root / name / "JPEGImages")), None)


@dataclass(frozen=True, slots=True)
class PfPascalDataset:
    """PF-Pascal in the folder `root`. See `featstore.datasets.records.Dataset`."""

    root: Path

    @property
    def name(self) -> str:
        return "pf-pascal"

    @property
    def splits(self) -> tuple[str, ...]:
        """Those whose list is there."""
        return tuple(find_lists(self.root))

    @property
    def theta_rule(self) -> ThetaRule:
        return ThetaRule.IMAGE

    def images(self) -> tuple[ImageRecord, ...]:
        lists = all_lists(find_lists(self.root), EXPECTED, self.root)
        rows, tree = [row for path in lists for row in _rows(path)], Tree(self.root)
        return sorted_images(
            (_record(tree, row, column), row.where) for row in rows for column in ("source_image", "target_image")
        )

    def pairs(self, split: str) -> tuple[Pair, ...]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        annotations, listed = _Annotations(Tree(self.root)), self._listed(path)
        repeated = repeated_pairs(listed)
        return tuple(_pair(row, annotations) for row in _rows(path) if row.line not in repeated)

    def members(self, split: str) -> frozenset[str]:
        path = split_list(find_lists(self.root), split, EXPECTED, self.root)
        return frozenset(image for pair in self._listed(path) for image in (pair.source, pair.target))

    def notes(self, split: str | None) -> tuple[str, ...]:
        if split is None:
            return ()
        return note_repeated(self._listed(split_list(find_lists(self.root), split, EXPECTED, self.root)))

    def _listed(self, path: Path) -> list[ListedPair]:
        tree = Tree(self.root)
        return [
            ListedPair(path, row.line, _record(tree, row, "source_image").id, _record(tree, row, "target_image").id)
            for row in _rows(path)
        ]

    def read(self, image: ImageRecord) -> bytes:
        return read_image(self.root, image)


def _rows(path: Path) -> tuple[Row, ...]:
    # Only the training list has the column; without it there, mirrored pairs would pass for plain ones.
    flip = ("flip",) if path.name.startswith("tr") else ()
    return read_rows(path, ("source_image", "target_image", "class", *flip))


def _record(tree: Tree, row: Row, column: str) -> ImageRecord:
    number = row.number("class")
    if number not in range(1, len(CATEGORIES) + 1):
        raise DatasetError(
            f"{row.where}: class is {number:g} where 1 (aeroplane) to {len(CATEGORIES)} (tvmonitor) is known; "
            "correct the row."
        )
    category = CATEGORIES[int(number) - 1]
    # As SD4Match, only the file's name counts: lists differ in the folders that they put before it.
    listed = check_inside(row.text(column), row.where)
    file = f"{_data_folder(tree.root) or '.'}/JPEGImages/{listed.name}".removeprefix("./")
    found = tree.find(file)
    if found is None or not is_file(tree.root / found):
        raise DatasetError(
            f"{row.where}: names the image {shown(file)}, which is not in {tree.root}; restore the image or remove the "
            "row."
        )
    mirrored = _is_mirrored(row)
    suffix = MIRRORED if mirrored else ""
    return ImageRecord(id=f"{category}/{nfc(listed.stem)}{suffix}", category=category, file=found, mirrored=mirrored)


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
        wanted = f"{_data_folder(root) or '.'}/Annotations/{image.category}/{stem}.mat".removeprefix("./")
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


def _pair(row: Row, annotations: _Annotations) -> Pair:
    source, target = (_record(annotations.tree, row, column) for column in ("source_image", "target_image"))
    source_points, target_points = annotations.points(row, source), annotations.points(row, target)
    if len(source_points) != len(target_points):
        raise DatasetError(
            f"{row.where}: the pair {source.id} -> {target.id} has {len(source_points)} keypoints in the source's "
            f"annotation and {len(target_points)} in the target's; correct the annotations or remove the row."
        )
    common = in_both(source_points, target_points)
    if not common.any():
        raise DatasetError(
            f"{row.where}: the pair {source.id} -> {target.id} has no keypoint that both images show; remove the row."
        )
    return Pair(
        source=source.id,
        target=target.id,
        category=source.category,
        source_points=source_points[common],
        target_points=target_points[common],
        names=tuple(str(number + 1) for number in np.flatnonzero(common)),
        source_place=str(annotations.file(source)),
        target_place=str(annotations.file(target)),
    )
