"""Keypoints out of what annotation programs export, as `--dataset folder` reads them.

LabelMe's JSON per picture, COCO keypoints' JSON, and CVAT for images 1.1 (XML), told apart by what is in them. Of each
picture one object is taken; whatever else an export holds is left out, counted and named.
"""

import csv
import io
import json
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any
from xml.etree import ElementTree
from xml.parsers import expat
from zipfile import is_zipfile

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featstore.datasets.folder import FolderDataset
from featstore.datasets.pictures import TURNS, exif_orientation, original_size, to_stored
from featstore.datasets.reading import is_file, is_folder, read_bytes, read_text
from featstore.datasets.records import LARGEST_COORDINATE, Box, ImageRecord
from featstore.errors import DatasetError
from featstore.files import write_whole
from featstore.kept_config import AnnotationsConfig
from featstore.parsing import sentence_of
from featstore.plain_text import is_plain, nfc, one_line, shown

Point = tuple[float, float]
"""(x, y) in pixels, from the upper left corner."""

Notes = defaultdict[str, list[str]]
"""What was left out, or is worth knowing, by kind: where."""

LEFT = "left out: "


@dataclass(frozen=True, slots=True)
class Piece:
    """A keypoint, or a box, of the object `group`, which is None where the export says none. label: the object's."""

    group: object
    label: str
    name: str = ""
    point: Point | None = None
    box: Box | None = None
    is_hidden: bool = False


@dataclass(frozen=True, slots=True)
class ExportedPicture:
    """What an export says of a picture. name: its file, in whatever folders. size: (width, height) in pixels, 0 where
    it is not said. left: the kind of each thing that is no point and no box."""

    where: str
    name: str
    size: tuple[int, int]
    pieces: Sequence[Piece]
    left: Sequence[str]


@dataclass(frozen=True, slots=True)
class Marked:
    """An object of a picture: its keypoints by name, how many of them something hides, and its box."""

    label: str
    points: Mapping[str, Point]
    n_hidden: int
    box: Box | None

    @property
    def area(self) -> float:
        """That of its box, or of the box around its points, in square pixels."""
        columns, rows = zip(*self.points.values(), strict=True)
        left, top, right, bottom = self.box or (min(columns), min(rows), max(columns), max(rows))
        return (right - left) * (bottom - top)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written: keypoints.csv, and boxes.csv where there are boxes. names: of the keypoints. notes: what was
    left out, or is worth knowing, by kind: where."""

    files: Sequence[Path]
    n_images: int
    n_points: int
    n_boxes: int
    names: Sequence[str]
    notes: Mapping[str, Sequence[str]]


def import_annotations(config: AnnotationsConfig) -> Imported:
    """Write `keypoints.csv`, and `boxes.csv` beside it where the exports have boxes.

    Args:
        config: The exports, and the folder of photographs that they are of.

    Raises:
        DatasetError: In one sentence, for exports that are damaged, name a keypoint twice or were made of pictures of
            another size, where no photograph of theirs is there, and where a list would be overwritten.
        ImageError: For a photograph that is damaged.
    """
    is_list = config.out.suffix.lower() == ".csv"
    dataset = FolderDataset.open(config.out.parent if is_list else config.out)
    notes = Notes(list)
    marked = dict(sorted(_chosen(_pictures(config, notes), dataset, notes).items()))
    told = {kind: places for kind, places in notes.items() if places}
    if not marked:
        found = "; ".join(f"{kind} ({len(places)})" for kind, places in told.items()) or "there is nothing else"
        what = f"{config.source} has no keypoints of photographs in {dataset.root}"
        raise DatasetError(f"{what} ({found}); check both folders, and that points were exported.")
    points = [(file, name, *point) for file, own in marked.items() for name, point in own.points.items()]
    boxes = [(file, *own.box) for file, own in marked.items() if own.box is not None]
    keypoints = config.out if is_list else config.out / "keypoints.csv"
    lists = {keypoints: _csv("image,name,x,y", points)}
    if boxes:
        lists[keypoints.with_name("boxes.csv")] = _csv("image,x0,y0,x1,y1", boxes)
    for file, content in lists.items():
        if is_file(file) and read_bytes(file) != content:
            raise DatasetError(f"{file} is there and differs; move it away, or name another --out FILE.csv.")
    for file, content in lists.items():
        write_whole(file, content)
    names = tuple(dict.fromkeys(name for _, name, *_ in points))
    return Imported(tuple(lists), len(marked), len(points), len(boxes), names, told)


def _csv(header: str, rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    spelled = ([f"{round(cell, 3):.10g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([header.split(","), *spelled])
    return text.getvalue().encode()


def _chosen(pictures: Iterable[ExportedPicture], dataset: FolderDataset, notes: Notes) -> dict[str, Marked]:
    """The object that is taken of each photograph, by the photograph's file."""
    chosen: dict[str, Marked] = {}
    photographs = defaultdict[str, list[ImageRecord]](list)
    for record in dataset.images():
        for name in (nfc(record.file), nfc(record.file).partition("/")[2]):
            photographs[name].append(record)
    for picture in pictures:
        found = _photograph(photographs, picture)
        if found is None:
            notes[f"{LEFT}pictures that are not in {dataset.root}"].append(picture.name)
            continue
        objects, left = _objects(picture)
        for kind in (*picture.left, *left):
            notes[LEFT + kind].append(found.file)
        if not objects:
            continue
        if found.file in chosen:
            raise DatasetError(f"{picture.where}: {found.file} is annotated a second time; import one of both.")
        # one of the category that its folder says, if there is one
        taken = max(objects, key=lambda own: (nfc(own.label) == found.category, own.area))
        notes[f"{LEFT}further objects"] += [f"{found.file} {own.label}" for own in objects if own is not taken]
        notes["taken, though something hides them: points"] += [found.file] * taken.n_hidden
        chosen[found.file] = _on_stored_pixels(taken, picture, dataset, found, notes)
    return chosen


