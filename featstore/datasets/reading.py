"""Checked reading of a dataset's files: whatever is wrong with them ends in one `DatasetError` sentence."""

import csv
import errno
import io
import math
import os.path
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath

from featstore.datasets.records import LARGEST_COORDINATE, MIRRORED, ImageRecord
from featstore.errors import DatasetError, ImageError
from featstore.plain_text import is_plain, nfc, shown

LARGEST_LIST = 64 << 20
"""Bytes of a list or an annotation that is read: some million rows."""

LARGEST_IMAGE = 512 << 20
"""Bytes of an image file that is read: about what the largest picture takes uncompressed, with transparency."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""What float() takes beyond it (1_000, nan, digits of other scripts) is a slip in a list."""

_ABSENT = ("", "nan", "-nan")
"""What stands in lists, in lower or upper case, for a coordinate of a keypoint that an image does not show."""

is_file, is_folder = os.path.isfile, os.path.isdir
"""Unlike a `Path`'s own, they say no of a path that is too odd for the operating system."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a CSV file: its file, its line (1-based) and its values by column name."""

    file: Path
    line: int
    values: Mapping[str, str]

    @property
    def where(self) -> str:
        """The row as a sentence names it: `<file>, line <line>`."""
        return f"{self.file}, line {self.line}"

    def refusal(self, what: str) -> DatasetError:
        """That something is wrong with the row."""
        return DatasetError(f"{self.where}: {what}")

    def text(self, column: str) -> str:
        """A value that must not be empty. Raises `DatasetError` where it is, or is no plain text."""
        value = self.values[column].strip()
        if not value:
            raise self.refusal(f"the column {column} is empty; fill it in or remove the row.")
        if not is_plain(value):
            raise self.refusal(f"{column} is {shown(value)}, which is no plain text; correct the file.")
        return value

    def number(self, column: str) -> float:
        """A finite number. Raises `DatasetError` where it is none."""
        value = self.text(column)
        number = float(value) if _NUMBER.fullmatch(value) else math.nan
        if not math.isfinite(number):
            raise self.refusal(f"{column} is {shown(value)}, which is no finite number; correct the file.")
        return number

    def point(self, x: str, y: str) -> tuple[float, float] | None:
        """The point of two columns, in pixels; None for an absent one, of which both are empty or nan. Raises
        `DatasetError` where one of them is, is no finite number, or lies beyond any picture."""
        present = [column for column in (x, y) if self.values[column].strip().lower() not in _ABSENT]
        if not present:
            return None
        if len(present) == 1:
            column, other = (y, x) if present == [x] else (x, y)
            what = f"{column} is {shown(self.values[column])}, so absent, where {other} is {shown(self.values[other])}"
            raise self.refusal(f"{what}; fill in both, or leave both empty.")
        found = {column: self.number(column) for column in present}
        for column, value in found.items():
            if abs(value) > LARGEST_COORDINATE:
                raise self.refusal(f"{column} is {value:g}, which is no coordinate in pixels; correct the file.")
        return found[x], found[y]


@dataclass(frozen=True, slots=True)
class Entry(Row):
    """One thing that a file of another kind is about, e.g. `image 17` of a JSON file; "" for all of the file. Its line
    is its number."""

    about: str = ""

    @property
    def where(self) -> str:
        """The thing as a sentence names it."""
        return ": ".join(filter(None, (str(self.file), self.about)))


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. A pipe or a device, which might never end, is not waited for.

    Raises `OSError` where it cannot be read, is no regular file or has more than `limit` bytes.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file")
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"it has {status.st_size >> 20} MiB where at most {limit >> 20} are read")
    with path.open("rb") as stream:
        return stream.read(status.st_size)


