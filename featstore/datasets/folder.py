"""Anybody's photographs: subfolders are categories.

    <root>/<category>/<stem>.jpg
    <root>/keypoints.csv          image,name,x,y        optional; pixels of the image as stored (EXIF does not turn it);
                                                        x and y empty or nan, or a column `visible` of 0, where absent
    <root>/pairs.csv              source,target         optional; else all ordered pairs that share a keypoint
    <root>/boxes.csv              image,x0,y0,x1,y1     optional; the object's bounding box in pixels

An image is named in all lists by `<category>/<file name>` or `<category>/<stem>`, in either Unicode normal form.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Self

from featstore.datasets.listed import ListedPair, each_new, existing_root
from featstore.datasets.reading import Row, entries, is_file, is_folder, read_image, read_rows, subfolders
from featstore.datasets.records import AnnotatedPairs, Box, ImageRecord, Marks, ThetaRule, pair_of
from featstore.errors import DatasetError, UnmarkedError
from featstore.plain_text import is_plain, nfc, shown

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
"""What image files end in, in lower or upper case."""

OTHER_PHOTOGRAPHS = (
    *(".avif", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jxl", ".jxr", ".pgm", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw"),
)
"""What photographs end in that are not read. Beside the categories' own files, where lists and notes may lie as well,
these and `SUFFIXES` tell what was left out."""

NO_PHOTOGRAPHS = ("thumbs.db", "desktop.ini")
"""Files that systems put beside photographs; hidden ones are passed over anyway."""

COLUMNS = ("image", "name", "x", "y")

_CORNERS = ("x0", "y0", "x1", "y1")

VISIBILITY = ("visible", "visibility", "vis", "v")
"""What a column is called, in lower or upper case, that says whether the image shows the keypoint."""

_SHOWN = {"0": False, "1": True, "2": True, "false": False, "true": True, "no": False, "yes": True}
"""COCO's 0 (not labelled), 1 (labelled, hidden by something) and 2 (visible), or true and false. As COCO's own scores
do, what is labelled is taken."""


@dataclass(frozen=True, slots=True)
class FolderDataset:
    """A folder of photographs. See `featstore.datasets.records.Dataset`."""

    root: Path

    name = "folder"
    about = "your own photographs: sub-folders are categories"
    splits = ("test",)
    # Not every folder has boxes, and the extent of the keypoints degenerates where somebody marks one keypoint an image
    # (it is 0) or a few close ones.
    theta_rule = ThetaRule.IMAGE

    @classmethod
    def open(cls, root: Path | None) -> Self:
        """The photographs in `root`. Raises `DatasetError` where there is no such folder."""
        return cls(existing_root(cls.name, root))

    def images(self) -> tuple[ImageRecord, ...]:
        folders: dict[str, Path] = {}
        for folder in subfolders(self.root):
            other = folders.setdefault(nfc(folder.name), folder)
            if other != folder:
                both = f"{other.name!a} and {folder.name!a}, which differ in their Unicode normal form only"
                raise DatasetError(f"{self.root} has the sub-folders {both}; rename one of them.")
        records = [record for folder in folders.values() for record in _records(folder)]
        if not records:
            what = f"no sub-folder with images ({' '.join(SUFFIXES)})"
            raise DatasetError(f"{self.root} has {what}; put the images in sub-folders, one a category.")
        return tuple(sorted(records, key=lambda record: record.id))

    def pairs(self, split: str) -> AnnotatedPairs:
        if split not in self.splits:
            raise DatasetError(f"A folder of photographs has no split {split!r}, it has test; choose that.")
        marked, listed = self.root / "keypoints.csv", self.root / "pairs.csv"
        if not is_file(marked):
            what = f"{self.root} has no keypoints.csv, so there is nothing to score"
            needed = f"the header {','.join(COLUMNS)} and a row for each keypoint, in pixels of the original image"
            raise UnmarkedError(f"{what}; it should hold {needed}.")
        images = self.images()
        by_name = names_in_lists(images)
        marks, boxes = read_marks(marked, by_name), _read_boxes(self.root / "boxes.csv", by_name)
        marks = {name: replace(own, box=boxes.get(name)) for name, own in marks.items()}
        if is_file(listed):
            rows = read_rows(listed, ("source", "target"))
            named = (ListedPair(row, _image(row, "source", by_name), _image(row, "target", by_name)) for row in rows)
            return AnnotatedPairs.of(own.pair(marks[own.source.id], marks[own.target.id]) for own in each_new(named))
        categories = groupby(images, key=lambda image: image.category)  # they are sorted by id, which begins with it
        every = (ends for _, own in categories for ends in permutations(own, 2))
        every_pair = (pair_of(one, two, marks[one.id], marks[two.id]) for one, two in every)
        found = AnnotatedPairs.of(pair for pair in every_pair if pair is not None)
        if not found:
            what = "no two images of one category share a keypoint's name"
            raise UnmarkedError(f"{marked}: {what}; mark the same parts in both.")
        return found

    def members(self, split: str) -> frozenset[str]:
        return frozenset(self.pairs(split).occurring_images)

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (what is odd about the lists is refused)
        """What was left out of the images, and the columns of keypoints.csv that are not known."""
        left, sentences, marked = Counter(map(_kind, _left_out(self.root))), [], self.root / "keypoints.csv"
        if left:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
            why = f"as only {' '.join(SUFFIXES)} in the sub-folder of a category are read"
            sentences.append(f"{left.total()} files in {self.root} are left out, {why}: {kinds}.")
        header = next(read_rows(marked, COLUMNS)).values if is_file(marked) else ()
        unknown = [column for column in header if column not in (*COLUMNS, _visibility(header))]
        if unknown:
            names = ", ".join(column[:40] if is_plain(column) else shown(column) for column in unknown)
            known = f"{', '.join(COLUMNS)} and {VISIBILITY[0]}"
            sentences.append(f"{marked}: no use is made of {names}, only of {known}.")
        return tuple(sentences)

    def read(self, image: ImageRecord) -> bytes:
        return read_image(self.root, image)


DATASET = FolderDataset


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and is_file(path)


def _left_out(root: Path) -> Iterator[Path]:
    """All files of categories that are not read, and the photographs above and below the categories' folders."""
    for depth, path in _files(root):
        if depth == 1:
            if not _is_read(path) and path.name.lower() not in NO_PHOTOGRAPHS:
                yield path
        elif path.suffix.lower() in (*SUFFIXES, *OTHER_PHOTOGRAPHS):
            yield path


