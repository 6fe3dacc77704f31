"""What data sets have in common that are lists of pairs in a folder: SPair-71k, PF-Pascal, PF-Willow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from featstore.datasets.reading import Row, Tree, is_file, is_folder, read_image, subfolders
from featstore.datasets.records import AnnotatedPairs, ImageRecord, Marks, Pair, ThetaRule, canonical_split, pair_of
from featstore.errors import DatasetError


@dataclass(frozen=True, slots=True)
class ListedPair:
    """The pair that a row of a list names."""

    row: Row
    source: ImageRecord
    target: ImageRecord

    def __str__(self) -> str:
        return f"{self.row.where}: the pair {self.source.id} -> {self.target.id}"

    def pair(self, ours: Marks, theirs: Marks) -> Pair:
        """The pair with the keypoints that both images show. Raises `DatasetError` where there is none."""
        pair = pair_of(self.source, self.target, ours, theirs)
        if pair is None:
            found = " and ".join(dict.fromkeys((ours.place, theirs.place)))
            raise DatasetError(
                f"{self} has no keypoint that both images show; remove the row, or mark one in both ({found})."
            )
        return pair


@dataclass(frozen=True, slots=True)
class ListedDataset(ABC):
    """A data set in the folder `root` that holds a list of pairs for each split. See
    `featstore.datasets.records.Dataset`.

    expected: the list files, for sentences. folders: names of the folder that it is unpacked to, the usual one first.
    """

    root: Path

    name: ClassVar[str]
    about: ClassVar[str]
    theta_rule: ClassVar[ThetaRule]
    expected: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]

    @classmethod
    def open(cls, root: Path | None) -> Self:
        """The data set in `root`, or in its sub-folder of the usual name. Raises `DatasetError` where it is not."""
        return cls(find_root(cls.name, cls.folders[0], cls.expected, root, cls.find_lists))

    @classmethod
    @abstractmethod
    def find_lists(cls, root: Path) -> Mapping[str, Path]:
        """The list files that a folder holds, by split."""

    @staticmethod
    @abstractmethod
    def rows(path: Path) -> Iterable[Row]:
        """The rows of a list file, in its order."""

    @abstractmethod
    def image(self, tree: Tree, row: Row, side: int) -> ImageRecord:
        """What a row names as its source, `side` 0, or its target, 1."""

    @abstractmethod
    def reader(self, path: Path) -> Callable[[ListedPair], Pair | None]:
        """What reads the annotations of a pair of a list file; None for a pair that is left out."""

    def pairs(self, split: str) -> AnnotatedPairs:
        """The pairs in the list's order, each once. Raises `DatasetError` where one stands twice with other
        annotations."""
        path = self.list_of(split)
        repeated, read = self._repeated(path), self.reader(path)
        lines = {*repeated, *repeated.values()}
        twice = {own.row.line: read(own) for own in self.listed(path) if own.row.line in lines}
        for line, first in repeated.items():
            if _content(twice[line]) != _content(twice[first]):
                what = f"names the pair of line {first}, but its annotation has other keypoints or boxes"
                raise DatasetError(f"{path}, line {line}: {what}; remove one of the lines.")
        every = (read(own) for own in self.listed(path) if own.row.line not in repeated)
        pairs = AnnotatedPairs.of(pair for pair in every if pair is not None)
        if not pairs:
            raise DatasetError(f"{path} lists no pairs; restore the file from the dataset.")
        return pairs

    def listed(self, path: Path) -> Iterator[ListedPair]:
        """What a list file names, in its order; no annotation is opened."""
        tree = Tree(self.root)
        return (ListedPair(row, self.image(tree, row, 0), self.image(tree, row, 1)) for row in self.rows(path))

    @property
    def splits(self) -> tuple[str, ...]:
        """Those whose list is there."""
        return tuple(self.find_lists(self.root))

    def images(self) -> tuple[ImageRecord, ...]:
        """The images that the lists of all splits name. Raises `DatasetError` where two files would get one id."""
        known: dict[str, ImageRecord] = {}
        for pair in (pair for path in self._lists().values() for pair in self.listed(path)):
            for record in (pair.source, pair.target):
                other = known.setdefault(record.id, record)
                if other.file != record.file:
                    both = f"{record.file} and {other.file} would both be the image {record.id}"
                    raise pair.row.refusal(f"{both}; rename one of them.")
        return tuple(known[identifier] for identifier in sorted(known))

    def members(self, split: str) -> frozenset[str]:
        """See `featstore.datasets.records.Dataset`."""
        return frozenset(image.id for pair in self.listed(self.list_of(split)) for image in (pair.source, pair.target))

    def notes(self, split: str | None) -> tuple[str, ...]:
        """A sentence where pairs of a list stand twice."""
        repeated = {} if split is None else self._repeated(path := self.list_of(split))
        if not repeated:
            return ()
        line, first = next(iter(repeated.items()))
        what = f"repeat a pair of an earlier line, e.g. line {line} that of line {first}"
        lines = f"{len(repeated)} of {sum(1 for _ in self.rows(path))} lines of {path}"
        return (f"{lines} {what}; each pair is counted once.",)

    def read(self, image: ImageRecord) -> bytes:
        """The bytes of the image file."""
        return read_image(self.root, image)

    def list_of(self, split: str) -> Path:
        """The list file of one split. Raises `DatasetError` naming the splits that there are."""
        lists, split = self._lists(), canonical_split(split)
        if split not in lists:
            advice = f"choose one of these, or add the missing list (looked for {self.expected})"
            raise DatasetError(f"{self.root} has no split {split!r}, it has {', '.join(lists)}; {advice}.")
        return lists[split]

    def _repeated(self, path: Path) -> dict[int, int]:
        """The lines whose pair stands in an earlier line already, with the first such line."""
        return {pair.row.line: line for pair, line in with_earlier(self.listed(path)) if line is not None}

    def _lists(self) -> Mapping[str, Path]:
        lists = self.find_lists(self.root)
        if not lists:
            raise DatasetError(f"{self.root} has no {self.expected}; give {_UNPACKED}.")
        return lists


def _content(pair: Pair | None) -> tuple[object, ...]:
    """What tells one annotation of a pair from another."""
    if pair is None:
        return ()
    return pair.source_points.tolist(), pair.target_points.tolist(), pair.source_box, pair.target_box


_UNPACKED = "the folder that the dataset was unpacked to"


def find_root(name: str, folder: str, expected: str, root: Path | None, holds: Callable[[Path], object]) -> Path:
    """The folder that a data set lies in: `root`, or its sub-folder of the usual name.

    Args:
        name: of the data set.
        folder: the usual name of the folder that it is unpacked to.
        expected: the files that tell it, for sentences.
        root: as it was given.
        holds: what a folder holds of the data set; nothing where it is not there.

    Raises:
        DatasetError: where neither folder holds the data set, naming a sub-folder that does.
    """
    existing = existing_root(name, root)
    for place in (existing, existing / folder):
        if holds(place):
            return place
    children = [child for child in subfolders(existing) if holds(child)]
    advice = f"it is in {children[0]}: give that" if children else f"give {_UNPACKED}"
    raise DatasetError(f"{root} holds no {name} dataset (looked for {expected}); {advice}.")


def existing_root(name: str, root: Path | None) -> Path:
    """The folder that is given for a data set. Raises `DatasetError` where none is, or it is not there."""
    if root is None:
        raise DatasetError(f"The dataset {name} needs the folder that it is in; give it with --root DIR.")
    if not is_folder(root):
        what = "is a file" if is_file(root) else "does not exist"
        raise DatasetError(f"The root {root} of the dataset {name} {what}; give the folder that the dataset is in.")
    return root


def with_earlier(listed: Iterable[ListedPair]) -> Iterator[tuple[ListedPair, int | None]]:
    """Each pair with the first line (1-based) that names it, where that is an earlier one. Raises `DatasetError` for an
    image that is paired with itself."""
    first: dict[tuple[str, str], int] = {}
    for pair in listed:
        if pair.source.id == pair.target.id:
            what = f"pairs {pair.source.id} with itself, which says nothing of matching"
            raise pair.row.refusal(f"{what}; remove the line.")
        earlier = first.setdefault((pair.source.id, pair.target.id), pair.row.line)
        yield pair, None if earlier == pair.row.line else earlier


def each_new(listed: Iterable[ListedPair]) -> Iterator[ListedPair]:
    """The pairs as they come. Raises `DatasetError` for one that stands twice, is of two categories, or of an image and
    itself."""
    for pair, earlier in with_earlier(listed):
        if earlier is not None:
            raise DatasetError(f"{pair} is there already, in line {earlier}; remove one of them.")
        if pair.source.category != pair.target.category:
            both = f"pairs {pair.source.id} with {pair.target.id}"
            raise pair.row.refusal(f"{both}, which is of another category; remove the row.")
        yield pair
