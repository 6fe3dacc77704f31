"""CUB-200-2011 (Wah et al. 2011): 11,788 photographs of birds of 200 species, 15 parts.

    <root>/images.txt                    image id, path below `images`: <number>.<species>/<file>
    <root>/bounding_boxes.txt            image id, x, y, width, height
    <root>/train_test_split.txt          image id, 1 for trn, 0 for test
    <root>/parts/parts.txt               part id, name
    <root>/parts/part_locs.txt           image id, part id, x, y, visible (0 or 1)

A category is a species, in words ("Black footed Albatross"). Pairs are drawn by a seed within it. Nobody here has read
the published files.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from featstore.datasets.drawn import Drawn, DrawnDataset, MarkedImage, draw_pairs
from featstore.datasets.listed import find_root
from featstore.datasets.reading import Row, Tree, check_inside, is_file, read_text
from featstore.datasets.records import Marks
from featstore.plain_text import shown


class CubDataset(DrawnDataset):
    """CUB-200-2011 in the folder `root`."""

    name = "cub"
    about = "CUB-200-2011 (Wah et al. 2011), birds of 200 species"

    @classmethod
    def open(cls, root: Path | None) -> Self:
        """The data set in `root`, or in its sub-folder of the usual name. Raises `DatasetError` where it is not."""
        return cls(find_root(cls.name, "CUB_200_2011", "images.txt and parts/part_locs.txt", root, _is_cub))

    def draw(self) -> Mapping[str, Sequence[Drawn]]:
        """See `DrawnDataset`."""
        tree, points = Tree(self.root), _points(self.root / "parts")
        boxes, training = (_by_id(self.root / file, columns) for file, columns in _TABLES.items())
        birds: dict[bool, list[MarkedImage]] = {True: [], False: []}
        for number, row in _by_id(self.root / "images.txt", ("image", "path")).items():
            path = check_inside(row.text("path"), row.where)
            category = path.parts[0].partition(".")[2].replace("_", " ").strip()
            if len(path.parts) != 2 or not category:
                raise row.refusal(f"the path {shown(str(path))} is not <number>.<species>/<file>; restore the file.")
            if number not in boxes or number not in training:
                raise row.refusal(f"the image {shown(number)} is not in both of {', '.join(_TABLES)}; restore them.")
            x, y, width, height = (boxes[number].number(column) for column in ("x", "y", "width", "height"))
            marks = Marks(points.get(number, {}), row.where, (x, y, x + width, y + height))
            record = tree.image(row, f"images/{path}", category)
            birds[_is_set(training[number], "is_training")].append(MarkedImage(record, marks))
        return {"trn": draw_pairs(birds[True]), "test": draw_pairs(birds[False])}


DATASET = CubDataset

_TABLES = {
    "bounding_boxes.txt": ("image", "x", "y", "width", "height"),
    "train_test_split.txt": ("image", "is_training"),
}


def _is_cub(root: Path) -> bool:
    return is_file(root / "images.txt") and is_file(root / "parts" / "part_locs.txt")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The lines of a table whose columns are separated by blanks, of which the last may hold some."""
    for number, line in enumerate(map(str.strip, read_text(path).split("\n")), start=1):
        if line:
            row = Row(path, number, dict(zip(columns, line.split(maxsplit=len(columns) - 1), strict=False)))
            if len(row.values) != len(columns):
                raise row.refusal(f"{shown(line)} is not {' '.join(columns)}; restore the file.")
            yield row


def _by_id(path: Path, columns: Sequence[str]) -> dict[str, Row]:
    """The rows of a table by their first column. Raises `DatasetError` for a number that stands twice."""
    found: dict[str, Row] = {}
    for row in _rows(path, columns):
        first = found.setdefault(row.text(columns[0]), row)
        if first is not row:
            raise row.refusal(f"{shown(row.text(columns[0]))} is there already, in line {first.line}; remove one.")
    return found


def _is_set(row: Row, column: str) -> bool:
    if row.text(column) not in ("0", "1"):
        raise row.refusal(f"{column} is {shown(row.text(column))} where 0 or 1 is known; correct the file.")
    return row.text(column) == "1"


def _points(folder: Path) -> Mapping[str, Mapping[str, tuple[float, float]]]:
    """The visible parts of each image by name."""
    names, found = _by_id(folder / "parts.txt", ("part", "name")), dict[str, dict[str, tuple[float, float]]]()
    for row in _rows(folder / "part_locs.txt", ("image", "part", "x", "y", "visible")):
        if row.text("part") not in names:
            raise row.refusal(f"the part {shown(row.text('part'))} is not in parts.txt; correct the file.")
        name, point = names[row.text("part")].text("name"), row.point("x", "y")
        if _is_set(row, "visible") and point is not None:
            own = found.setdefault(row.text("image"), {})
            if own.setdefault(name, point) is not point:
                raise row.refusal(f"the part {shown(name)} of this image is there already; remove one.")
    return found
