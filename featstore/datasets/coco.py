"""Any keypoint data set in COCO's form (cocodataset.org/#format-data): one JSON file of annotations, and images.

    <root>/<file_name>                  or below `images`, `data` or what the annotations' name ends in (`val2017`)
    FILE.json, in <root> or elsewhere   images: id, file_name, width, height
                                        categories: id, name, keypoints (their names)
                                        annotations: image_id, category_id, bbox (x, y, width, height), area, iscrowd,
                                                     keypoints (x, y, v of each, v 0 for absent)

Of several objects of a category in one image the largest counts; crowds, and objects without keypoints, are left out.
Pairs are drawn by a seed within a category, the only split is `test`. Nobody here has read COCO's own files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from featstore.datasets.drawn import Drawn, DrawnDataset, MarkedImage, draw_pairs
from featstore.datasets.listed import existing_root
from featstore.datasets.reading import Entry, Tree, is_file, read_bytes
from featstore.datasets.records import LARGEST_COORDINATE, ImageRecord, Marks
from featstore.errors import DatasetError
from featstore.parsing import sentence_of
from featstore.plain_text import is_plain

LARGEST_ANNOTATIONS = 1 << 30
"""Bytes of a file of annotations that is read; those of COCO's 118,000 training images have a quarter of it."""


def _name(value: str) -> str:
    if not value.strip() or "/" in value or not is_plain(value):
        raise ValueError("a name is a plain text without '/'")
    return value.strip()


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("a keypoint's name stands twice")
    return names


Name = Annotated[str, AfterValidator(_name)]
Coordinate = Annotated[float, Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]
BoxXYWH = tuple[Coordinate, Coordinate, Annotated[Coordinate, Field(ge=0)], Annotated[Coordinate, Field(ge=0)]]
Size = tuple[float, float] | None
"""(width, height) in pixels, where that is stated."""

Model = TypeVar("Model", bound=BaseModel)


