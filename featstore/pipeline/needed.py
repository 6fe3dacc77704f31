"""Make whatever is missing between the images and the maps that somebody asks for: latents, noisy latents, maps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featstore.backbones.base import Asked, Backbone, Compute, LayerShape, MapKey
from featstore.backbones.locate import locate
from featstore.backbones.registry import is_diffusion, open_family, pixel_families
from featstore.backbones.stable_diffusion import Model, open_model
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, ModelError, StoreError
from featstore.files import sweep_partial
from featstore.pipeline.noisy import add_noise, check_noise
from featstore.pipeline.plan import MapRequest, extractor_of, missing_latents, missing_maps, missing_noisy, plan_maps
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import LATENTS, Extractor, PixelExtractor, map_path, noisy_path
from featstore.store.pack import unpack
from featstore.store.row_file import row_bytes
from featstore.store.store import Store


@dataclass(frozen=True, slots=True)
class MadeMaps:
    """extractor: under whose name the UNet's maps lie, None where none were asked for. others: the same of other
    backbones, by family. shapes: of the layers that were made. encoded: images that went through the VAE.
    images_times_timesteps: that UNet passes were made for. passes: of other backbones, by family. bad: images that
    could not be read, whose maps are missing."""

    extractor: Extractor | None
    others: Mapping[str, PixelExtractor]
    shapes: tuple[LayerShape, ...]
    encoded: int
    images_times_timesteps: int
    passes: Mapping[str, int]
    bad: tuple[ImageError, ...]


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
    keys = list(wanted)
    own = [key for key in keys if is_diffusion(key[0])]
    other = [layer for layer, _ in keys if not is_diffusion(layer)]
    made = _require_other_maps(store, dataset, rows, other, request, progress)
    if not own:
        return made
    unet = _require_diffusion_maps(store, dataset, rows, own, request, progress)
    bad = {error.image_id: error for error in (*unet.bad, *made.bad)}
    return replace(
        unet, others=made.others, shapes=(*unet.shapes, *made.shapes), passes=made.passes, bad=tuple(bad.values())
    )


def _require_diffusion_maps(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    wanted: Sequence[MapKey],
    request: MapRequest,
    progress: Progress,
) -> MadeMaps:
    prompt, ensemble, compute = request.told, request.ensemble, request.compute
    steps = {timestep for _, timestep in wanted if timestep is not None}
    check_noise(store, rows, steps)
    extractor = extractor_of(store, prompt, ensemble, compute, request.stored)
    arrays = [map_path(extractor, *key) for key in wanted]
    sweep_partial(store.path, [LATENTS, *map(noisy_path, steps), *arrays])
    plan = plan_maps(store, extractor, rows, wanted, prompt)
    if not plan.parts:
        return MadeMaps(extractor, {}, (), 0, 0, {}, ())
    # Only now: loading the model's libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.features import extract_maps
    from featstore.pipeline.latents import encode_images

    model = model_of(store)
    lacking = sorted({row for part in plan.rows.values() for row in part})

    encoded, bad = encode_images(store, dataset, model.location, lacking, compute, progress)
    unreadable = {store.images.row(error.image_id) for error in bad}
    plan = plan.without(unreadable)
    for timestep, part in plan.rows.items():
        add_noise(store, part, [timestep], ensemble, progress)
    networks = model.load(compute, [layer for part in plan.parts for layer in part.layers] or ["1"])
    extract_maps(store, networks, extractor, prompt, plan, compute, progress)
    shapes = tuple(model.shape(layer, store.header.image_size) for layer, _ in wanted) if plan.images else ()
    return MadeMaps(extractor, {}, shapes, encoded, plan.images, {}, tuple(bad))


@dataclass(frozen=True, slots=True)
class FoundBackbone:
    """A backbone of images alone, at hand. extractor: under whose name its maps lie. shapes: of the layers wanted."""

    extractor: PixelExtractor
    backbone: Backbone
    shapes: Mapping[str, LayerShape]


def find_backbones(store: Store, layers: Sequence[str], request: MapRequest) -> dict[str, FoundBackbone]:
    """The backbones of those layers that are no diffusion model's, by family; no weights are loaded.

    Raises `ModelError` where one is out of reach, or cannot take images of the size asked for.
    """
    found = {}
    for family, own in pixel_families(layers).items():
        wanted = request.asked.get(family, Asked())
        model = locate(store.header.model_id, store.header.model_revision)
        backbone = open_family(own[0]).open_backbone(wanted, model)
        size = backbone.image_size if wanted.size is None else wanted.size
        shapes = backbone.layers(size)
        extractor = PixelExtractor(family, backbone.name, size, request.compute.dtype_name, request.stored)
        found[family] = FoundBackbone(extractor, backbone, {layer: shapes[layer] for layer in own})
    return found


def _require_other_maps(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    layers: Sequence[str],
    request: MapRequest,
    progress: Progress,
) -> MadeMaps:
    """Maps of backbones that see images alone, mirrored where the image is. A store that has them all needs none of
    them at hand."""
    others: dict[str, PixelExtractor] = {}
    shapes: list[LayerShape] = []
    passes, bad = dict[str, int](), dict[str, ImageError]()
    for family, own in pixel_families(layers).items():
        try:
            found = find_backbones(store, own, request)[family]
        except ModelError:
            kept = _kept(store, rows, family, own, request)
            if kept is None:
                raise
            others[family], passes[family] = kept, 0
            continue
        others[family] = found.extractor
        missing = _lacking(store, found, rows)
        failed = _make(store, dataset, missing, found, request.compute, progress) if missing else []
        passes[family] = len(missing) - len(failed)
        bad |= {error.image_id: error for error in failed}
        if passes[family]:
            shapes += found.shapes.values()
    return MadeMaps(None, others, tuple(shapes), 0, 0, passes, tuple(bad.values()))


def _lacking(store: Store, found: FoundBackbone, rows: Sequence[int]) -> list[int]:
    """Those of `rows` that lack a map of a layer."""
    missing = [missing_maps(store, found.extractor, rows, (layer, None)) for layer in found.shapes]
    return sorted(set[int]().union(*missing))


def _make(
    store: Store, dataset: Dataset, rows: Sequence[int], found: FoundBackbone, compute: Compute, progress: Progress
) -> list[ImageError]:
    """Make and keep the maps of `rows`: what was wrong with those that could not be read."""
    # Only now: loading the libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.features import keep, pixel_batches, pixel_maps

    extractor, layers = found.extractor, [*found.shapes]
    networks = found.backbone.load(compute, layers)
    paths = [map_path(extractor, layer, None) for layer in layers]
    unpack(store, paths, progress)
    sweep_partial(store.path, paths)
    bad: list[ImageError] = []

    progress.start(f"maps of {', '.join(layers)}", len(rows), "images")
    batches = pixel_batches(store, dataset, rows, extractor.size, compute.batch_size, bad, progress)
    keep(store, extractor, pixel_maps(networks, layers, batches, compute, progress))
    return bad


def _row_bytes(found: FoundBackbone) -> int:
    """Of all layers' maps of one image."""
    return sum(row_bytes(found.extractor.stored.value, shape.map) for shape in found.shapes.values())


