"""Make whatever is missing between the images and the maps that somebody asks for: latents and maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.backbones.base import Asked, LayerShape, MapKey
from featstore.backbones.locate import locate
from featstore.backbones.models import Model, open_model
from featstore.backbones.registry import is_diffusion, open_family, open_other, pixel_families, shapes_of
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, ModelError, StoreError
from featstore.pipeline.plan import (
    FoundBackbone,
    MapRequest,
    Work,
    check_noise,
    extractor_of,
    missing_latents,
    missing_maps,
    noisy_latents,
    plan_maps,
)
from featstore.progress import Progress, Silent
from featstore.prompts.base import Prompts
from featstore.store.keys import LATENTS, AdaptedExtractor, Extractor, PixelExtractor, map_path
from featstore.store.pack import unpack
from featstore.store.rows import row_bytes
from featstore.store.store import Store

if TYPE_CHECKING:
    from featstore.pipeline.features import MapStream


def make_latents(work: Work, rows: Sequence[int], model: Model | None = None) -> tuple[int, list[ImageError]]:
    """Encode those images of `rows` whose latents are not cached; no network is loaded where none is.

    Args:
        work: The store, and what it is filled from.
        rows: Of the images.
        model: The store's, where it is at hand already.

    Returns:
        How many images were encoded, and what was wrong with those that could not be read.

    Raises:
        ModelError: Where the model is out of reach.
        StoreError: Where the model at hand is not the store's, or an image has changed.
        DiskFullError: Where the disk fills up.
    """
    work.store.objects.sweep([LATENTS])
    if not missing_latents(work.store, rows):
        return 0, []
    # Only now: the model's libraries take longer to load than it takes to see that nothing is missing.
    from featstore.pipeline.features import encode_images

    return encode_images(work, model or model_of(work.store), rows)


@dataclass(frozen=True, slots=True)
class MadeMaps:
    """extractor: under whose name the UNet's maps lie, None where none were asked for. others: the same of other
    backbones, by family. shapes: of the layers that were made. encoded: images that went through the VAE.
    images_times_timesteps: that UNet passes were made for. passes: of other backbones, by family. bad: images that
    could not be read, whose maps are missing. adapted: under whose name what an adapter makes of all these lies, None
    where it is made when it is asked for."""

    extractor: Extractor | None = None
    others: Mapping[str, PixelExtractor] = field(default_factory=dict)
    shapes: tuple[LayerShape, ...] = ()
    encoded: int = 0
    images_times_timesteps: int = 0
    passes: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[ImageError, ...] = ()
    adapted: AdaptedExtractor | None = None


def require_maps(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    wanted: Iterable[MapKey],
    request: MapRequest,
    progress: Progress,
) -> MadeMaps:
    """Cache maps; what is cached already is left alone, and no network is looked for where nothing is missing.

    Args:
        store: where maps are kept.
        dataset: whose images the store is of.
        rows: of the images.
        wanted: (layer, timestep), the timestep None for layers of backbones that know no noise.
        request: how they are made.
        progress: is told what is done.

    Raises:
        ModelError: for an impossible layer or timestep, or a model out of reach.
        StoreError: where the model at hand is not the store's, or an image has changed.
        DiskFullError: where the disk fills up.
    """
    work, keys = Work(store, dataset, request.compute, progress), list(wanted)
    own = [key for key in keys if is_diffusion(key[0])]
    made = _require_other_maps(work, rows, [layer for layer, _ in keys], request)
    if not own:
        return made
    unet = _require_diffusion_maps(work, rows, own, request)
    bad = {error.image_id: error for error in (*unet.bad, *made.bad)}
    return replace(
        unet, others=made.others, shapes=(*unet.shapes, *made.shapes), passes=made.passes, bad=tuple(bad.values())
    )


def _require_diffusion_maps(work: Work, rows: Sequence[int], wanted: Sequence[MapKey], request: MapRequest) -> MadeMaps:
    store, prompt, ensemble = work.store, request.told, request.ensemble
    steps = {timestep for _, timestep in wanted if timestep is not None}
    check_noise(store, rows, steps)
    extractor = extractor_of(store, prompt, ensemble, work.compute, request.encoding)
    store.objects.sweep([map_path(extractor, *key) for key in wanted])
    parts = plan_maps(store, extractor, rows, wanted, prompt)
    if not parts:
        return MadeMaps(extractor)
    work.progress.wait("loading the model")
    # Only now: loading the model's libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.features import extract_maps

    model = model_of(store)
    encoded, bad = make_latents(work, sorted({row for part in parts for row in part.rows}), model)
    broken = {store.images.row(error.image_id) for error in bad}
    parts = [replace(part, rows=tuple(row for row in part.rows if row not in broken)) for part in parts]
    parts = [part for part in parts if part.rows]
    if not parts:
        return MadeMaps(extractor, encoded=encoded, bad=tuple(bad))
    work.progress.wait("loading the model")
    networks = model.load(work.compute, [layer for part in parts for layer, _ in part.keys])
    extract_maps(work, networks, extractor, prompt, parts)
    shapes = tuple(model.shape(layer, store.header.image_size) for layer, _ in wanted)
    images = sum(len(part.rows) for part in parts)
    return MadeMaps(extractor, {}, shapes, encoded, images, {}, tuple(bad))


def find_backbones(store: Store, layers: Sequence[str], request: MapRequest) -> dict[str, FoundBackbone]:
    """The backbones of those layers that are no diffusion model's, by family; no weights are loaded.

    Raises `ModelError` where one is out of reach, or cannot take images of the size asked for.
    """
    found = {}
    for family, own in pixel_families(layers).items():
        model = locate(store.header.model_id, store.header.model_revision)
        backbone, size = open_other(own[0], request.asked, model)
        shapes, debias = shapes_of(backbone, size, own), request.asked.get(family, Asked()).debias
        extractor = PixelExtractor(family, backbone.name, size, request.compute.dtype_name, request.encoding, debias)
        found[family] = FoundBackbone(extractor, backbone, shapes)
    return found


def _require_other_maps(work: Work, rows: Sequence[int], layers: Sequence[str], request: MapRequest) -> MadeMaps:
    """Maps of backbones that see images alone, mirrored where the image is. A store that has them all needs none of
    them at hand."""
    others: dict[str, PixelExtractor] = {}
    shapes: list[LayerShape] = []
    passes, bad = dict[str, int](), list[ImageError]()
    for family, own in pixel_families(layers).items():
        try:
            found = find_backbones(work.store, own, request)[family]
        except ModelError:
            kept = _kept(work.store, rows, family, own, request)
            if kept is None:
                raise
            others[family], passes[family] = kept, 0
            continue
        others[family] = found.extractor
        missing = missing_maps(work.store, found.extractor, rows, found.keys)
        failed = _make(work, missing, found) if missing else []
        passes[family] = len(missing) - len(failed)
        bad += failed
        if passes[family]:
            shapes += found.shapes.values()
    return MadeMaps(None, others, tuple(shapes), 0, 0, passes, tuple(bad))


def _make(work: Work, rows: Sequence[int], found: FoundBackbone) -> list[ImageError]:
    """Make and keep the maps of `rows`: what was wrong with those that could not be read."""
    work.progress.wait("loading the model")
    # Only now: loading the libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.features import keep, pixel_maps

    networks = found.backbone.load(work.compute, [*found.shapes])
    paths = [map_path(found.extractor, *key) for key in found.keys]
    unpack(work.store, paths, work.progress)
    work.store.objects.sweep(paths)
    bad: list[ImageError] = []
    work.progress.start(f"maps of {', '.join(found.shapes)}", len(rows), "images")
    keep(work.store, found.extractor, pixel_maps(found, networks, work, rows, bad))
    return bad


def _kept(
    store: Store, rows: Sequence[int], family: str, layers: Sequence[str], request: MapRequest
) -> PixelExtractor | None:
    """The one extractor in the store that fits what is asked for and has all of it; None where none does, or
    several."""
    asked, kept_as = request.asked.get(family, Asked()), (request.compute.dtype_name, request.encoding)
    if asked.name is None:
        ids = {*open_family(layers[0]).usual_ids(store.header.model_id)}
    else:
        ids = {asked.name, str(Path(asked.name).expanduser().resolve())}
    fitting = [
        extractor
        for extractor in store.pixel_extractors(family)
        if extractor.network.id in ids
        and asked.size in (None, extractor.size)
        and (extractor.dtype, extractor.encoding, extractor.debias) == (*kept_as, asked.debias)
        and not missing_maps(store, extractor, rows, [(layer, None) for layer in layers])
    ]
    return fitting[0] if len(fitting) == 1 else None


def open_stream(
    store: Store, dataset: Dataset, categories: Sequence[str], wanted: Sequence[MapKey], request: MapRequest
) -> "MapStream":
    """Load what making maps in memory takes. Raises `ModelError` and `StoreError` where the store's model is not at
    hand."""
    # Only now: loading the libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.features import MapStream, told_of

    own = tuple(key for key in wanted if is_diffusion(key[0]))
    noisy = noisy_latents(store, {timestep for _, timestep in own if timestep is not None})
    compute = request.compute
    networks = model_of(store).load(compute, [layer for layer, _ in own] or None)
    found = find_backbones(store, [layer for layer, _ in wanted], request)
    others = tuple((one, one.backbone.load(compute, [*one.shapes])) for one in found.values())
    told = told_of(store, networks, request.told, categories)
    return MapStream(Work(store, dataset, compute, Silent()), networks, noisy, told, own, others, request)


@dataclass(frozen=True, slots=True)
class MapsCost:
    """What making maps would take: images to encode (VAE passes), UNet passes, passes of other backbones by family,
    bytes and files to write."""

    encode: int
    passes: int
    bytes_to_write: int
    files_to_write: int
    others: Mapping[str, int] = field(default_factory=dict)


def estimate_maps(
    store: Store,
    rows: Sequence[int],
    wanted: Iterable[MapKey],
    extractor: Extractor,
    prompt: Prompts,
    found: Mapping[str, FoundBackbone] | None = None,
) -> MapsCost:
    """What `require_maps` would do now; nothing is written, and no model is looked for where nothing is missing. found:
    the other backbones (`find_backbones`) whose maps are made as well."""
    wanted = [key for key in wanted if is_diffusion(key[0])]
    store.header.schedule.check_timesteps(timestep for _, timestep in wanted if timestep is not None)
    others, size, files = dict[str, int](), 0, 0
    for family, one in (found or {}).items():
        others[family] = len(missing_maps(store, one.extractor, rows, one.keys))
        size += others[family] * sum(row_bytes(shape.map) for shape in one.shapes.values())
        files += others[family] * len(one.shapes)
    parts = plan_maps(store, extractor, rows, wanted, prompt)
    if not parts:
        return MapsCost(0, 0, size, files, others)
    model = model_of(store)
    encode = len(missing_latents(store, sorted({row for part in parts for row in part.rows})))
    for part in parts:
        shapes = [model.shape(layer, store.header.image_size).map for layer, _ in part.keys]
        size += len(part.rows) * sum(row_bytes(shape) for shape in shapes)
        files += len(part.rows) * len(shapes)
    size += encode * store.latents().row_bytes
    passes = sum(len(part.rows) for part in parts) * extractor.ensemble
    return MapsCost(encode, passes, size, encode + files, others)


def model_of(store: Store) -> Model:
    """The model that a store was made with, at hand. Raises `StoreError` where another lies in its place now."""
    model = open_model(store.header.model_id, store.header.model_revision, store.header.model_unet)
    if model.fingerprint != store.header.model_fingerprint:
        raise StoreError(
            f"{store.path} was made with {store.header.model_id} (fingerprint {store.header.model_fingerprint[:8]}), "
            f"but what lies there now has fingerprint {model.fingerprint[:8]}: rebuild the store, or restore the model."
        )
    made, now = (store.header.schedule, store.header.latent_shift), (model.schedule, model.latent_scale.shift)
    if made != now:
        ours, theirs = (f"{schedule.spell()}, latents shifted by {shift:g}" for schedule, shift in (made, now))
        raise StoreError(
            f"The header of {store.path} says {ours}, but its model {model.location.id} has {theirs}: restore the "
            "header, or build another --store."
        )
    return model
