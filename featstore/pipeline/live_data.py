"""What the workbench shows of a store's data set: its pictures, and where its keypoints are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featstore.datasets.agreement import agreeing
from featstore.datasets.folder import FolderDataset, names_in_lists
from featstore.datasets.marking import Annotations
from featstore.datasets.pictures import decode, image_key
from featstore.datasets.records import AnnotatedPairs, Box, Dataset, ImageRecord, Marks, pair_of, to_resized_frame
from featstore.errors import DatasetError, StoreError, UnmarkedError
from featstore.pipeline.photos import Framing
from featstore.store.store import Store


@dataclass(frozen=True, slots=True)
class CommonKeypoint:
    """A keypoint that two images show. source, target: (x, y) in pixels as stored. theta: PCK's base threshold of the
    pair, in pixels of the resized frame; reach: the same along x and y, in pixels of the target."""

    name: str
    source: tuple[float, float]
    target: tuple[float, float]
    theta: float
    reach: tuple[float, float]


class LiveData:
    """A store's data set, read when something of it is asked for. Not to be used by two threads at once."""

    def __init__(self, store: Store, dataset: Dataset) -> None:
        self.store, self.dataset = store, dataset
        self.records: Mapping[str, ImageRecord] = {}
        self._marks: tuple[object, Mapping[str, Marks]] | None = None
        self._annotations: Annotations | None = None

    def refresh(self, store: Store) -> None:
        """Look at the data set anew, with the images that a store has now. Raises `DatasetError` where it is gone."""
        self.store = store
        self.records = {image.id: image for image in self.dataset.images()}
        self._annotations = None

    def picture(self, row: int) -> Image.Image:
        """The picture of a store's image, as stored. Raises `DatasetError` where it cannot be read, `StoreError` where
        it has changed since its maps were made."""
        entry = self.store.images.entry(row)
        record = self._record(entry.id)
        data = self.dataset.read(record)
        if image_key(record, data) != entry.key:
            raise StoreError(
                f"The image {entry.id} has changed since the store was built: run `dualsd cache build`, then the maps' "
                "command again."
            )
        return decode(record, data)

    def file(self, row: int) -> Path:
        """Where an image's file lies. Raises `DatasetError` for one of which no command can name a file."""
        record = self.record(row)
        folder = getattr(self.dataset, "root", None)
        if self.dataset.name == "demo":
            from featstore.datasets.demo import FOLDER as folder  # noqa: N811
        path = None if folder is None else folder / record.file
        if record.mirrored or path is None or not path.is_file():
            raise DatasetError(f"There is no file of the image {record.id} that `dualsd match` could be given.")
        return path

    def keypoints(self, source: int, target: int) -> list[CommonKeypoint]:
        """Those that two images show, none where the data set has no keypoints. Raises `DatasetError` where its
        annotations cannot be read."""
        marks, images = self._all_marks(), self.store.images
        one, other = (self.record(row) for row in (source, target))
        pair = pair_of(one, other, *(marks.get(end.id, Marks({})) for end in (one, other)))
        if pair is None:
            return []
        header, size = self.store.header, images.size(other.id)
        rule = self.dataset.theta_rule
        framed = to_resized_frame(AnnotatedPairs.of([pair]), rule, images.size, header.image_size, header.pad)
        theta = float(framed.resized.theta[0])
        frame = Framing(size, header.image_size, header.pad)
        origin, moved = frame.to_picture(np.array([[0, 0], [theta, theta]], dtype=np.float32)).tolist()
        reach = moved[0] - origin[0], moved[1] - origin[1]
        points = zip(pair.names, pair.source_points.tolist(), pair.target_points.tolist(), strict=True)
        return [CommonKeypoint(name, (a[0], a[1]), (b[0], b[1]), theta, reach) for name, a, b in points]

    def record(self, row: int) -> ImageRecord:
        """A store's image in the data set. Raises `DatasetError` where it is no longer there."""
        return self._record(self.store.images.ids[row])

    @property
    def annotations(self) -> Annotations | None:
        """The file that keypoints may be marked in, None of data sets that are others' work."""
        if self._annotations is None and isinstance(self.dataset, FolderDataset):
            images = names_in_lists(tuple(self.records.values()))
            self._annotations = Annotations(self.dataset.root / "keypoints.csv", images)
        return self._annotations

    def _record(self, image: str) -> ImageRecord:
        if image not in self.records:
            self.refresh(self.store)
        if image not in self.records:
            raise DatasetError(f"The image {image} is no longer in the data set: run `dualsd cache build`.")
        return self.records[image]

    def _all_marks(self) -> Mapping[str, Marks]:
        """By image id, of all splits."""
        state = None if self.annotations is None else _changed(self.annotations.file)
        if self._marks is None or self._marks[0] != state:
            self._marks = state, self._read_marks()
        return self._marks[1]

    def _read_marks(self) -> dict[str, Marks]:
        found: dict[str, Marks] = {}
        images = self.store.images
        for split in self.dataset.splits:
            try:
                listed = self.dataset.pairs(split)
            except UnmarkedError:
                continue
            known = listed.among([image for image in listed.images if image in images.known_keys])
            if known:
                found |= _marks_in(agreeing(self.dataset, known, images.size, lambda _: None))
        return found


def _changed(file: Path) -> tuple[int, int] | None:
    """What tells a file's state from others; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _marks_in(pairs: AnnotatedPairs) -> dict[str, Marks]:
    """What a list of pairs says of each image."""
    names, places = pairs.keypoints
    points: dict[str, dict[str, tuple[float, float]]] = {image: {} for image in pairs.occurring_images}
    boxes: dict[str, Box] = {}
    for side in (1, 0):
        image = np.repeat(pairs.ends[:, side], pairs.counts).astype(np.int64)
        shown = ~np.isnan(pairs.coordinates[:, side, 0])
        keys, first = np.unique(image[shown] * len(names) + places[shown], return_index=True)
        for key, (x, y) in zip(keys.tolist(), pairs.coordinates[shown, side][first].tolist(), strict=True):
            points[pairs.images[key // len(names)]][names[key % len(names)]] = x, y
        for place, row in zip(*np.unique(pairs.ends[:, side], return_index=True), strict=True):
            box = pairs.boxes[row, side]
            if not np.isnan(box).any():
                boxes[pairs.images[place]] = tuple(box.tolist())
    return {image: Marks(own, "the data set", boxes.get(image)) for image, own in points.items()}
