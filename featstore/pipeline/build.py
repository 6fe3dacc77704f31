"""`cache build`: a store made or brought up to date, from a dataset and a model. Which images there are, and what their
bytes are now, is looked at first: the table of a new store, and what is stale in an old one."""

import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.base import Compute
from featstore.backbones.models import Model
from featstore.backbones.noise import Latents, known_checksums
from featstore.datasets.agreement import agreeing
from featstore.datasets.pictures import exif_orientation, image_key, original_size
from featstore.datasets.records import Dataset, ImageRecord
from featstore.datasets.registry import annotations_of
from featstore.errors import ImageError, StoreError, StoreExistsError, UnmarkedError
from featstore.pipeline.distributed import WHOLE, Part
from featstore.pipeline.needed import make_latents
from featstore.pipeline.pairs import copies
from featstore.pipeline.plan import Work, keep_noise, missing_latents, missing_noisy, noisy_latents
from featstore.progress import Progress
from featstore.store.images import Change, ImageEntry, ImageTable, table_of
from featstore.store.keys import StoreLocation
from featstore.store.rows import row_bytes
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, create_store, open_if_there, record_whereabouts, update_images
from matcher.configuration import Pad

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

    def entries(self, known: ImageTable | None = None) -> tuple[ImageEntry, ...]:
        """What a store of these images should say. An image that the disk does not give just now is not one that
        changed, and of a file that is no readable image just now the size is the one that is `known`."""
        found = []
        for record, key, (width, height) in zip(self.records, self.keys, self.sizes.tolist(), strict=True):
            row = None if known is None else known.rows.get(record.id)
            before = None if known is None or row is None else known.entry(row)
            entry = ImageEntry(record.id, record.category, key or UNREADABLE, (width, height))
            if before is not None and key in (None, before.key):
                entry = replace(entry, key=before.key, size=entry.size if width and key else before.size)
            found.append(entry)
        return tuple(found)


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
        if key not in (None, store.images.keys[row]):
            raise StoreError(
                f"The file of image {record.id!r} has changed since `cache build`: run `dualsd cache build` again."
            )
        if fault := _size_fault(store.images, row, size) or _category_fault(store.images, row, record):
            raise StoreError(
                f"Of image {record.id!r} in {store.path} {fault}: run `dualsd cache build`, which sets the table of "
                "images right."
            )
        progress.advance()


def image_faults(store: Store, survey: Survey) -> list[tuple[int, str]]:
    """What the table of images says otherwise than the dataset and its files, by row."""
    table = store.images
    found: list[tuple[int, str]] = []
    for record, key, size in zip(survey.records, survey.keys, survey.sizes.tolist(), strict=True):
        row = table.rows.get(record.id)
        if row is None:
            continue
        faults = [_size_fault(table, row, tuple(size)), _category_fault(table, row, record)]
        if key not in (None, table.keys[row]):
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


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to cache. image_size: S in pixels, None for what the model was trained for. draws: of noise a timestep.
    part: of the images whose latents are made. pad: how images become squares."""

    path: StoreLocation
    root: Path | None
    image_size: int | None
    latents: Latents
    seed: int
    timesteps: tuple[int, ...]
    draws: int
    part: Part = WHOLE
    durable: bool = True
    pad: Pad = Pad.STRETCH


@dataclass(frozen=True, slots=True)
class BuildReport:
    """images: in the part asked for. encoded: went through the VAE in this run. skipped: had their latents already.
    new: of the dataset, were not in the store or are back. stale: had changed since they were encoded. gone: are no
    longer in the dataset. noised: noisy latents made. bytes_written: of rows. bad: could not be read."""

    images: int
    encoded: int
    skipped: int
    new: int
    stale: int
    gone: tuple[str, ...]
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
    model.latent_shape(size)
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
        model_unet=None if model.clean is None else model.clean.path,
        model_structure=model.structure,
        dataset_annotations=annotations_of(dataset),
        pad=request.pad,
        checks=known_checksums(),
    )


def build(
    dataset: Dataset, model: Model, request: BuildRequest, compute: Compute, skip_bad: bool, progress: Progress
) -> BuildReport:
    """Make or complete a store: latents of every image of the part, and noisy latents at the request's timesteps.

    A second run does only what is missing. Images that are new in the dataset, or whose bytes changed, are encoded, and
    those that are no longer there are gone from the store. Several parts, or one several times, may run at once,
    whether the store is there or not.

    Raises `StoreError` where the store was made otherwise; the first broken image's `ImageError` unless `skip_bad`,
    after everything else was done.
    """
    start = time.monotonic()
    store, changes = open_or_create(dataset, model, request, progress)
    rows = request.part.of([*store.images.rows.values()])
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
        new=changes.new,
        stale=changes.stale,
        gone=changes.gone,
        noised=noised,
        bytes_written=(encoded + noised) * store.latents().row_bytes,
        seconds=time.monotonic() - start,
        bad=tuple(bad),
    )


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of a store's images: how many are new or back, and changed; ids of those that are gone."""

    new: int = 0
    stale: int = 0
    gone: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: ImageTable, now: ImageTable) -> "Changes":
        """Of two tables of one store."""
        stale = sum(now.rows.get(image, row) != row for image, row in before.rows.items())
        gone = tuple(image for image in before.rows if image not in now.rows)
        return cls(sum(image not in before.rows for image in now.rows), stale, gone)