class Checked(BaseModel):
    """Fields that are not named are passed over."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class CocoImage(Checked):
    """An entry of `images`."""

    id: int
    file_name: str
    width: Annotated[int, Field(ge=1)] | None = None
    height: Annotated[int, Field(ge=1)] | None = None

    @property
    def size(self) -> Size:
        """What is stated."""
        return None if self.width is None or self.height is None else (self.width, self.height)


class CocoCategory(Checked):
    """An entry of `categories`."""

    id: int
    name: Name
    supercategory: Name | None = None
    keypoints: Annotated[list[Name], AfterValidator(_distinct)] | None = None


class CocoObject(Checked):
    """What is annotated of an object: its box, and x, y and v of each keypoint."""

    bbox: BoxXYWH
    keypoints: list[Coordinate] = []


class CocoAnnotation(CocoObject):
    """An entry of `annotations`."""

    image_id: int
    category_id: int
    area: Annotated[float, Field(ge=0)] | None = None
    iscrowd: Literal[0, 1] = 0
    num_keypoints: int | None = None


class CocoFile(Checked):
    """A file of annotations."""

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]


def read_json(kind: type[Model], path: Path) -> Model:
    """A JSON file. Raises `DatasetError`, naming the file and the field, where it is none or holds something else."""
    try:
        return kind.model_validate_json(read_bytes(path, LARGEST_ANNOTATIONS).removeprefix(b"\xef\xbb\xbf"))
    except ValidationError as error:
        what = sentence_of(error, "")
        raise DatasetError(f"{path}: {what}; restore the file, or correct it to COCO's format.") from error


def marks_of(where: str, names: Sequence[str] | None, annotation: CocoObject, size: Size) -> Marks:
    """What is annotated of an object.

    Args:
        where: where that stands, for sentences.
        names: of its keypoints; None for their numbers, from 1.
        annotation: what stands there. What is labelled is taken, hidden (v = 1) or not, as COCO's own scores do.
        size: of the image.

    Raises:
        DatasetError: where there are not as many keypoints as names, or v is something else than 0, 1 or 2.
    """
    count = len(annotation.keypoints)
    names = [str(number + 1) for number in range(count // 3)] if names is None else names
    if count != 3 * len(names):
        what = f"keypoints has {count} numbers where x, y and v of {len(names)} keypoints are {3 * len(names)}"
        raise DatasetError(f"{where}: {what}; correct the file.")
    rows = np.array(annotation.keypoints).reshape(-1, 3)
    if wrong := sorted(set(rows[:, 2].tolist()) - {0, 1, 2}):
        what = f"keypoints has v = {wrong[0]:g} where 0 (absent), 1 (hidden) or 2 (visible) is known"
        raise DatasetError(f"{where}: {what}; correct the file.")
    x, y, width, height = annotation.bbox
    points = np.where(rows[:, 2:] > 0, rows[:, :2], np.nan)
    return replace(Marks.of_list(names, points, where), box=(x, y, x + width, y + height), size=size)


Listed = TypeVar("Listed", CocoImage, CocoCategory)


def by_id(path: Path, what: str, listed: Sequence[Listed]) -> dict[int, Listed]:
    """Images or categories of a file by their numbers. Raises `DatasetError` for a number that stands twice."""
    found: dict[int, Listed] = {}
    for own in listed:
        if found.setdefault(own.id, own) is not own:
            raise DatasetError(f"{path}: {what} has the id {own.id} twice; correct the file.")
    return found


def image_in(tree: Tree, path: Path, number: int, files: Sequence[str], category: str) -> ImageRecord:
    """The record of an image that a file of annotations has, in the first of `files` that is there. Raises
    `DatasetError` where none is."""
    file = next((own for own in files if tree.find(own) is not None), files[0])
    return tree.image(Entry(path, number, {}, f"image {number}"), file, category)


@dataclass(frozen=True)
class CocoDataset(DrawnDataset):
    """A data set in COCO's form, of images in the folder `root` and the file `annotations`, relative to it or not."""

    annotations: Path

    name = "coco"
    about = "any keypoint data set in COCO's form, whose file --annotations names"
    takes_annotations = True

    @classmethod
    def open(cls, root: Path | None, annotations: Path | None = None) -> Self:
        """The images in `root` and the file `annotations`, a path in `root` or anywhere. Raises `DatasetError` where
        one of them is not there."""
        folder = existing_root(cls.name, root)
        if annotations is None:
            what = "needs the file of its annotations; give it with --annotations FILE.json"
            raise DatasetError(f"The dataset {cls.name} {what}.")
        found = [path for path in (folder / annotations, annotations) if is_file(path)]
        if not found:
            raise DatasetError(f"There is no file of annotations {annotations}, neither as such nor in {folder}.")
        file, inside = found[0].resolve(), folder.resolve()
        return cls(folder, file.relative_to(inside) if file.is_relative_to(inside) else file)

    def draw(self) -> Mapping[str, Sequence[Drawn]]:
        """See `DrawnDataset`."""
        return {"test": draw_pairs(self._read[0])}

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (there is one)
        """How many objects are left out."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Sequence[MarkedImage], tuple[str, ...]]:
        """The objects that count, and a sentence on the others."""
        path = self.root / self.annotations
        content = read_json(CocoFile, path)
        images, categories = by_id(path, "images", content.images), by_id(path, "categories", content.categories)
        left: Counter[str] = Counter()
        largest: dict[tuple[int, str], tuple[float, int]] = {}
        for place, own in enumerate(content.annotations):
            if own.image_id not in images or own.category_id not in categories:
                what = f"names the image {own.image_id} of the category {own.category_id}, one of which is not there"
                raise DatasetError(f"{path}: annotations[{place}] {what}; correct the file.")
            if own.iscrowd or not any(own.keypoints[2::3]):
                left["are crowds" if own.iscrowd else "show no keypoint"] += 1
                continue
            area = own.bbox[2] * own.bbox[3] if own.area is None else own.area
            key = own.image_id, categories[own.category_id].name
            left["are smaller than another of their image"] += key in largest
            if key not in largest or area > largest[key][0]:
                largest[key] = area, place
        folders = "", "images/", "data/", f"{path.stem.split('_')[-1]}/"
        tree, found = Tree(self.root), []
        for _, place in largest.values():
            own = content.annotations[place]
            image, category = images[own.image_id], categories[own.category_id]
            files = [f"{folder}{image.file_name}" for folder in folders]
            record = image_in(tree, path, image.id, files, category.name)
            marks = marks_of(f"{path}: annotations[{place}]", category.keypoints, own, image.size)
            found.append(MarkedImage(record, marks))
        said = ", ".join(f"{count} {what}" for what, count in left.items() if count)
        sentence = f"{left.total()} of {len(content.annotations)} objects in {path} are left out: {said}."
        return found, (sentence,) if said else ()


DATASET = CocoDataset
