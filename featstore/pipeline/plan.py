"""What a store lacks of latents, noisy latents and maps; and noise, which is added to the cached latents at each
timestep where it is needed or kept, and held against the store's betas. No network is run, and no model library is
loaded."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.base import Asked, Backbone, Compute, LayerShape, MapKey
from featstore.backbones.noise import noise
from featstore.datasets.records import Dataset
from featstore.errors import StoreError
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.care import BadRow, Verification
from featstore.store.keys import (
    LATENTS,
    MAPS,
    NOISY,
    RAW,
    AnyExtractor,
    Extractor,
    PixelExtractor,
    noisy_path,
    number_of,
)
from featstore.store.pack import unpack
from featstore.store.rows import REQUESTS, Row, RowArray, row_writer
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from matcher.maps import read_ahead


@dataclass(frozen=True, slots=True)
class Work:
    """What rows of a store are made of and with: its images in the data set, where networks run, and who is told."""

    store: Store
    dataset: Dataset
    compute: Compute
    progress: Progress


def missing_rows(array: RowArray | None, rows: Sequence[int]) -> list[int]:
    """Those of `rows` that an array of one row per image lacks."""
    if array is None:
        return [*rows]
    present = array.present()
    return [row for row in rows if not present[row]]


def missing_latents(store: Store, rows: Sequence[int]) -> list[int]:
    """Those of `rows` whose latents are not cached."""
    return missing_rows(store.latents(), rows)


def missing_noisy(store: Store, rows: Sequence[int], timestep: int, draws: int) -> list[Row]:
    """(image row, draw) of the noisy latents at `timestep` that are not cached, draws 0..draws-1."""
    array = store.noisy(timestep)
    present = np.zeros((len(store.images), 0), dtype=np.bool_) if array is None else array.present()
    wanted = ((row, draw) for row in rows for draw in range(draws))
    return [(row, draw) for row, draw in wanted if draw >= present.shape[1] or not present[row, draw]]


def missing_maps(store: Store, extractor: AnyExtractor, rows: Sequence[int], keys: Iterable[MapKey]) -> list[int]:
    """Those of `rows` that lack one of the maps (layer, timestep), sorted."""
    return sorted({row for key in keys for row in missing_rows(store.maps(extractor, *key), rows)})


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PlannedPasses(Generic[Item]):
    """Passes at a timestep that share a prompt. keys: (layer, timestep) of the maps that are taken. rows: what they are
    made of, images that lack any of those maps."""

    keys: tuple[MapKey, ...]
    rows: tuple[Item, ...]

    @property
    def timestep(self) -> int | None:
        """The one of all keys; None of latents without noise."""
        return self.keys[0][1]


def sharing_a_pass(wanted: Iterable[MapKey], differ_by_layer: bool) -> list[tuple[MapKey, ...]]:
    """Maps in groups that one pass makes: those at one timestep, where their prompt is common to them."""
    groups: dict[tuple[int, str | None], list[MapKey]] = {}
    for layer, timestep in sorted(set(wanted), key=lambda key: (key[1] or 0, key[0])):
        groups.setdefault((timestep or 0, layer if differ_by_layer else None), []).append((layer, timestep))
    return [tuple(keys) for keys in groups.values()]


@dataclass(frozen=True, slots=True)
class MapRequest:
    """How maps are made. prompt: what the UNet is told, None where none of its layers is asked for. ensemble: noise
    draws that are averaged. stored: the precision that maps are kept in. asked: which other backbones, by family, where
    not the usual ones."""

    prompt: Prompts | None
    ensemble: int
    compute: Compute
    encoding: str = RAW
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def told(self) -> Prompts:
        """The prompt, where layers of the UNet are asked for."""
        assert self.prompt is not None, "the UNet's layers have a prompt"
        return self.prompt


@dataclass(frozen=True, slots=True)
class FoundBackbone:
    """A backbone of images alone, at hand. extractor: under whose name its maps lie. shapes: of the layers wanted."""

    extractor: PixelExtractor
    backbone: Backbone
    shapes: Mapping[str, LayerShape]

    @property
    def keys(self) -> list[MapKey]:
        """Of the layers' maps, which have no timestep."""
        return [(layer, None) for layer in self.shapes]


def extractor_of(store: Store, prompt: Prompts, ensemble: int, compute: Compute, encoding: str = RAW) -> Extractor:
    """The extractor under whose name a store keeps such maps."""
    header = store.header
    return Extractor(header.model_fingerprint, prompt.describe(), ensemble, compute.dtype_name, header.seed, encoding)


