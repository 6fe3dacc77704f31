"""Make whatever is missing between the images and the maps that somebody asks for: latents, noisy latents, maps."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featstore.backbones.layers import check_layers
from featstore.backbones.model import Model, open_model
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, StoreError
from featstore.pipeline.compute import Compute
from featstore.pipeline.noisy import add_noise, check_noise
from featstore.pipeline.plan import extractor_of, missing_latents, missing_noisy, plan_maps
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import LATENTS, Extractor, Stored, map_path, noisy_path
from featstore.store.row_encoding import row_bytes
from featstore.store.store import Store
from featstore.store.sweep import folders_of, sweep_partial


@dataclass(frozen=True, slots=True)
class MadeMaps:
    """extractor: under whose name the maps lie. encoded: images that went through the VAE. images_times_timesteps: that
    UNet passes were made for. bad: images that could not be read, whose maps are missing."""

    extractor: Extractor
    encoded: int
    images_times_timesteps: int
    bad: tuple[ImageError, ...]


def require_maps(
    store: Store,
    dataset: Dataset,
    rows: Sequence[int],
    wanted: Iterable[tuple[int, int]],
    prompt: Prompts,
    ensemble: int,
    compute: Compute,
    progress: Progress,
    stored: Stored = Stored.FLOAT16,
) -> MadeMaps:
    """Cache the maps (layer, timestep) in `wanted` of the images of `rows`; what is cached already is left alone.

    No weights are loaded where nothing is missing, and no model is looked for. Raises `ModelError` for an impossible
    layer or timestep or a model out of reach, `StoreError` where the model at hand is not the store's, `DiskFullError`
    where the disk fills up.
    """
    pairs = list(wanted)
    check_layers([layer for layer, _ in pairs])
    check_noise(store, rows, [timestep for _, timestep in pairs])
    extractor = extractor_of(store, prompt, ensemble, compute, stored)
    steps = {timestep for _, timestep in pairs}
    arrays = [map_path(extractor, layer, timestep) for layer, timestep in pairs]
    sweep_partial(folders_of(store.path, [LATENTS, *map(noisy_path, steps), *arrays]))
    plan = plan_maps(store, extractor, rows, pairs, prompt)
    if not plan.parts:
        return MadeMaps(extractor, 0, 0, ())
    # Only now: loading the model's libraries takes longer than an evaluation from the cache.
    from featstore.pipeline.latents import encode_images
    from featstore.pipeline.maps import extract_maps

    model = model_of(store)
    lacking = sorted({row for part in plan.rows.values() for row in part})

    encoded, bad = encode_images(store, dataset, model.location, lacking, compute, progress)
    unreadable = {store.images.row(error.image_id) for error in bad}
    plan = plan.without(unreadable)
    for timestep, part in plan.rows.items():
        add_noise(store, part, [timestep], ensemble, progress)
    extract_maps(store, model.location, extractor, prompt, plan, compute, progress)
    return MadeMaps(extractor, encoded, plan.images, tuple(bad))


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
    """What making maps would take: images to encode (VAE passes), noisy latents to make, UNet passes, bytes and files
    to write."""

    encode: int
    noise: int
    passes: int
    bytes_to_write: int
    files_to_write: int


def estimate_maps(
    store: Store, rows: Sequence[int], wanted: Iterable[tuple[int, int]], extractor: Extractor, prompt: Prompts
) -> MapsCost:
    """What `require_maps` would do now; nothing is written, and no model is looked for where nothing is missing."""
    wanted = list(wanted)
    store.header.schedule.check_timesteps(timestep for _, timestep in wanted)
    plan = plan_maps(store, extractor, rows, wanted, prompt)
    if not plan.parts:
        return MapsCost(0, 0, 0, 0, 0)
    model = model_of(store)
    encode = len(missing_latents(store, sorted({row for part in plan.rows.values() for row in part})))
    noise = sum(len(missing_noisy(store, part, step, extractor.ensemble)) for step, part in plan.rows.items())
    made = {layer: 0 for part in plan.parts for layer in part.layers}
    for part in plan.parts:
        for layer in part.layers:
            made[layer] += len(part.rows)
    shapes = {layer: model.shape(layer, store.header.image_size) for layer in made}
    size = sum(
        count * row_bytes(extractor.stored.value, (shapes[layer].channels, shapes[layer].side, shapes[layer].side))
        for layer, count in made.items()
    )
    size += (encode + noise) * store.latents().row_bytes
    return MapsCost(encode, noise, plan.images * extractor.ensemble, size, encode + noise + sum(made.values()))


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
