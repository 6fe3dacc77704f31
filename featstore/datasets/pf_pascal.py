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

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.listed import ListedDataset, ListedPair
from featstore.datasets.pictures import original_size
from featstore.datasets.reading import Row, Tree, check_inside, is_file, is_folder, read_bytes, read_rows
from featstore.datasets.records import LARGEST_COORDINATE, ImageRecord, Marks, Pair, Points, ThetaRule
from featstore.errors import DatasetError, UnmarkedError

CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The categories in the order in which the lists number them, from 1."""

_IMAGES = ("source_image", "target_image")


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
        if _prefix(root) is None:
            return {}
        lists: dict[str, Path] = {}
        for split, prefixes in {"trn": ("trn", "train"), "val": ("val",), "test": ("test",)}.items():
            names = [f"{prefix}_{rest}.csv" for rest in ("pairs", "pairs_pf_pascal") for prefix in prefixes]
            paths = [root / folder / name for name in names for folder in ("", "PF-dataset-PASCAL", "image_pairs")]
            found = [path for path in paths if is_file(path)]
            for other in found[1:]:
                listed = (cls(root).listed(path) for path in (found[0], other))
                named = {frozenset((pair.source.id, pair.target.id) for pair in pairs) for pairs in listed}
                if len(named) > 1:
                    what = f"{found[0]} and {other} are both lists of {split}, but of different pairs"
                    raise DatasetError(f"{what}; remove one of them.")
            lists |= {split: found[0]} if found else {}
        return lists

    @staticmethod
    def rows(path: Path) -> Iterator[Row]:
        """The rows of a list."""
        # Only the training list has the column; without it there, mirrored pairs would pass for plain ones.
        flip = ("flip",) if path.name.startswith("tr") else ()
        return read_rows(path, (*_IMAGES, "class", *flip))

    def image(self, tree: Tree, row: Row, side: int) -> ImageRecord:
        """What a row names as its source or target, of the row's class."""
        number = row.number("class")
        if number not in range(1, len(CATEGORIES) + 1):
            known = f"1 (aeroplane) to {len(CATEGORIES)} (tvmonitor)"
            raise row.refusal(f"class is {number:g} where {known} is known; correct the row.")
        # As SD4Match, only the file's name counts: lists differ in the folders that they put before it.
        name = check_inside(row.text(_IMAGES[side]), row.where).name
        file = f"{_prefix(self.root) or ''}JPEGImages/{name}"
        return tree.image(row, file, CATEGORIES[int(number) - 1], _is_mirrored(row))

    def reader(self, path: Path) -> Callable[[ListedPair], Pair]:  # noqa: ARG002  (the same for all lists)
        """What reads the annotation files of a pair's images."""
        tree = Tree(self.root)

        @cache  # images recur in many pairs
        def points_of(image: ImageRecord, path: Path) -> Points:
            points = read_keypoints(path)
            return points * (-1, 1) + (original_size(image, self.read(image))[0], 0) if image.mirrored else points

        def read(pair: ListedPair) -> Pair:
            files = [_annotation(tree, pair.row, image) for image in (pair.source, pair.target)]
            both = [points_of(*end) for end in zip((pair.source, pair.target), files, strict=True)]
            count, of_target = map(len, both)
            if count != of_target:
                counts = f"{count} keypoints in the source's annotation and {of_target} in the target's"
                raise DatasetError(f"{pair} has {counts}; correct the annotations or remove the row.")
            names = [str(number + 1) for number in range(count)]
            marked = zip(both, files, strict=True)
            return pair.pair(*(Marks.of_list(names, points, str(file)) for points, file in marked))

        return read


DATASET = PfPascalDataset


def _prefix(root: Path) -> str | None:
    """What paths of images and annotations begin with: a folder of `root`, or nothing where they are in `root`; None
    where there are none."""
    return next((own for own in ("PF-dataset-PASCAL/", "") if is_folder(root / f"{own}JPEGImages")), None)


def _is_mirrored(row: Row) -> bool:
    flip = row.number("flip") if "flip" in row.values else 0
    if flip not in (0, 1):
        raise row.refusal(f"flip is {flip:g} where 0 (as stored) or 1 (mirrored) is known; correct it.")
    return flip == 1


def _annotation(tree: Tree, row: Row, image: ImageRecord) -> Path:
    """Where the annotation of an image lies. Raises `DatasetError` where it is not there."""
    wanted = f"{_prefix(tree.root) or ''}Annotations/{image.category}/{Path(image.file).stem}.mat"
    path = tree.root / (tree.find(wanted) or wanted)
    if not is_file(path):
        kind = DatasetError if is_folder(path.parents[1]) else UnmarkedError
        what = f"the annotation {path} of the image {image.id} is not there"
        raise kind(f"{row.where}: {what}; restore it or remove the row.")
    return path


# MATLAB files of versions 5 to 7 ("MAT-File Format", MathWorks, chapter 1). Not scipy.io.loadmat: it trusts the type
# codes inside a variable, and one wrong byte in an array's flags or in its data's tag ends the process with a
# segmentation fault instead of raising. Whoever checks the tags before has read the file.

