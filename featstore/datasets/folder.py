"""Anybody's photographs: subfolders are categories.

    <root>/<category>/<stem>.jpg
    <root>/keypoints.csv          image,name,x,y        optional; pixels of the image as stored (EXIF does not turn it);
                                                        x and y empty or nan, or a column `visible` of 0, where absent
    <root>/pairs.csv              source,target         optional; else all ordered pairs that share a keypoint

An image is named in both lists by `<category>/<file name>` or `<category>/<stem>`, in either Unicode normal form.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Self

from featstore.datasets.listed import ListedPair, existing_root, refuse_other_category, refuse_repeated
from featstore.datasets.reading import Row, entries, is_file, is_folder, read_image, read_rows, subfolders
from featstore.datasets.records import ImageRecord, Pair, ThetaRule, pair_by_name
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

_COLUMNS = ("image", "name", "x", "y")

_VISIBILITY = ("visible", "visibility", "vis", "v")
"""What a column is called, in lower or upper case, that says whether the image shows the keypoint."""

_SHOWN = {"0": False, "1": True, "2": True, "false": False, "true": True, "no": False, "yes": True}
"""COCO's 0 (not labelled), 1 (labelled, hidden by something) and 2 (visible), or true and false. As COCO's own scores
do, what is labelled is taken."""


@dataclass(frozen=True, slots=True)
class Marks:
    """An image's keypoints: (x, y) in pixels by name, and where the list begins to name them."""

    place: str = ""
    points: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FolderDataset:
    """A folder of photographs. See `featstore.datasets.records.Dataset`."""

    root: Path

    name = "folder"
    about = "your own photographs: sub-folders are categories"
    splits = ("test",)
    # There are no boxes, and the extent of the keypoints degenerates where somebody marks one keypoint an image (it is
    # 0) or a few close ones.
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
                raise DatasetError(
                    f"{self.root} has the sub-folders {other.name!a} and {folder.name!a}, which differ in "
                    "their Unicode normal form only; rename one of them."
                )
        records = [record for folder in folders.values() for record in _records(folder)]
        if not records:
            raise DatasetError(
                f"{self.root} has no sub-folder with images ({' '.join(SUFFIXES)}); put the images in sub-folders, "
                "one a category."
            )
        return tuple(sorted(records, key=lambda record: record.id))

    def pairs(self, split: str) -> tuple[Pair, ...]:
        if split not in self.splits:
            raise DatasetError(f"A folder of photographs has no split {split!r}, it has test; choose that.")
        marked = self.root / "keypoints.csv"
        if not is_file(marked):
            raise UnmarkedError(
                f"{self.root} has no keypoints.csv, so there is nothing to score; it should hold the header "
                "image,name,x,y and a row for each keypoint, in pixels of the original image."
            )
        images = _by_name(self.images())
        marks = _read_marks(marked, images)
        listed = self.root / "pairs.csv"
        if is_file(listed):
            pairs = [
                ListedPair(row, _image(row, "source", images), _image(row, "target", images))
                for row in read_rows(listed, ("source", "target"))
            ]
            refuse_repeated(pairs)
            return tuple(_listed_pair(pair, marks) for pair in pairs)
        by_category: dict[str, list[ImageRecord]] = {}
        for image in self.images():
            by_category.setdefault(image.category, []).append(image)
        every = [_pair(*two, marks) for own in by_category.values() for two in permutations(own, 2)]
        found = tuple(pair for pair in every if pair is not None)
        if not found:
            raise DatasetError(
                f"{marked}: no two images of one category share a keypoint's name; mark the same parts in both."
            )
        return found

    def members(self, split: str) -> frozenset[str]:
        return frozenset(image for pair in self.pairs(split) for image in (pair.source, pair.target))

    def notes(self, split: str | None) -> tuple[str, ...]:  # noqa: ARG002  (what is odd about the lists is refused)
        """What was left out of the images, and the columns of keypoints.csv that are not known."""
        return (*_left_out_note(self.root), *_columns_note(self.root / "keypoints.csv"))

    def read(self, image: ImageRecord) -> bytes:
        return read_image(self.root, image)


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and is_file(path)


def _left_out(root: Path) -> Iterator[Path]:
    """All files of categories that are not read, and the photographs above and below the categories' folders."""
    for path in entries(root):
        if not is_folder(path):
            yield from [path] if _is_photograph(path) else []
            continue
        for inner in entries(path):
            if is_folder(inner):
                yield from filter(_is_photograph, _below(inner))
            elif not _is_read(inner) and inner.name.lower() not in NO_PHOTOGRAPHS:
                yield inner


def _below(folder: Path) -> Iterator[Path]:
    """The visible files in a folder and its own, links to folders not followed: they may lead in a circle."""
    for path in entries(folder):
        if not is_folder(path):
            yield path
        elif not path.is_symlink():
            yield from _below(path)


def _is_photograph(path: Path) -> bool:
    return path.suffix.lower() in (*SUFFIXES, *OTHER_PHOTOGRAPHS)