def together(reports: Sequence[BuildReport]) -> BuildReport:
    """What all parts did. Each saw the dataset change; the one that was first wrote it down."""
    counts = ("images", "encoded", "skipped", "noised", "bytes_written")
    return BuildReport(
        **{name: sum(getattr(report, name) for report in reports) for name in counts},
        new=max(report.new for report in reports),
        stale=max(report.stale for report in reports),
        gone=max((report.gone for report in reports), key=len),
        seconds=max(report.seconds for report in reports),
        bad=tuple(error for report in reports for error in report.bad),
    )


def open_or_create(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> tuple[Store, Changes]:
    """The store of a request, made with no latents yet where there is none, with the images that the dataset has now;
    and what became of those that it had. Of several processes that find none, one makes it and the others take that
    one. Raises `StoreError` where it was made otherwise."""
    header, store, survey = _found(dataset, model, request, progress)
    if store is None:
        images = table_of([Change(survey.entries())])
        try:
            shape = model.latent_shape(header.image_size)
            return create_store(request.path, header, images, shape, request.durable), Changes()
        except StoreExistsError:
            store = _open_same(request, header)
            if store is None:
                raise
    record_whereabouts(store, header)
    resized = [
        entry.id
        for entry in survey.entries(store.images)
        if (row := store.images.rows.get(entry.id)) is not None
        and entry.key == store.images.keys[row]
        and entry.size != store.images.entry(row).size
    ]
    if resized:
        progress.note(
            f"Of {len(resized)} image(s), e.g. {resized[0]}, the table of images said another size than the file has; "
            "it is set right."
        )
    now = update_images(store, survey.entries(store.images), progress)
    return now, Changes.between(store.images, now.images)


def estimate(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> BuildCost:
    """What `build` would do now; nothing is written."""
    header, store, survey = _found(dataset, model, request, progress)
    images = request.part.of(range(len(survey.records)))
    encode, noise = len(images), len(images) * len(request.timesteps) * request.draws
    if store is not None:
        known = {store.images.entry(row).identity: row for row in range(len(store.images))}
        entries = survey.entries(store.images)
        rows = [row for image in images if (row := known.get(entries[image].identity)) is not None]
        encode -= len(rows) - len(missing_latents(store, rows))
        for timestep in request.timesteps:
            noise -= len(rows) * request.draws - len(missing_noisy(store, rows, timestep, request.draws))
    size = row_bytes(model.latent_shape(header.image_size))
    return BuildCost(len(images), encode, noise, (encode + noise) * size, encode + noise)


def _found(
    dataset: Dataset, model: Model, request: BuildRequest, progress: Progress
) -> tuple[StoreHeader, Store | None, Survey]:
    """The header that is asked for, the store if there is one, and the images as they are now. Annotations of all
    splits are held against images that are new, before anything is made of these."""
    header = header_of(dataset, model, request)
    store = _open_same(request, header)
    survey = survey_images(dataset, progress)
    if store is not None and not any(record.id in store.images.rows for record in survey.records):
        raise StoreError(
            f"{store.path} was made from other images: none of its {len(store.images.rows)} is in {dataset.name} now; "
            "name its --root, or another --store."
        )
    known = None if store is None else store.images.known_keys
    if request.root is None or known == {one.id: key for one, key in zip(survey.records, survey.keys, strict=True)}:
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


def _open_same(request: BuildRequest, header: StoreHeader) -> Store | None:
    """The store of a request if there is one. Raises `StoreError` where it was made otherwise."""
    store = open_if_there(request.path, request.durable)
    if store is not None:
        store.header.check_same(header, str(request.path))
    return store
