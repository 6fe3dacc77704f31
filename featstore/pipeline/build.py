"""`cache build`: a store made or brought up to date, from a dataset and a model. Which images there are, and what their
bytes are now, is looked at first: the table of a new store, and what is stale in an old one."""

import glob
import math
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.base import Compute
from featstore.backbones.noise import Latents
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.agreement import agreeing
from featstore.datasets.pictures import exif_orientation, image_key, original_size
from featstore.datasets.records import Dataset, ImageRecord
from featstore.errors import ImageError, StoreError, StoreExistsError, UnmarkedError
from featstore.files import sweep_making, sweep_partial
from featstore.pipeline.distributed import WHOLE, Part
from featstore.pipeline.needed import make_latents
from featstore.pipeline.pairs import copies
from featstore.pipeline.plan import Work, keep_noise, missing_latents, missing_noisy, noisy_latents
from featstore.progress import Progress
from featstore.store.keys import StoreLocation
from featstore.store.lock import exclusive
from featstore.store.pack import unpack_array
from featstore.store.schema import COLUMNS, ImageTable, StoreHeader
from featstore.store.store import Store, create_store, open_if_there, open_store, record_whereabouts, replace_stale

READERS = 8
"""Threads that read image files; reading waits for the disk, not for a core."""

UNREADABLE = "unreadable"
"""The key of an image that the disk has not given yet."""


@dataclass(frozen=True, eq=False)
class Survey:
    """A dataset's images with what their bytes are now: keys, None for one that the disk does not give, and (N, 2)
    original sizes, 0 for one that is no readable image."""

    records: tuple[ImageRecord, ...]
    keys: tuple[str | None, ...]
    sizes: NDArray[np.int32]

    def table(self) -> ImageTable:
        """The table of a store made of these images."""
        return ImageTable(
            tuple(record.id for record in self.records),
            tuple(record.category for record in self.records),
            tuple(key or UNREADABLE for key in self.keys),
            self.sizes,
        )

    def now(self, store: Store) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """The keys and sizes that a store of these images should have. An image that the disk does not give just now is
        not one that changed, and of a file that is no readable image just now the size is the one that is known."""
        then = store.images
        keys = tuple(key or before for key, before in zip(self.keys, then.keys, strict=True))
        changed = np.array([key != before for key, before in zip(keys, then.keys, strict=True)], dtype=bool)
        given = np.array([key is not None for key in self.keys], dtype=bool)[:, None] & (self.sizes > 0)
        return keys, np.where(given | changed[:, None], self.sizes, then.sizes)


def survey_images(dataset: Dataset, progress: Progress) -> Survey:
    """Read and hash every image's bytes, and its header. Broken images are not raised: encoding them will say. Images
    that ask to be turned are noted once (`featstore.datasets.pictures`)."""
    records = dataset.images()
    progress.start("reading images", len(records), "images")
    keys, sizes, turned = [], [], []
    for record, (key, size, orientation) in _inspected(dataset, records):
        keys.append(key)
        sizes.append(size)
        if orientation != 1:
            turned.append(record.id)
        progress.advance()
    if turned:
        progress.note(
            f"{len(turned)} images of {dataset.name}, e.g. {turned[0]}, ask to be turned when they are shown (EXIF "
            "orientation); their pixels are taken as stored, and keypoints must count in those."
        )
    known = {record.id: key for record, key in zip(records, keys, strict=True) if key is not None}
    for sentence in (*dataset.notes(None), *copies(dataset.name, [record.id for record in records], known)):
        progress.note(sentence)
    return Survey(records, tuple(keys), np.array(sizes, dtype=np.int32).reshape(-1, 2))