def plan_maps(
    store: Store, extractor: Extractor, rows: Sequence[int], wanted: Iterable[MapKey], prompt: Prompts
) -> list[PlannedPasses[int]]:
    """The passes that the maps (layer, timestep) in `wanted` are still to be made with, of the images of `rows`."""
    missing = {key: lacking for key in wanted if (lacking := missing_rows(store.maps(extractor, *key), rows))}
    return [
        PlannedPasses(keys, tuple(sorted({row for key in keys for row in missing[key]})))
        for keys in sharing_a_pass(missing, prompt.differ_by_layer)
    ]


Noisy = Callable[[Item, int | None, Sequence[int]], NDArray[Any]]
"""The noisy latents (draws, c, h, w) of an item at a timestep, of some draws; without noise where that is None. May be
called in any thread."""


def noisy_latents(store: Store, timesteps: Iterable[int | None]) -> Noisy[int]:
    """What hands out noisy latents of image rows whose latents are cached, as `cache build` keeps them, float16: read
    where they were there when this was called, else derived, which is bit for bit the same. Nothing is written.

    Args:
        store: Whose images they are of.
        timesteps: For which it is asked.

    Raises:
        StoreError: Where those that are there are not noise by the store's betas.
        ModelError: For a timestep that the model does not have.
    """
    steps = [step for step in timesteps if step is not None]
    check_noise(store, (), steps)
    latents = store.latents()
    kept = {step: (array, array.present()) for step in steps if (array := store.noisy(step)) is not None}

    def load(row: int, timestep: int | None, draws: Sequence[int]) -> NDArray[np.float16]:
        if timestep is None:
            return latents.read((row,))[None]
        clean = cache(lambda: latents.read((row,)).astype(np.float32))

        def of_draw(draw: int) -> NDArray[np.float16]:
            if timestep in kept:
                array, present = kept[timestep]
                if draw < present.shape[1] and present[row, draw]:
                    return array.read((row, draw))
            return noisy_latent(store, clean(), row, timestep, draw).astype(STORED_DTYPE)

        return np.stack([*map(of_draw, draws)])

    return load


def noisy_latent(store: Store, clean: NDArray[np.float32], row: int, timestep: int, draw: int) -> NDArray[np.float32]:
    """One draw of an image's noisy latents, (c, h, w), of its clean ones. The noise depends on (seed, image key,
    timestep, draw) alone."""
    drawn = noise(store.header.seed, store.images.keys[row], timestep, draw, clean.shape)
    return store.header.schedule.mix(clean, drawn, timestep)


def keep_noise(work: Work, noisy: Noisy[int], rows: Sequence[int], timesteps: Sequence[int], draws: int) -> int:
    """Keep what `noisy_latents` hands out of images whose latents are cached, draws 0..draws-1: how many were made."""
    store, progress = work.store, work.progress
    store.objects.sweep(map(noisy_path, timesteps))
    wanted = {step: missing for step in timesteps if (missing := missing_noisy(store, rows, step, draws))}
    total = sum(map(len, wanted.values()))
    if total == 0:
        return 0
    unpack(store, [*map(noisy_path, wanted)], progress)
    progress.start("adding noise", total, "latents")
    arrays = {step: store.require_noisy(step, draws) for step in wanted}
    places = [
        (row, step, [draw for _, draw in own])
        for step, missing in wanted.items()
        for row, own in groupby(missing, itemgetter(0))
    ]
    with row_writer() as write:
        for (row, step, own), made in read_ahead(places, lambda place: noisy(*place), REQUESTS):
            for draw, values in zip(own, made, strict=True):
                write(arrays[step], (row, draw), values)
                progress.advance()
    return total


def check_noise(store: Store, rows: Sequence[int], timesteps: Iterable[int]) -> None:
    """Raise `StoreError` where a store's noisy latents are not those of its betas: one row of each timestep is looked
    at, of the images of `rows` where there is one.

    A dualsd before this one called the scheduler class that the model's folder names, and most samplers' noise is not
    that which the model was trained on. What it made would be taken for what is made today. Raises `ModelError` for a
    timestep that the model does not have.
    """
    steps = sorted(set(timesteps))
    store.header.schedule.check_timesteps(steps)
    wrong = [
        step
        for step in steps
        for _, kept, clean, drawn in with_sources(store, noisy_path(step), _row_of(store, rows, step))
        if not store.header.schedule.has_mixed(kept, clean, drawn, step)
    ]
    if wrong:
        raise StoreError(
            f"The noisy latents of {store.path} at t = {', '.join(map(str, wrong))} are not noise by its betas "
            f"({store.header.schedule.spell()}): run `dualsd cache verify --drop --store {store.path}`, which deletes "
            "them and their maps, and says how they are made again."
        )