_COMPRESSED, _MATRIX = 15, 14
_FLAGS, _SHAPE, _NAME = 6, 5, 1
"""Type codes of the three elements that head an array: uint32, int32 and int8."""

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""numpy's types by type code. MATLAB stores a double array in the smallest type that holds its values."""

_NUMERIC_CLASSES = range(6, 16)
"""Codes of arrays of double, single and integers; below are cell, object, struct, text and sparse."""

_COMPLEX = 0x0800

_HEAD = 1024
"""Bytes of a variable that hold its name: a tag, the flags, the shape and the name, of at most 63 letters."""

_LARGEST = 1 << 24
"""Bytes that the wanted variable may unpack to; keypoints take a few hundred."""


def read_numeric_variable(data: bytes, name: str) -> NDArray[np.float64] | None:
    """The array of real numbers called `name`, in MATLAB's shape; None where the file has no such variable.

    Other variables are stepped over, whatever they are. Raises `ValueError` saying what is wrong with the file.
    """
    try:
        return _find(data, name.encode())
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _find(data: bytes, name: bytes) -> NDArray[np.float64] | None:
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])
    # A zero among the first four bytes is how readers tell version 4, which has another layout.
    if order is None or 0 in data[:4]:
        raise ValueError("not of MATLAB's versions 5 to 7")
    for code, content in _elements(memoryview(data)[128:], order):
        if code == _COMPRESSED:
            # Of a variable that is not wanted only the name is unpacked: it may be a bomb.
            head = memoryview(zlib.decompressobj().decompress(content, _HEAD))
            code, _ = struct.unpack_from(f"{order}II", head)
            if code == _MATRIX and _name(head[8:], order) != name:
                continue
            code, content = next(_elements(_unpacked(content), order))
        if code != _MATRIX:
            raise ValueError(f"type code {code} where a variable is expected")
        if _name(content, order) == name:
            return _array(content, order)
    return None


def _unpacked(content: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, _LARGEST)
    if not unpacker.eof:  # only at its end is the checksum compared
        raise ValueError(f"a compressed variable is cut off or unpacks to more than {_LARGEST >> 20} MiB")
    return memoryview(unpacked)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The tagged elements that `data` is made of: type code and content."""
    while data:
        code, size = struct.unpack_from(f"{order}II", data)
        start, end = 8, 8 + size
        following = end if code == _COMPRESSED else end + -size % 8
        if code >> 16:  # four bytes or fewer share the tag's eight
            code, size = code & 0xFFFF, code >> 16
            start, end, following = 4, 4 + size, 8
            if size > 4:
                raise ValueError(f"a short element of {size} bytes")
        if end > len(data):
            raise ValueError("it is truncated")
        yield code, data[start:end]
        data = data[following:]


def _name(content: memoryview, order: str) -> bytes:
    """The name of the variable whose elements `content` begins with."""
    head = list(islice(_elements(content, order), 3))
    return bytes(head[2][1]) if len(head) == 3 else b""


def _array(content: memoryview, order: str) -> NDArray[np.float64]:
    elements = list(islice(_elements(content, order), 5))
    if [code for code, _ in elements[:3]] != [_FLAGS, _SHAPE, _NAME]:
        raise ValueError("the variable's header is damaged")
    (_, flags), (_, sides), _, *parts = elements
    (bits,) = struct.unpack_from(f"{order}I", flags)
    if bits & 0xFF not in _NUMERIC_CLASSES or bits & _COMPLEX:
        raise ValueError("the variable is no array of real numbers")
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    if not shape or min(shape) < 0 or len(parts) != 1:
        raise ValueError("the variable's header is damaged")
    code, values = parts[0]
    kind = np.dtype(f"{order}{_NUMBERS[code]}") if code in _NUMBERS else None
    if kind is None or kind.itemsize * math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} bytes of type code {code} do not fill the shape {shape}")
    return np.frombuffer(values, kind).astype(np.float64).reshape(shape, order="F")


def read_keypoints(path: Path) -> Points:
    """The variable `kps` of a MATLAB file.

    Returns:
        (n, 2), pixels, NaN where a keypoint is absent.

    Raises:
        DatasetError: for a file that is no MATLAB file, has no such variable, or one of another type or shape, and for
            a coordinate that is none.
    """
    try:
        points = read_numeric_variable(read_bytes(path), "kps")
    except ValueError as error:
        what = f"is no MATLAB file with a readable variable kps ({error})"
        raise DatasetError(f"{path} {what}; restore it from the dataset.") from error
    if points is None:
        wrong = "it has no variable kps"
    elif points.ndim != 2 or points.shape[1] != 2:
        wrong = f"kps has shape {points.shape[:8]} where (n, 2) is needed"
    elif (np.abs(points) > LARGEST_COORDINATE).any():
        wrong = f"kps holds {np.nanmax(np.abs(points)):g}, which is no coordinate in pixels"
    else:
        return points
    raise DatasetError(f"{path}: {wrong}; restore it from the dataset.")