def _inspected(
    dataset: Dataset, records: Sequence[ImageRecord]
) -> Iterator[tuple[ImageRecord, tuple[str | None, tuple[int, int], int]]]:
    """Each image with its key, its original size and how it asks to be turned; broken ones with what is known."""

    def inspect(record: ImageRecord) -> tuple[str | None, tuple[int, int], int]:
        key = None
        try:
            data = dataset.read(record)
            key = image_key(record, data)
            return key, original_size(record, data), exif_orientation(record, data)
        except ImageError:
            return key, (0, 0), 1

    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(records, pool.map(inspect, records), strict=True)


def check_unchanged(store: Store, dataset: Dataset, images: Collection[str], progress: Progress) -> None:
    """Raise `StoreError` where an image's bytes are not those that the store was made from: its maps would be matched
    against keypoints of another picture. Or where the table of images has another size or category of it: keypoints
    would be scaled by a wrong size, and its maps be another prompt's."""
    wanted = set(images)
    records = [record for record in dataset.images() if record.id in wanted]
    progress.start("checking images", len(records), "images")
    for record, (key, size, _) in _inspected(dataset, records):
        row = store.images.row(record.id)
        check_category(store, row, record)
        if key not in (None, store.images.keys[row]):
            raise StoreError(
                f"The file of image {record.id!r} has changed since `cache build`: run `dualsd cache build` again."
            )
        if fault := _size_fault(store.images, row, size):
            raise StoreError(
                f"Of image {record.id!r} in {store.path} {fault}: run `dualsd cache build`, which writes the table of "
                "images anew."
            )
        progress.advance()


def check_category(store: Store, row: int, record: ImageRecord) -> None:
    """Raise `StoreError` where the table of images has another category of an image than the dataset."""
    if fault := _category_fault(store.images, row, record):
        raise StoreError(
            f"Of image {record.id!r} in {store.path} {fault}: its maps may be of the wrong category's prompt; make the "
            "store anew with `dualsd cache build` and another --store."
        )


def check_same_images(store: Store, survey: Survey) -> None:
    """Raise `StoreError` where the dataset has other images than the store."""
    ids = [record.id for record in survey.records]
    if tuple(ids) != store.images.ids:
        raise StoreError(f"{store.path} was made from other images: {_difference(store.images.ids, ids)}.")


def image_faults(store: Store, survey: Survey) -> list[tuple[int, str]]:
    """What the table of images says otherwise than the dataset and its files, by row. The dataset has the store's
    images."""
    table = store.images
    found: list[tuple[int, str]] = []
    for row, record in enumerate(survey.records):
        faults = [_size_fault(table, row, tuple(survey.sizes[row].tolist())), _category_fault(table, row, record)]
        if survey.keys[row] not in (None, table.keys[row]):
            faults = ["its file is not the one that the store was made from"]
        found += [(row, fault) for fault in faults if fault]
    return found


def _size_fault(table: ImageTable, row: int, size: tuple[int, ...]) -> str:
    """Empty where there is none; a file that cannot be read now says nothing."""
    stored = tuple(table.sizes[row].tolist())
    spelt = " where its file has ".join(f"{width} x {height}" for width, height in (stored, size))
    return "" if stored == size or 0 in size else f"the table of images says {spelt} pixels"


def _category_fault(table: ImageTable, row: int, record: ImageRecord) -> str:
    stored, said = table.categories[row], record.category
    return "" if stored == said else f"the table of images says category {stored!r} where the dataset says {said!r}"


def refresh(store: Store, survey: Survey, progress: Progress) -> tuple[Store, int]:
    """Forget the rows of images whose bytes changed: (the store, how many images). See `replace_stale`. Packed arrays
    are unpacked for it. A size in the table of images that is not the file's is set right, with a note.

    Raises `StoreError` where the dataset has other images than the store, or other categories of them.
    """
    check_same_images(store, survey)
    for row, record in enumerate(survey.records):
        check_category(store, row, record)
    if _is_current(store, *survey.now(store)):
        return store, 0
    with exclusive(store.path):  # nobody packs a row of what an image was while it is forgotten
        store = open_store(store.path)
        keys, sizes = survey.now(store)
        if _is_current(store, keys, sizes):  # another process was first, and may have made rows of the new ones since
            return store, 0
        same = np.array(keys) == np.array(store.images.keys)
        resized = np.flatnonzero(same & (sizes != store.images.sizes).any(axis=1))
        if len(resized):
            progress.note(
                f"Of {len(resized)} image(s), e.g. {store.images.ids[resized[0]]}, the table of images said another "
                "size than the file has; it is set right."
            )
        for array in store.arrays().values() if not same.all() else ():
            if array.packed:
                unpack_array(array, progress)
        return replace_stale(store, keys, sizes)


