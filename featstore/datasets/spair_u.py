"""SPair-U (Mariotti et al. 2025): keypoints that no one was trained on, on SPair-71k's test photographs.

    <root>/JPEGImages/<category>/<stem>.jpg                       SPair-71k's own
    <root>/ExtraPairAnnotation/test/<line>.json                   as SPair-71k's PairAnnotation, other keypoints
    <root>/Layout/large/test.txt                                  SPair-71k's own, to count what has no annotation

The annotations may lie in `SPair-U/PairAnnotation/test` in or beside `<root>` instead. No file of SPair-U was read by
whoever wrote this: the layout is what the authors' code (github.com/VICO-UoE/JamaisVu) reads.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from featstore.datasets.listed import ListedPair
from featstore.datasets.reading import Entry, Row, entries, is_file, is_folder
from featstore.datasets.records import Pair, pair_of
from featstore.datasets.spair import COLONS, LINE, SpairDataset, read_marks
from featstore.errors import DatasetError
from featstore.plain_text import is_plain, shown

_PLACES = [
    f"{of}{kind}PairAnnotation" for of in ("", "SPair-U/", "../SPair-U/") for kind in ("Extra", "") if of or kind
]
_COLON = re.compile(f"[{''.join(COLONS)}](?=[^{''.join(COLONS)}]*$)")


class SpairUDataset(SpairDataset):
    """SPair-U in SPair-71k's folder `root`."""

    name = "spair-u"
    about = "SPair-U (Mariotti et al. 2025), unseen keypoints on SPair-71k's test photographs"
    expected = "JPEGImages with ExtraPairAnnotation/test or SPair-U/PairAnnotation/test"

    @classmethod
    def find_lists(cls, root: Path) -> dict[str, Path]:
        """The folder of annotations, which are the list."""
        folders = [root / place / "test" for place in _PLACES] if is_folder(root / "JPEGImages") else []
        return {"test": next(filter(is_folder, folders))} if any(map(is_folder, folders)) else {}

    @staticmethod
    def rows(path: Path) -> Iterator[Row]:
        """The annotation files, by name; a row's values are those of a line of SPair-71k's list."""
        for number, file in enumerate((own for own in entries(path) if own.suffix == ".json"), start=1):
            line = _COLON.sub(":", file.stem)
            match = LINE.fullmatch(line) if is_plain(line) else None
            if not match:
                what = f"holds {shown(file.name)}, which is not <number>-<source>-<target>:<category>.json"
                raise DatasetError(f"{path} {what}; remove the file, or restore its name.")
            yield Entry(file, number, {"line": line, **match.groupdict()})

    def reader(self, path: Path) -> Callable[[ListedPair], Pair | None]:  # noqa: ARG002  (rows name the files)
        """What reads a pair's annotation file; None for one without a keypoint that both images show."""
        return _pair

    def notes(self, split: str | None) -> tuple[str, ...]:
        """How many pairs of SPair-71k have no annotation here."""
        if split is None:
            return super().notes(split)
        folder, lines = self.list_of(split), self.root / "Layout" / "large" / "test.txt"
        listed = list(self.listed(folder))
        named = {_ends(own.row) for own in listed}
        left = sum(_ends(row) not in named for row in SpairDataset.rows(lines)) if is_file(lines) else 0
        empty = sum(_pair(own) is None for own in listed)
        counts = {f"pairs of {lines} have no annotation": left, "annotations have no keypoint of both images": empty}
        said = ", and ".join(f"{count} {what}" for what, count in counts.items() if count)
        return (*super().notes(split), *([f"In {folder} {said}: they are left out."] if said else []))


DATASET = SpairUDataset


def _pair(listed: ListedPair) -> Pair | None:
    ours, theirs, difficulty = read_marks(listed.row.file, listed.row)
    pair = pair_of(listed.source, listed.target, ours, theirs)
    return None if pair is None else replace(pair, difficulty=difficulty)


def _ends(row: Row) -> tuple[str, ...]:
    return tuple(row.values[name] for name in ("source", "target", "category"))