def _kept(
    store: Store,
    rows: Sequence[int],
    family: str,
    layers: Sequence[str],
    request: MapRequest,
) -> PixelExtractor | None:
    """The one extractor in the store that fits what is asked for and has all of it; None where none does, or
    several."""
    asked, kept_as = request.asked.get(family, Asked()), (request.compute.dtype_name, request.stored)
    if asked.name is None:
        ids = {*open_family(layers[0]).usual_ids(store.header.model_id)}
    else:
        ids = {asked.name, str(Path(asked.name).expanduser().resolve())}
    fitting = [
        extractor
        for extractor in store.pixel_extractors(family)
        if extractor.network.id in ids
        and asked.size in (None, extractor.size)
        and (extractor.dtype, extractor.stored) == kept_as
        and not any(missing_maps(store, extractor, rows, (layer, None)) for layer in layers)
    ]
    return fitting[0] if len(fitting) == 1 else None


def make_latents(
    store: Store, dataset: Dataset, rows: Sequence[int], compute: Compute, progress: Progress
) -> tuple[ImageError, ...]:
    """Encode those images of `rows` whose latents are not cached; returns those that could not be read."""
    if not missing_latents(store, rows):
        return ()
    from featstore.pipeline.latents import encode_images

    return tuple(encode_images(store, dataset, model_of(store).location, rows, compute, progress)[1])


@dataclass(frozen=True, slots=True)
class MapsCost:
    """What making maps would take: images to encode (VAE passes), noisy latents to make, UNet passes, passes of other
    backbones by family, bytes and files to write."""

    encode: int
    noise: int
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
    others = {family: len(_lacking(store, one, rows)) for family, one in (found or {}).items()}
    size = sum(others[family] * _row_bytes(one) for family, one in (found or {}).items())
    files = sum(others[family] * len(one.shapes) for family, one in (found or {}).items())
    plan = plan_maps(store, extractor, rows, wanted, prompt)
    if not plan.parts:
        return MapsCost(0, 0, 0, size, files, others)
    model = model_of(store)
    encode = len(missing_latents(store, sorted({row for part in plan.rows.values() for row in part})))
    noise = sum(len(missing_noisy(store, part, step, extractor.ensemble)) for step, part in plan.rows.items())
    for part in plan.parts:
        for layer in part.layers:
            shape = model.shape(layer, store.header.image_size).map
            size += len(part.rows) * row_bytes(extractor.stored.value, shape)
            files += len(part.rows)
    size += (encode + noise) * store.latents().row_bytes
    passes = plan.images * extractor.ensemble
    return MapsCost(encode, noise, passes, size, encode + noise + files, others)


def model_of(store: Store) -> Model:
    """The model that a store was made with, at hand. Raises `StoreError` where another lies in its place now."""
    model = open_model(store.header.model_id, store.header.model_revision)
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