def _photograph(photographs: Mapping[str, Sequence[ImageRecord]], picture: ExportedPicture) -> ImageRecord | None:
    """A picture's photograph, of those by folder and name and by name alone, which counts where the export says no
    folder; None where it is not there."""
    path = posixpath.normpath(nfc(PureWindowsPath(picture.name).as_posix()))
    found = photographs.get("/".join(path.split("/")[-2:]), ())
    if len(found) > 1:
        which = " or ".join(record.file for record in found[:2])
        raise DatasetError(f"{picture.where} may be {which}; export it with its folder, or rename one of them.")
    return next(iter(found), None)


def _objects(picture: ExportedPicture) -> tuple[list[Marked], list[str]]:
    """The objects that have points, and the kinds of what belongs to none of them. A box is the object's of its group;
    where a picture has one object and one box, they belong together."""
    groups, boxes, n_boxes = defaultdict[object, list[Piece]](list), list[Piece](), 0
    for piece in picture.pieces:
        if piece.box is None:
            groups[piece.group].append(piece)
        elif piece.box[0] < piece.box[2] and piece.box[1] < piece.box[3]:
            boxes.append(piece)
        n_boxes += piece.box is not None
    objects = []
    for group, own in groups.items():
        near = [box for box in boxes if box.group == group]
        near = boxes if len(near) != 1 and len(groups) == 1 else near
        box = near[0] if len(near) == 1 else None
        points: dict[str, Point] = {}
        for piece in own:
            name = nfc(piece.name.strip())
            if name in points:
                what = f"{shown(name)} stands twice in one object"
                raise DatasetError(f"{picture.where}: {what}; give each object's points a group of their own.")
            if not name or not is_plain(name):
                raise DatasetError(f"{picture.where}: {shown(name)} is no name of a point; rename it.")
            assert piece.point is not None, "it is one of the points"
            points[name] = piece.point
        label = own[0].label or (box.label if box else "")
        objects.append(Marked(label, points, sum(piece.is_hidden for piece in own), box.box if box else None))
    n_taken = sum(own.box is not None for own in objects)
    return objects, ["boxes without area, or of no object with points"] * (n_boxes - n_taken)


