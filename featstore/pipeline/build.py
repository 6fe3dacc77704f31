"""`cache build`: a store made or brought up to date, from a dataset and a model."""

import glob
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featstore.backbones.base import Compute
from featstore.backbones.noise import Latents
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.agreement import agreeing
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, StoreExistsError, UnmarkedError
from featstore.files import sweep_making, sweep_partial
from featstore.pipeline.distributed import WHOLE, Part
from featstore.pipeline.images import Survey, check_same_images, refresh, survey_images
from featstore.pipeline.noisy import add_noise, check_noise
from featstore.pipeline.plan import missing_latents, missing_noisy
from featstore.progress import Progress
from featstore.store.keys import LATENTS, StoreLocation, noisy_path
from featstore.store.schema import COLUMNS, StoreHeader
from featstore.store.store import Store, create_store, open_if_there, record_whereabouts


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
    encoded, noised, bad = _complete(store, dataset, rows, model, request, compute, progress)
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
    return BuildReport(
        images=sum(report.images for report in reports),
        encoded=sum(report.encoded for report in reports),
        skipped=sum(report.skipped for report in reports),
        stale=sum(report.stale for report in reports),  # one of them forgot the rows
        noised=sum(report.noised for report in reports),
        bytes_written=sum(report.bytes_written for report in reports),
        seconds=max(report.seconds for report in reports),
        bad=tuple(error for report in reports for error in report.bad),
    )


def open_or_create(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> tuple[Store, int]:
    """The store of a request, made with no latents yet where there is none: (the store, how many of its images had
    changed, whose rows are forgotten). Of several processes that find none, one makes it and the others take that one.
    Raises `StoreError` where it was made otherwise."""
    header = header_of(dataset, model, request)
    store = _open_same(request.path, header)
    survey = survey_images(dataset, progress)
    if isinstance(request.path, Path):  # on object storage nothing is made beside its place
        sweep_making(request.path.parent, glob.escape(request.path.name))
    if store is not None:
        check_same_images(store, survey)
    _check_annotations(dataset, request, store, survey, progress)
    if store is None:
        side = model.latent_side(header.image_size)
        try:
            return create_store(request.path, header, survey.table(), (model.latent_channels, side, side)), 0
        except StoreExistsError:
            store = _open_same(request.path, header)
            if store is None:
                raise
    sweep_partial(store.path, [*COLUMNS, LATENTS, *map(noisy_path, request.timesteps)])
    record_whereabouts(store, header)
    return refresh(store, survey, progress)


def estimate(dataset: Dataset, model: Model, request: BuildRequest, progress: Progress) -> BuildCost:
    """What `build` would do now; nothing is written."""
    header = header_of(dataset, model, request)
    store = _open_same(request.path, header)
    survey = survey_images(dataset, progress)
    side = model.latent_side(header.image_size)
    rows = request.part.of(range(len(survey.records)))
    encode, noise = len(rows), len(rows) * len(request.timesteps) * request.draws
    if store is not None:
        check_same_images(store, survey)
        fresh = [row for row in rows if survey.keys[row] in (None, store.images.keys[row])]
        encode -= len(fresh) - len(missing_latents(store, fresh))
        for timestep in request.timesteps:
            noise -= len(fresh) * request.draws - len(missing_noisy(store, fresh, timestep, request.draws))
    _check_annotations(dataset, request, store, survey, progress)
    return BuildCost(len(rows), encode, noise, (encode + noise) * _row_bytes(model, side), encode + noise)


def _check_annotations(
    dataset: Dataset, request: BuildRequest, store: Store | None, survey: Survey, progress: Progress
) -> None:
    """Hold the annotations of all splits against images that are new, before anything is made of these."""
    if request.root is None or (store is not None and store.images.keys == survey.keys):
        return  # they are drawn in code, or were held against these images
    read = zip(survey.records, survey.sizes.tolist(), strict=True)
    sizes = {record.id: (width, height) for record, (width, height) in read if width and height}
    for split in dataset.splits:
        try:
            pairs = dataset.pairs(split)
        except (ImageError, UnmarkedError):  # encoding will say of the first; the second is no fault yet
            continue
        readable = [pair for pair in pairs if pair.source in sizes and pair.target in sizes]
        agreeing(dataset, readable, sizes.__getitem__, progress.note)


def _complete(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    model: Model,
    request: BuildRequest,
    compute: Compute,
    progress: Progress,
) -> tuple[int, int, list[ImageError]]:
    """Make what is missing of `rows`: (images encoded, noisy latents made, images that could not be read)."""
    check_noise(store, rows, request.timesteps)
    lacks_noise = any(missing_noisy(store, rows, timestep, request.draws) for timestep in request.timesteps)
    if not missing_latents(store, rows) and not lacks_noise:
        return 0, 0, []
    # Only now: the model's libraries take longer to load than it takes to see that nothing is missing.
    from featstore.pipeline.latents import encode_images

    encoded, bad = encode_images(store, dataset, model.location, rows, compute, progress)
    broken = {store.images.row(error.image_id) for error in bad}
    good = [row for row in rows if row not in broken]
    return encoded, add_noise(store, good, request.timesteps, request.draws, progress), bad


def _row_bytes(model: Model, side: int) -> int:
    """Of latents, clean or noisy, in a file: float16 and a checksum of 4 bytes."""
    return model.latent_channels * side * side * 2 + 4


def _open_same(path: StoreLocation, header: StoreHeader) -> Store | None:
    """The store at `path` if there is one. Raises `StoreError` where it was made otherwise."""
    store = open_if_there(path)
    if store is not None:
        store.header.check_same(header, str(path))
    return store