def _files(folder: Path, depth: int = 0) -> Iterator[tuple[int, Path]]:
    """The visible files in a folder, below how many folders they lie. Links below a category's folders are not
    followed: they may lead in a circle."""
    for path in entries(folder):
        if not is_folder(path):
            yield depth, path
        elif depth < 2 or not path.is_symlink():
            yield from _files(path, depth + 1)


def _kind(path: Path) -> str:
    """What a note counts a file as that is left out."""
    if not is_file(path):
        return "that cannot be opened (e.g. a broken link)"
    suffix = path.suffix.lower()
    return f"{suffix} outside of the categories' folders" if suffix in SUFFIXES else suffix or "without a suffix"


def _records(folder: Path) -> Iterator[ImageRecord]:
    known: dict[str, Path] = {}
    for path in filter(_is_read, entries(folder)):
        relative = f"{folder.name}/{path.name}"
        if not is_plain(relative):  # bytes that are no UTF-8 among them: no table or store could hold the id
            raise DatasetError(f"The name {relative!a} in {folder.parent} is no plain text; rename the file.")
        identifier = nfc(f"{folder.name}/{path.stem}")
        other = known.setdefault(identifier, path)
        if other != path:
            forms = f" ({other.name!a} and {path.name!a})" if nfc(other.name) == nfc(path.name) else ""
            raise DatasetError(f"{other} and {path}{forms} would both be the image {identifier}; rename one of them.")
        yield ImageRecord(id=identifier, category=nfc(folder.name), file=relative)


def names_in_lists(images: Sequence[ImageRecord]) -> dict[str, ImageRecord]:
    """Images by both names that lists may use; where a.jpg and a.jpg.png meet, the file's name wins."""
    return {image.id: image for image in images} | {nfc(image.file): image for image in images}


def _image(row: Row, column: str, images: Mapping[str, ImageRecord]) -> ImageRecord:
    name = nfc(row.text(column))
    if name not in images:
        what = f"names the image {shown(name)}, which is not there"
        raise row.refusal(f"{what}; name it <category>/<file name>, or remove the row.")
    return images[name]


def _visibility(columns: Iterable[str]) -> str | None:
    """The first of some columns that says whether keypoints are visible."""
    return next((column for column in columns if column.lower() in VISIBILITY), None)


def _is_shown(row: Row, column: str) -> bool:
    value = row.text(column)
    whole = value.lower().removesuffix(".0")  # what a spreadsheet or pandas makes of a whole number
    if whole not in _SHOWN:
        raise row.refusal(f"{column} is {shown(value)} where {', '.join(_SHOWN)} are known; correct the row.")
    return _SHOWN[whole]


def shown_point(row: Row) -> tuple[float, float] | None:
    """Where a row has its keypoint, (x, y) in pixels; None where the image does not show it. Raises `DatasetError` for
    numbers that are none."""
    visibility = _visibility(row.values)
    return row.point("x", "y") if visibility is None or _is_shown(row, visibility) else None


def read_marks(path: Path, images: Mapping[str, ImageRecord]) -> dict[str, Marks]:
    """Present keypoints by image id, in the order of the file."""
    points: dict[str, dict[str, tuple[float, float]]] = {image.id: {} for image in images.values()}
    places = dict.fromkeys(points, str(path))
    lines: dict[tuple[str, str], int] = {}
    for row in read_rows(path, COLUMNS):
        image, name = _image(row, "image", images).id, nfc(row.text("name"))
        first = lines.setdefault((image, name), row.line)
        if first != row.line:
            what = f"the keypoint {shown(name)} of {image} is there already, in line {first}"
            raise row.refusal(f"{what}; remove one of them.")
        point = shown_point(row)
        if point is not None:
            if not points[image]:
                places[image] = f"{path}, from line {row.line}"
            points[image][name] = point
    return {image: Marks(own, places[image]) for image, own in points.items()}


def _read_boxes(path: Path, images: Mapping[str, ImageRecord]) -> dict[str, Box]:
    """Bounding boxes by image id; none where there is no such file."""
    boxes: dict[str, Box] = {}
    lines: dict[str, int] = {}
    for row in read_rows(path, ("image", *_CORNERS)) if is_file(path) else ():
        image = _image(row, "image", images).id
        first = lines.setdefault(image, row.line)
        if first != row.line:
            raise row.refusal(f"the box of {image} is there already, in line {first}; remove one of them.")
        low, high = (row.point(*corner) for corner in (_CORNERS[:2], _CORNERS[2:]))
        if low is None or high is None or low[0] >= high[0] or low[1] >= high[1]:
            found = ", ".join(row.values[column].strip() or "nothing" for column in _CORNERS)
            what = f"the box is {shown(found)}, not {', '.join(_CORNERS)} with x0 below x1 and y0 below y1"
            raise row.refusal(f"{what}; correct or remove the row.")
        boxes[image] = *low, *high
    return boxes