def _kind(path: Path) -> str:
    """What a note counts a file as that is left out."""
    if not is_file(path):
        return "that cannot be opened (e.g. a broken link)"
    if path.suffix.lower() in SUFFIXES:
        return f"{path.suffix.lower()} outside of the categories' folders"
    return path.suffix.lower() or "without a suffix"


def _records(folder: Path) -> Iterator[ImageRecord]:
    by_stem: dict[str, str] = {}
    for name in [path.name for path in entries(folder) if _is_read(path)]:
        relative = f"{folder.name}/{name}"
        if not is_plain(relative):  # bytes that are no UTF-8 among them: no table or store could hold the id
            raise DatasetError(f"The name {relative!a} in {folder.parent} is no plain text; rename the file.")
        identifier = nfc(f"{folder.name}/{Path(name).stem}")
        other = by_stem.setdefault(identifier, name)
        if other != name:
            forms = f" ({other!a} and {name!a})" if nfc(other) == nfc(name) else ""
            raise DatasetError(
                f"{folder / other} and {folder / name}{forms} would both be the image {identifier}; rename one of them."
            )
        yield ImageRecord(id=identifier, category=nfc(folder.name), file=relative)


def _by_name(images: tuple[ImageRecord, ...]) -> dict[str, ImageRecord]:
    """Images by both names that lists may use. Where a.jpg and a.jpg.png meet, the file's name wins."""
    return {image.id: image for image in images} | {nfc(image.file): image for image in images}


def _image(row: Row, column: str, images: Mapping[str, ImageRecord]) -> ImageRecord:
    name = nfc(row.text(column))
    if name not in images:
        raise DatasetError(
            f"{row.where}: names the image {shown(name)}, which is not there; name it <category>/<file name>, or "
            "remove the row."
        )
    return images[name]


def _left_out_note(root: Path) -> tuple[str, ...]:
    left = Counter(_kind(path) for path in _left_out(root))
    if not left:
        return ()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
    return (
        f"{left.total()} files in {root} are left out, as only {' '.join(SUFFIXES)} in the sub-folder of a category "
        f"are read: {kinds}.",
    )


def _columns_note(path: Path) -> tuple[str, ...]:
    header = read_rows(path, _COLUMNS)[0].values if is_file(path) else ()
    unknown = [column for column in header if column not in (*_COLUMNS, _visibility(header))]
    if not unknown:
        return ()
    names = ", ".join(column[:40] if is_plain(column) else shown(column) for column in unknown)
    return (f"{path}: no use is made of {names}, only of {', '.join(_COLUMNS)} and {_VISIBILITY[0]}.",)


def _visibility(columns: Iterable[str]) -> str | None:
    """The first of some columns that says whether keypoints are visible."""
    return next((column for column in columns if column.lower() in _VISIBILITY), None)


def _is_shown(row: Row, column: str) -> bool:
    value = row.text(column)
    whole = value.lower().removesuffix(".0")  # what a spreadsheet or pandas makes of a whole number
    if whole not in _SHOWN:
        raise DatasetError(
            f"{row.where}: {column} is {shown(value)} where {', '.join(_SHOWN)} are known; correct the row."
        )
    return _SHOWN[whole]


def _read_marks(path: Path, images: Mapping[str, ImageRecord]) -> dict[str, Marks]:
    """Present keypoints by image id, in the order of the file."""
    marks: dict[str, Marks] = {}
    lines: dict[tuple[str, str], int] = {}
    rows = read_rows(path, _COLUMNS)
    visibility = _visibility(rows[0].values)
    for row in rows:
        image, name = _image(row, "image", images).id, nfc(row.text("name"))
        first = lines.setdefault((image, name), row.line)
        if first != row.line:
            raise DatasetError(
                f"{row.where}: the keypoint {shown(name)} of {image} is there already, in line {first}; remove one "
                "of them."
            )
        if visibility is not None and not _is_shown(row, visibility):
            continue
        point = row.point("x", "y")
        if point is not None:
            marks.setdefault(image, Marks(f"{path}, from line {row.line}")).points[name] = point
    return marks


def _listed_pair(listed: ListedPair, marks: Mapping[str, Marks]) -> Pair:
    refuse_other_category(listed)
    pair = _pair(listed.source, listed.target, marks)
    if pair is None:
        raise DatasetError(
            f"{listed} has no common keypoint in {listed.row.file.with_name('keypoints.csv')}; mark one in both images "
            "or remove the row."
        )
    return pair


def _pair(source: ImageRecord, target: ImageRecord, marks: Mapping[str, Marks]) -> Pair | None:
    """The pair with the keypoints that both images have; None where there is none."""
    ours, theirs = marks.get(source.id, Marks()), marks.get(target.id, Marks())
    pair = pair_by_name(source, target, ours.points, theirs.points)
    return None if pair is None else replace(pair, source_place=ours.place, target_place=theirs.place)


DATASET = FolderDataset
