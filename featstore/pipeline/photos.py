"""Photographs that belong to no store, which of them are matched, and which points of them are looked for.

They are taken as a viewer shows them, turned as EXIF asks, and points count in those pixels. Only a file that names
images as data sets do (a column `image`) has points in pixels as stored, which is what data sets count in.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from featstore.config import MatchConfig
from featstore.datasets.folder import SUFFIXES, shown_point
from featstore.datasets.pictures import TURNS, decode, exif_orientation, image_key, to_shown, to_stored, turned
from featstore.datasets.reading import LARGEST_IMAGE, Row, entries, is_file, is_folder, read_limited, read_rows
from featstore.datasets.records import ImageRecord
from featstore.errors import DatasetError
from featstore.plain_text import nfc, shown
from featstore.progress import Progress
from matcher.errors import InputError, MatchError

Points = NDArray[np.float32]
"""(n, 2), (x, y) in pixels."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph: its pixels as a viewer shows them, the hash that keys its noise, and how the file's were turned for
    that (EXIF's 1, not at all, to 8)."""

    name: str
    key: str
    picture: Image.Image
    orientation: int = 1

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the pixels in the file."""
        width, height = self.picture.size
        return (height, width) if TURNS[self.orientation][0] else (width, height)

    def from_stored(self, points: Points) -> Points:
        """Points in pixels of the file to those of the picture."""
        return to_shown(points, self.orientation, self.stored_size)

    def to_stored(self, points: Points) -> Points:
        """The inverse of `from_stored`."""
        return to_stored(points, self.orientation, self.stored_size)


def open_photo(path: Path) -> Photo:
    """Read a photograph. Raises `DatasetError` where the file is missing, `ImageError` where it cannot be decoded."""
    try:
        data = read_limited(path, LARGEST_IMAGE)
    except OSError as error:
        raise DatasetError(f"The image {path} cannot be read: {error.strerror}.") from error
    record = ImageRecord(id=str(path), category="", file=str(path))
    orientation = exif_orientation(record, data)
    return Photo(path.name, image_key(record, data), turned(decode(record, data), orientation), orientation)


def as_photo(image: Photo | Image.Image | NDArray[np.uint8] | Path | str) -> Photo:
    """A photograph of a path, a PIL image or an array (H, W, 3) of 0 to 255. The noise of a file is keyed by its bytes,
    as in a store; that of pixels in memory by those, which are taken as they are."""
    if isinstance(image, Photo):
        return image
    if isinstance(image, Path | str):
        return open_photo(Path(image))
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise DatasetError(
                f"An array of {pixels.dtype} and shape {pixels.shape} is no picture: it takes uint8 of shape (H, W, 3)."
            )
        image = Image.fromarray(pixels)
    picture = image.convert("RGB")
    digest = hashlib.blake2b(f"{picture.size}".encode() + picture.tobytes(), digest_size=16)
    return Photo("the picture", digest.hexdigest(), picture)


def check_inside(points: ArrayLike, size: tuple[int, int], name: str) -> None:
    """Raise `MatchError` for the first of some points (n, 2) that lies outside an image of `size` = (width, height)."""
    found = np.asarray(points)
    outside = ~((found >= 0) & (found <= size)).all(axis=1)
    if outside.any():
        x, y = found[outside.argmax()]
        raise MatchError(f"The point {x:g},{y:g} lies outside {name}, which is {size[0]}x{size[1]} pixels.")


@dataclass(frozen=True, slots=True, eq=False)
class AskedPair:
    """Two images and the points that are looked for: (n, 2), in pixels of the source as a viewer shows it, by n names.
    category: what both show, where that is said."""

    source: Path
    target: Path
    category: str | None
    names: tuple[str, ...]
    points: Points


def asked_pairs(config: MatchConfig, progress: Progress) -> list[AskedPair]:
    """What a config asks for. Every image is looked at once, so that one that cannot be read is told before a network
    is loaded; those that a viewer turns are noted.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    named = list(_paths(config))
    if len({bool(category) for _, _, category in named}) > 1:
        raise InputError(f"Some pairs of {config.pairs} have a category and some none: name theirs by --category.")
    rows = None if config.points_file is None else tuple(read_rows(config.points_file, ("x", "y")))
    points: dict[Path, tuple[tuple[str, ...], Points]] = {}
    turned_ones, sources = [], {source for source, _, _ in named}
    images = dict.fromkeys(chain.from_iterable(pair[:2] for pair in named))
    for path in images:
        photo = open_photo(path)
        if photo.orientation != 1:
            turned_ones.append(photo.name)
        if path in sources:
            points[path] = _points_of(config, rows, path, photo)
    if turned_ones:
        progress.note(
            f"{len(turned_ones)} of {len(images)} images, e.g. {turned_ones[0]}, are turned as a viewer shows them "
            "(EXIF orientation); points count in those pixels."
        )
    return [AskedPair(source, target, category, *points[source]) for source, target, category in named]


def _paths(config: MatchConfig) -> Iterator[tuple[Path, Path, str | None]]:
    """Source, target and category of each pair."""
    if config.pairs is not None:
        for row in read_rows(config.pairs, ("source", "target")):
            ends = [_image_of(row, column) for column in ("source", "target")]
            yield ends[0], ends[1], row.values.get("category", "").strip() or config.category
        return
    first, target = config.source, config.target
    assert first is not None, "a config has A and B, or pairs"
    assert target is not None, "a config has A and B, or pairs"
    if not is_folder(target):
        yield first, target, config.category
        return
    found = [path for path in entries(target) if path.suffix.lower() in SUFFIXES and is_file(path)]
    others = [path for path in found if not (is_file(first) and path.samefile(first))]
    if not others:
        raise DatasetError(f"The folder {target} has no images ({' '.join(SUFFIXES)}) besides A: put some there.")
    yield from ((first, path, config.category) for path in others)


def _image_of(row: Row, column: str) -> Path:
    path = row.file.parent / row.text(column)
    if not is_file(path):
        what = f"names the image {shown(row.text(column))}, which is not in {row.file.parent}"
        raise row.refusal(f"{what}; correct the path, or remove the row.")
    return path


def _points_of(
    config: MatchConfig, rows: Sequence[Row] | None, path: Path, photo: Photo
) -> tuple[tuple[str, ...], Points]:
    """Names and points of a source image. rows: of the file of points, where there is one."""
    if rows is not None:
        return _listed(rows, path, photo)
    found = np.array(config.points or _grid(config, photo), dtype=np.float32)
    check_inside(found, photo.picture.size, photo.name)
    return tuple(str(number) for number in range(1, len(found) + 1)), found


def _listed(rows: Sequence[Row], path: Path, photo: Photo) -> tuple[tuple[str, ...], Points]:
    file, found = rows[0].file, dict[str, tuple[float, float]]()
    of_images = "image" in rows[0].values
    own = {f"{folder}{name}" for folder in ("", f"{path.absolute().parent.name}/") for name in (path.name, path.stem)}
    for row in rows:
        if of_images and nfc(row.text("image")) not in map(nfc, own):
            continue
        name = nfc(row.text("name")) if "name" in row.values else str(len(found) + 1)
        point = shown_point(row)
        if name in found:
            raise row.refusal(f"the point {shown(name)} of {path.name} is there already; remove one of them.")
        if point is not None:
            found[name] = point
    if not found:
        raise DatasetError(f"{file} has no point of {path}; add one, or name the image as <folder>/<file name> there.")
    points = np.array(list(found.values()), dtype=np.float32)
    check_inside(points, photo.stored_size if of_images else photo.picture.size, f"{photo.name} ({file})")
    return tuple(found), photo.from_stored(points) if of_images else points


def _grid(config: MatchConfig, photo: Photo) -> Points:
    """The centres of N x N equal parts of the picture, or of what encloses its mask, row by row."""
    assert config.grid is not None, "a config has points, a file of them, or a grid"
    width, height = photo.picture.size
    area = np.ones((height, width), dtype=bool) if config.mask is None else _mask(config.mask, photo)
    sides = [np.flatnonzero(area.any(axis=axis)) for axis in (0, 1)]  # columns and rows that have some of it
    parts = (np.arange(config.grid) + 0.5) / config.grid
    x, y = (own[0] + parts * (own[-1] + 1 - own[0]) - 0.5 for own in sides)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    column, row = np.rint(points).astype(int).clip(0, [width - 1, height - 1]).T
    if not area[row, column].any():
        raise InputError(f"None of the grid's points lies on what {config.mask} shows: take a finer grid.")
    return points[area[row, column]].astype(np.float32)


def _mask(file: Path, photo: Photo) -> NDArray[np.bool_]:
    """(H, W), where it is not black."""
    picture = open_photo(file).picture
    if picture.size != photo.picture.size:
        sizes = [f"{width}x{height}" for width, height in (picture.size, photo.picture.size)]
        raise InputError(f"The mask {file} is {sizes[0]} pixels, where {photo.name} is {sizes[1]}: make it as large.")
    area = np.asarray(np.asarray(picture).any(axis=2))
    if not area.any():
        raise InputError(f"The mask {file} is all black: what is not black is where points are looked for.")
    return area