def _on_stored_pixels(
    marked: Marked, picture: ExportedPicture, dataset: FolderDataset, record: ImageRecord, notes: Notes
) -> Marked:
    """What was marked, in pixels as the file stores them: annotation programs, as all viewers, show a picture turned as
    its EXIF data ask, but where the size that they state is that of the stored pixels alone."""
    data = dataset.read(record)
    stored, orientation = original_size(record, data), exif_orientation(record, data)
    seen = stored[::-1] if TURNS[orientation][0] else stored
    if all(picture.size) and picture.size not in (stored, seen):
        (width, height), (own_width, own_height) = picture.size, stored
        what = f"says {width}x{height} pixels where {record.file} has {own_width}x{own_height}"
        raise DatasetError(f"{picture.where} {what}; annotate the file itself, or import for what was annotated.")
    if orientation == 1 or (seen != stored and picture.size == stored):
        return marked
    notes["turned back, as the file stores it turned: the points of pictures"].append(record.file)
    points = np.array([*marked.points.values(), *([marked.box[:2], marked.box[2:]] if marked.box else [])])
    x, y = to_stored(points, orientation, stored).T.tolist()
    turned = list(zip(x, y, strict=True))
    named = dict(zip(marked.points, turned, strict=False))  # the box's corners come behind them
    return replace(marked, points=named, box=marked.box and _box(*turned[-2:]))


def _box(one: Point, other: Point) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[0], other[0]), max(one[1], other[1])


def _pictures(config: AnnotationsConfig, notes: Notes) -> Iterator[ExportedPicture]:
    """The pictures of an export, or of all below a folder."""
    is_one = not is_folder(config.source)
    files = [config.source] if is_one else sorted(p for p in config.source.rglob("*") if p.suffix.lower() in _SUFFIXES)
    for file in files:
        content = _parsed(file)
        found = _reader_of(content)
        if found is not None and config.format in (None, found[0]):
            try:
                yield from found[1](content, file)
            except ValueError as error:
                what = sentence_of(error, "") if isinstance(error, ValidationError) else str(error)
                raise DatasetError(f"{file}: {what}; correct it there, and export it again.") from error
        elif is_one:
            kind = f"an export of {found[0]}" if found else "no export of LabelMe, COCO keypoints or CVAT for images"
            raise DatasetError(f"{file} is {kind}; name another file, or another --format.")
        else:
            notes[f"{LEFT}files that are no such export"].append(str(file))


_SUFFIXES = (".json", ".xml")


def _parsed(file: Path) -> Any:
    """What a file holds: JSON's values, or the root of its XML. A document type, which alone can define entities, is
    refused before any is expanded."""

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, DOCTYPE, which no such export has")

    if is_file(file) and is_zipfile(file):
        raise DatasetError(f"{file} is an archive; unpack it, and name what is in it.")
    text = read_text(file)
    try:
        if text.lstrip()[:1] != "<":
            return json.loads(text)
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = refuse
        parser.Parse(text.encode(), True)
        return ElementTree.fromstring(text.encode())
    except (ValueError, RecursionError, expat.ExpatError) as error:
        raise DatasetError(f"{file} cannot be read ({one_line(error)}); export it again.") from error


def _reader_of(content: Any) -> tuple[str, Callable[[Any, Path], Iterator[ExportedPicture]]] | None:
    """The kind of export that a file's content is, and what reads it, which raises `ValueError` for what is wrong."""
    if isinstance(content, ElementTree.Element):
        return ("cvat", _read_cvat) if content.tag == "annotations" else None
    if not isinstance(content, dict) or not content.keys() & {"shapes", "annotations"}:
        return None
    return ("labelme", _read_labelme) if "shapes" in content else ("coco", _read_coco)