def read_bytes(path: Path, limit: int = LARGEST_LIST) -> bytes:
    """The bytes of a file that a list or an annotation is in. Raises `DatasetError` where it cannot be read."""
    try:
        return read_limited(path, limit)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path} cannot be read ({reason}); check that the dataset is complete.") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises `DatasetError` where it cannot be read or decoded."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"is no UTF-8 text (byte {error.start} cannot be decoded)"
        raise DatasetError(f"{path} {what}; save it as UTF-8.") from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a CSV file with a header that has at least `columns`; blank lines are skipped.

    Raises `DatasetError` for a file that cannot be read, a missing or repeated column, a row of another length than
    the header, and a file without rows.
    """
    lines, needed = _lines(path), ",".join(columns)
    header = [cell.strip() for cell in next(lines, (0, []))[1]]
    first = next(lines, None)
    if first is None:
        raise DatasetError(f"{path} has no rows; it needs the header {needed} and at least one row.")
    found = repr(",".join(header)[:200])
    if missing := [column for column in columns if column not in header]:
        what = f"has no column {', '.join(missing)} (its header is {found})"
        raise DatasetError(f"{path} {what}; the header needs {needed}.")
    if len(set(header)) != len(header):
        raise DatasetError(f"{path} names a column twice in its header {found}; rename one.")
    for line, cells in chain([first], lines):
        if len(cells) != len(header):
            what = f"it has {len(cells)} values where the header names {len(header)} columns; correct the row."
            raise DatasetError(f"{path}, line {line}: {what}")
        yield Row(path, line, dict(zip(header, cells, strict=True)))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file that are not blank, with their numbers."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        yield from ((reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells))
    except csv.Error as error:
        what = f"it is no valid CSV ({error}); correct the file."
        raise DatasetError(f"{path}, line {reader.line_num}: {what}") from error


def check_inside(relative: str, where: str) -> PurePosixPath:
    """A path that a list names, checked to stay inside the dataset's folder on any operating system.

    Symbolic links are followed wherever they lead: datasets are often linked from elsewhere, and whoever can make a
    link in the folder has the disk, while a list may come from anybody.

    Args:
        relative: as the list spells it.
        where: which file and line names it, for sentences.

    Raises:
        DatasetError: for an absolute path, one with `..`, or one that is no path at all.
    """
    windows = PureWindowsPath(relative)
    if windows.anchor or relative.startswith("/") or ".." in windows.parts or "\0" in relative or not windows.parts:
        what = f"the path {shown(relative)} leads out of the dataset's folder"
        raise DatasetError(f"{where}: {what}; list paths relative to that folder, without '..'.")
    return PurePosixPath(relative)


def entries(folder: Path) -> list[Path]:
    """All that is visible in a folder, sorted by name. Raises `DatasetError` where it cannot be listed."""
    return [folder / name for name in _names_in(folder) if not name.startswith(".")]


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name. Raises `DatasetError` where it cannot be listed."""
    return [path for path in entries(folder) if is_folder(path)]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{folder} cannot be listed ({error}); check that it is a readable folder.") from error


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below `root` by the paths that lists name, in whichever normal form either is. Each folder is listed once,
    instead of asked for each of 71k pairs, and each image looked for once, although it recurs in many pairs.

    folders: names as on the disk by names in NFC. images: by file, category and whether they are mirrored.
    """

    root: Path
    folders: dict[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    images: dict[tuple[str, str, bool], ImageRecord] = field(default_factory=dict)

    def find(self, relative: str) -> str | None:
        """The path as on the disk, relative to `root`; None where nothing lies there, or outside of `root`.

        Raises `DatasetError` where two names on the disk would both be it.
        """
        found = ""
        for part in relative.split("/"):
            if part in ("", ".", ".."):
                return None
            names = self._names(found).get(nfc(part), ())
            if len(names) > 1:
                both = f"{' and '.join(map(ascii, names))}, which differ in their Unicode normal form only"
                raise DatasetError(f"{self.root / found} holds {both}; rename or remove one of them.")
            # a disk that ignores case has names which its listing spells otherwise
            spelled = self.root / found / part
            if not names and not (is_file(spelled) or is_folder(spelled)):
                return None
            found = f"{found}/{names[0] if names else part}".lstrip("/")
        return found

    def _names(self, folder: str) -> Mapping[str, Sequence[str]]:
        if folder not in self.folders:
            known: dict[str, list[str]] = {}
            for name in _names_in(self.root / folder) if is_folder(self.root / folder) else ():
                known.setdefault(nfc(name), []).append(name)
            self.folders[folder] = known
        return self.folders[folder]

    def image(self, row: Row, file: str, category: str, mirrored: bool = False) -> ImageRecord:
        """The image in a file, a path relative to `root`, that a row names. Raises `DatasetError` where it is not
        there."""
        key = (file, category, mirrored)
        if key not in self.images:
            found = self.find(file)
            if found is None or not is_file(self.root / found):
                what = f"names the image {shown(file)}, which is not in {self.root}"
                raise row.refusal(f"{what}; restore the image or remove the row.")
            identifier = nfc(f"{category}/{PurePosixPath(file).stem}") + (MIRRORED if mirrored else "")
            self.images[key] = ImageRecord(identifier, nfc(category), found, mirrored)
        return self.images[key]


def read_image(root: Path, image: ImageRecord) -> bytes:
    """The bytes of an image file, `image.file` being relative to `root`.

    Raises `ImageError` where it cannot be read, `DatasetError` where the path leads out of `root`.
    """
    path = root / check_inside(image.file, f"Image {image.id}")
    try:
        return read_limited(path, LARGEST_IMAGE)
    except OSError as error:
        what = f"cannot be read from {path} ({error.strerror}); check that the file is there."
        raise ImageError(image.id, f"Image {image.id} {what}") from error