def _is_current(store: Store, keys: tuple[str, ...], sizes: NDArray[np.int32]) -> bool:
    return keys == store.images.keys and np.array_equal(sizes, store.images.sizes)


def _difference(stored: Sequence[str], found: Sequence[str]) -> str:
    gone, new = sorted(set(stored) - set(found)), sorted(set(found) - set(stored))
    parts = [
        *([f"{len(gone)} of its {len(stored)} are no longer in the dataset (e.g. {gone[0]!r})"] if gone else []),
        *([f"{len(new)} of the dataset's {len(found)} are not in the store (e.g. {new[0]!r})"] if new else []),
    ]
    return f"{' and '.join(parts) or 'their order differs'}; name another --store"


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to cache. image_size: S in pixels, None for what the model was trained for. draws: of noise a timestep.
    part: of the images whose latents are made."""

    path: StoreLocation
    root: Path | None
    image_size: int | None
    latents: Latents
    seed: int
    timesteps: tuple[int, ...]
    draws: int
    part: Part = WHOLE


@dataclass(frozen=True, slots=True)
class BuildReport:
    """images: in the part asked for. encoded: went through the VAE in this run. skipped: had their latents already.
    stale: of the dataset, had changed since they were encoded. noised: noisy latents made. bytes_written: of rows. bad:
    could not be read."""

    images: int
    encoded: int
    skipped: int
    stale: int
    noised: int
    bytes_written: int
    seconds: float
    bad: tuple[ImageError, ...]


@dataclass(frozen=True, slots=True)
class BuildCost:
    """What a build would take: images to encode (VAE passes), noisy latents to make, bytes and files to write."""

    images: int
    encode: int
    noise: int
    bytes_to_write: int
    files_to_write: int


def header_of(dataset: Dataset, model: Model, request: BuildRequest) -> StoreHeader:
    """The header of the store that a request asks for. Raises `ModelError` for a size or a timestep
    that the model does not take."""
    size = request.image_size if request.image_size is not None else model.image_size
    model.latent_side(size)
    model.schedule.check_timesteps(request.timesteps)
    return StoreHeader(
        dataset=dataset.name,
        dataset_root=None if request.root is None else str(request.root.resolve()),
        model_id=model.location.id,
        model_revision=model.location.revision,
        model_fingerprint=model.fingerprint,
        image_size=size,
        latents=request.latents,
        scheduler=model.schedule.describe(),
        seed=request.seed,
        latent_shift=model.latent_scale.shift,
    )


def build(
    dataset: Dataset, model: Model, request: BuildRequest, compute: Compute, skip_bad: bool, progress: Progress
) -> BuildReport:
    """Make or complete a store: latents of every image of the part, and noisy latents at the request's timesteps.

    A second run does only what is missing; an image whose bytes changed is encoded anew and all that derives from it
    is forgotten. Several parts, or one several times, may run at once, whether the store is there or not.

    Raises `StoreError` where the store was made otherwise; the first broken image's `ImageError` unless `skip_bad`,
    after everything else was done.
    """
    start = time.monotonic()
    store, stale = open_or_create(dataset, model, request, progress)
    rows = request.part.of(range(len(store.images)))
    work, noisy = Work(store, dataset, compute, progress), noisy_latents(store, request.timesteps)
    encoded, bad = make_latents(work, rows, model)
    broken = {store.images.row(error.image_id) for error in bad}
    good = [row for row in rows if row not in broken]
    noised = keep_noise(work, noisy, good, request.timesteps, request.draws)
    if bad and not skip_bad:
        raise bad[0]
    return BuildReport(
        images=len(rows),
        encoded=encoded,
        skipped=len(rows) - len(bad) - encoded,
        stale=stale,
        noised=noised,
        bytes_written=(encoded + noised) * store.latents().row_bytes,
        seconds=time.monotonic() - start,
        bad=tuple(bad),
    )


def together(reports: Sequence[BuildReport]) -> BuildReport:
    """What all parts did."""
    counts = ("images", "encoded", "skipped", "stale", "noised", "bytes_written")  # one of them forgot the stale rows
    return BuildReport(
        **{name: sum(getattr(report, name) for report in reports) for name in counts},
        seconds=max(report.seconds for report in reports),
        bad=tuple(error for report in reports for error in report.bad),
    )


def open_or_create(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> tuple[Store, int]:
    """The store of a request, made with no latents yet where there is none: (the store, how many of its images had
    changed, whose rows are forgotten). Of several processes that find none, one makes it and the others take that one.
    Raises `StoreError` where it was made otherwise."""
    if isinstance(request.path, Path):  # on object storage nothing is made beside its place
        sweep_making(request.path.parent, glob.escape(request.path.name))
    header, store, survey = _found(dataset, model, request, progress)
    if store is None:
        try:
            return create_store(request.path, header, survey.table(), model.latent_shape(header.image_size)), 0
        except StoreExistsError:
            store = _open_same(request.path, header)
            if store is None:
                raise
    sweep_partial(store.path, COLUMNS)
    record_whereabouts(store, header)
    return refresh(store, survey, progress)


def estimate(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> BuildCost:
    """What `build` would do now; nothing is written."""
    header, store, survey = _found(dataset, model, request, progress)
    rows = request.part.of(range(len(survey.records)))
    encode, noise = len(rows), len(rows) * len(request.timesteps) * request.draws
    if store is not None:
        fresh = [row for row in rows if survey.keys[row] in (None, store.images.keys[row])]
        encode -= len(fresh) - len(missing_latents(store, fresh))
        for timestep in request.timesteps:
            noise -= len(fresh) * request.draws - len(missing_noisy(store, fresh, timestep, request.draws))
    row_bytes = math.prod(model.latent_shape(header.image_size)) * 2 + 4  # float16, and a checksum
    return BuildCost(len(rows), encode, noise, (encode + noise) * row_bytes, encode + noise)


def _found(
    dataset: Dataset, model: Model, request: BuildRequest, progress: Progress
) -> tuple[StoreHeader, Store | None, Survey]:
    """The header that is asked for, the store if there is one, and the images as they are now. Annotations of all
    splits are held against images that are new, before anything is made of these."""
    header = header_of(dataset, model, request)
    store = _open_same(request.path, header)
    survey = survey_images(dataset, progress)
    if store is not None:
        check_same_images(store, survey)
    if request.root is None or (store is not None and store.images.keys == survey.keys):
        return header, store, survey  # they are drawn in code, or were held against these images
    read = zip(survey.records, survey.sizes.tolist(), strict=True)
    sizes = {record.id: (width, height) for record, (width, height) in read if width and height}
    for split in dataset.splits:
        try:
            pairs = dataset.pairs(split)
        except (ImageError, UnmarkedError):  # encoding will say of the first; the second is no fault yet
            continue
        agreeing(dataset, pairs.among(sizes), sizes.__getitem__, progress.note)
    return header, store, survey


def _open_same(path: StoreLocation, header: StoreHeader) -> Store | None:
    """The store at `path` if there is one. Raises `StoreError` where it was made otherwise."""
    store = open_if_there(path)
    if store is not None:
        store.header.check_same(header, str(path))
    return store