class _Read(BaseModel):
    """What is read of an export, which may say more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


_Coordinate = Annotated[float, Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]
_Coordinates = list[_Coordinate]
_Id = int | str


class _Shape(_Read):
    label: str
    points: list[Annotated[tuple[_Coordinate, _Coordinate], Field(strict=False)]]
    shape_type: str = "polygon"
    group_id: _Id | None = None


class _LabelMe(_Read):
    shapes: list[_Shape]
    image: str = Field(alias="imagePath")
    width: int | None = Field(None, alias="imageWidth")
    height: int | None = Field(None, alias="imageHeight")


def _read_labelme(content: Any, file: Path) -> Iterator[ExportedPicture]:
    found = _LabelMe.model_validate(content)
    pieces, left = [], []
    for own in found.shapes:
        if own.shape_type == "point" and len(own.points) == 1:
            pieces.append(Piece(own.group_id, "", own.label, point=own.points[0]))
        elif own.shape_type == "rectangle" and len(own.points) == 2:
            pieces.append(Piece(own.group_id, own.label, box=_box(*own.points)))
        else:
            left.append(f"shapes of the kind {own.shape_type}")
    name, size = f"{file.absolute().parent.as_posix()}/{found.image}", (found.width or 0, found.height or 0)
    yield ExportedPicture(str(file), name, size, pieces, left)  # the picture's path leads on from the file's


class _CocoImage(_Read):
    id: _Id
    file_name: str
    width: int | None = None
    height: int | None = None


class _CocoCategory(_Read):
    id: _Id
    name: str
    keypoints: list[str] = []


class _CocoObject(_Read):
    image_id: _Id
    category_id: _Id
    keypoints: _Coordinates = []
    bbox: Annotated[_Coordinates, Field(min_length=4, max_length=4)] = [0, 0, 0, 0]
    iscrowd: int | bool = 0


class _Coco(_Read):
    images: list[_CocoImage]
    annotations: list[_CocoObject]
    categories: list[_CocoCategory]


def _read_coco(content: Any, file: Path) -> Iterator[ExportedPicture]:
    found = _Coco.model_validate(content)
    categories, images = {own.id: own for own in found.categories}, {own.id: own for own in found.images}
    pieces, left = defaultdict[_Id, list[Piece]](list), defaultdict[_Id, list[str]](list)
    for number, own in enumerate(found.annotations):
        category = categories.get(own.category_id)
        if category is None or own.image_id not in images:
            raise ValueError(f"annotations[{number}] is of an image or a category that is not there")
        if own.iscrowd or not any(own.keypoints[2::3]):
            left[own.image_id].append("crowds" if own.iscrowd else "objects without points")
            continue
        if len(own.keypoints) != 3 * len(category.keypoints):
            what = f"{len(own.keypoints)} numbers for the {len(category.keypoints)} keypoints of {shown(category.name)}"
            raise ValueError(f"annotations[{number}] has {what}, not 3 each")
        marks = zip(category.keypoints, own.keypoints[::3], own.keypoints[1::3], own.keypoints[2::3], strict=True)
        for name, x, y, visible in marks:
            if visible > 0:
                pieces[own.image_id].append(Piece(number, category.name, name, (x, y), is_hidden=visible == 1))
            else:
                left[own.image_id].append("points that are not labelled")
        x, y, width, height = own.bbox
        if width or height:
            pieces[own.image_id].append(Piece(number, category.name, box=(x, y, x + width, y + height)))
    for image in found.images:
        name, size = image.file_name, (image.width or 0, image.height or 0)
        yield ExportedPicture(f"{file}, image {shown(name)}", name, size, pieces[image.id], left[image.id])


_NO_GROUP = "0"
"""What CVAT's `group_id` is, or would be, where shapes are of no group."""


def _read_cvat(content: ElementTree.Element, file: Path) -> Iterator[ExportedPicture]:
    if content.find("track") is not None:
        raise ValueError("it is an export of CVAT for video, not of CVAT for images 1.1")
    for image in content.iter("image"):
        name, pieces, left = image.get("name", ""), list[Piece](), list[str]()
        for number, own in enumerate(image):
            group, label = own.get("group_id", _NO_GROUP), own.get("label", "")
            if own.tag == "skeleton":
                points = [point for point in own.iter("points") if point.get("outside") != "1"]
                left += ["points outside of the picture"] * (len(own.findall("points")) - len(points))
                one = number if group == _NO_GROUP else group
                pieces += [piece for point in points for piece in _points(point, one, label)]
            elif own.tag == "points":
                pieces += _points(own, group, "")
            elif own.tag == "box" and _number(own.get("rotation", "0")) == 0:
                x0, y0, x1, y1 = (_number(own.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr"))
                pieces.append(Piece(group, label, box=_box((x0, y0), (x1, y1))))
            else:
                left.append(f"shapes of the kind {own.tag}")
        size = int(_number(image.get("width", "0"))), int(_number(image.get("height", "0")))
        yield ExportedPicture(f"{file}, image {shown(name)}", name, size, pieces, left)


def _points(shape: ElementTree.Element, group: object, label: str) -> Iterator[Piece]:
    """A point by its label; several in one shape are numbered."""
    places, name = shape.get("points", "").split(";"), shape.get("label", "")
    for number, place in enumerate(places, start=1):
        x, _, y = place.partition(",")
        own = name if len(places) == 1 else f"{name} {number}"
        yield Piece(group, label, own, (_number(x), _number(y)), is_hidden=shape.get("occluded") == "1")


def _number(text: str) -> float:
    number = float(text)
    if not abs(number) <= LARGEST_COORDINATE:
        raise ValueError(f"{text} is no number of pixels")
    return number
