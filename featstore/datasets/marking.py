"""`keypoints.csv` of a folder of photographs, edited a keypoint at a time: every other cell stays as it is."""

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featstore.datasets.folder import COLUMNS, VISIBILITY, read_marks
from featstore.datasets.reading import is_file, read_rows, read_text
from featstore.datasets.records import ImageRecord
from featstore.files import write_whole
from featstore.plain_text import is_plain, nfc, shown
from matcher.errors import InputError

LONGEST_NAME = 100
"""Characters of a keypoint's name."""

BACKUP = ".bak"
"""Ends the name of the file as it was before the first change."""


def check_name(name: str) -> str:
    """A keypoint's name in NFC. Raises `InputError` for one that is no plain text, too long, or could be taken for
    markup or a spreadsheet's formula."""
    name = nfc(name.strip())
    if not name or len(name) > LONGEST_NAME or not is_plain(name) or re.search(r"[<>]|^[=+@-]", name):
        raise InputError(
            f"{shown(name)} is no name of a keypoint: take 1 to {LONGEST_NAME} characters of plain text, without < "
            "and >, that begin with none of = + - @."
        )
    return name


@dataclass(frozen=True, slots=True)
class Annotations:
    """Those of a folder of photographs. file: where they lie. images: by both names that lists may use."""

    file: Path
    images: Mapping[str, ImageRecord]
    _backups: list[Path] = field(default_factory=list, repr=False, compare=False)

    def points(self) -> dict[str, dict[str, tuple[float, float]]]:
        """(x, y) in pixels as stored by the keypoint's name, by image id; of images that have one. Raises
        `DatasetError` where the file is malformed."""
        marks = read_marks(self.file, self.images) if self._has_rows() else {}
        return {
            image: {name: (own[0], own[1]) for name, own in found.points.items()}
            for image, found in marks.items()
            if found.points
        }

    def save(self, image: ImageRecord, name: str, point: tuple[float, float] | None) -> None:
        """Set a keypoint, or remove it where `point` is None. The file is replaced whole; as it was before the first
        change it is kept beside it.

        Raises:
            InputError: For a name that cannot be.
            DatasetError: For a file that is malformed.
            StoreError: The disk does not take it.
        """
        name, header, rows = check_name(name), [*COLUMNS], list[dict[str, str]]()
        before = read_text(self.file) if is_file(self.file) else ""
        if self._has_rows():
            self.points()  # refuses a file of which it is not known what it means
            rows = [dict(row.values) for row in read_rows(self.file, COLUMNS)]
            header = [*rows[0]]
        place = next((at for at, row in enumerate(rows) if self._is_of(row, image, name)), len(rows))
        old = rows[place : place + 1] or [{"image": image.file, "name": name}]
        seen = {column: "1" for column in header if column.lower() in VISIBILITY}
        new = [] if point is None else [old[0] | seen | {"x": f"{point[0]:.2f}", "y": f"{point[1]:.2f}"}]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header, restval="", lineterminator="\r\n" if "\r\n" in before else "\n")
        writer.writeheader()
        writer.writerows([*rows[:place], *new, *rows[place + 1 :]])
        if before and not self._backups:
            self._backups.append(self.file.with_name(self.file.name + BACKUP))
            write_whole(self._backups[0], before.encode())
        write_whole(self.file, text.getvalue().encode())

    def _has_rows(self) -> bool:
        return is_file(self.file) and len(read_text(self.file).split("\n", 1)[-1].strip()) > 0

    def _is_of(self, row: Mapping[str, str], image: ImageRecord, name: str) -> bool:
        own = self.images.get(nfc(row["image"].strip()))
        return own is not None and own.id == image.id and nfc(row["name"].strip()) == name