def with_sources(
    store: Store, path: str, places: Sequence[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], NDArray[np.float16], NDArray[np.float32], NDArray[np.float32]]]:
    """Cached noisy latents of an array, read ahead: (image row, draw), the row, the latents and the noise that it is to
    be the mixture of. Latents are read once for the draws of an image, which stand together in `places`."""
    if not places:  # nor are there latents, perhaps
        return
    array, latents, timestep = store.array(path), store.latents(), number_of(path)
    assert array is not None, "its rows were listed"
    clean, of = np.empty(0, np.float32), -1
    for (row, draw), kept in read_ahead(places, array.read, REQUESTS):
        if row != of:
            clean, of = latents.read((row,)).astype(np.float32), row
        yield (row, draw), kept, clean, noise(store.header.seed, store.images.keys[row], timestep, draw, clean.shape)


def _row_of(store: Store, rows: Sequence[int], timestep: int) -> list[tuple[int, int]]:
    """(image row, draw) of noisy latents that are cached, and whose latents are, if there is one; damaged ones are told
    where they are used."""
    array, latents = store.noisy(timestep), store.latents()
    if array is None:
        return []
    present = array.present() & latents.present()[:, None]
    asked = np.zeros_like(present)
    asked[list(rows)] = True
    for chosen in (asked, ~asked):
        for row, draw in np.argwhere(present & chosen).tolist():
            if array.damage((row, draw)) is None and latents.damage((row,)) is None:
                return [(row, draw)]
    return []


def with_noise_checked(store: Store, found: Verification, progress: Progress) -> Verification:
    """What `verify` found, and all noisy latents that are whole but not noise by the store's betas, with what else is
    wrong then: the UNet's maps that were made from them, and latents that none of their noisy latents fits."""
    damaged = {(bad.array, bad.row) for bad in found.bad}
    checked = {array.path for array in found.arrays}
    places: dict[str, list[tuple[int, int]]] = {}
    latents = store.latents().present() if LATENTS in checked else np.zeros(len(store.images), dtype=np.bool_)
    for path in sorted(path for path in checked if path.startswith(f"{NOISY}/")):
        array = store.array(path)
        assert array is not None, "its rows were read"
        places[path] = [
            (row, draw)
            for row, draw in np.argwhere(array.present() & latents[:, None]).tolist()
            if (path, (row, draw)) not in damaged and (LATENTS, (row,)) not in damaged
        ]
    progress.start("checking noise", sum(map(len, places.values())), "rows")
    wrong: list[BadRow] = []
    suspects, fitting = set[int](), set[int]()
    for path, rows in places.items():
        bad, fits = set[int](), set[int]()
        for (row, draw), kept, clean, drawn in with_sources(store, path, rows):
            if store.header.schedule.has_mixed(kept, clean, drawn, number_of(path)):
                fits.add(row)
            else:
                bad.add(row)
                wrong.append(_bad(store, path, (row, draw), "it is not noise by the store's betas"))
            progress.advance()
        # Where others fit, the schedule is right; an image that then fits nowhere is more likely wrong itself.
        suspects |= bad if fits else set()
        fitting |= fits
    why = "none of its noisy latents is made of it"
    wrong += [_bad(store, LATENTS, (row,), why) for row in sorted(suspects - fitting)]
    return with_maps_made_of(store, _with(found, wrong), wrong)


def with_maps_made_of(store: Store, found: Verification, wrong: Sequence[BadRow]) -> Verification:
    """What was found, and the UNet's maps of images and timesteps whose noisy latents are `wrong`."""
    damaged = {(bad.array, bad.row) for bad in found.bad}
    images: dict[int, set[int]] = defaultdict(set)
    for bad in wrong:
        if bad.array.startswith(f"{NOISY}/"):
            images[number_of(bad.array)].add(bad.row[0])
    made: list[BadRow] = []
    why = "it was made from noise that is not by the store's betas"
    for path in (one.path for one in found.arrays if one.path.startswith(f"{MAPS}/")):
        of_wrong = images.get(number_of(path), set())
        array = store.array(path) if of_wrong else None
        if array is not None:
            rows = sorted(of_wrong.intersection(np.flatnonzero(array.present()).tolist()))
            made += [_bad(store, path, (row,), why) for row in rows if (path, (row,)) not in damaged]
    return _with(found, made)


def _with(found: Verification, wrong: Sequence[BadRow]) -> Verification:
    arrays = (replace(one, bad=(*one.bad, *(bad for bad in wrong if bad.array == one.path))) for one in found.arrays)
    return replace(found, arrays=tuple(arrays))


def _bad(store: Store, path: str, row: tuple[int, ...], why: str) -> BadRow:
    return BadRow(path, row, store.images.ids[row[0]], why)
