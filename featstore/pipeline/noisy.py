"""Stage 1, second half: noise is added to the cached latents at each timestep, and kept. No network is run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.noise import noise
from featstore.errors import StoreError
from featstore.pipeline.plan import missing_noisy
from featstore.progress import Progress
from featstore.store.care import BadRow, Verification
from featstore.store.keys import LATENTS, MAPS, NOISY, noisy_path
from featstore.store.pack import unpack
from featstore.store.rows import reads_ahead, row_writer
from featstore.store.store import Store
from matcher.maps import read_ahead


def add_noise(
    store: Store,
    rows: Sequence[int],
    timesteps: Sequence[int],
    draws: int,
    progress: Progress,
) -> int:
    """Noisy latents of the images of `rows` at each timestep, `draws` draws each: how many were made.

    The noise of a draw depends on (seed, image key, timestep, draw) alone. Latents of `rows` must be cached. Raises
    `StoreError` where those that are there are others.
    """
    check_noise(store, rows, timesteps)
    missing = {step: part for step in timesteps if (part := missing_noisy(store, rows, step, draws))}
    total = sum(len(part) for part in missing.values())
    if total == 0:
        return 0
    unpack(store, [noisy_path(timestep) for timestep in missing], progress)
    latents = store.latents()
    progress.start("adding noise", total, "latents")
    with row_writer(store.path) as write:
        for timestep, part in missing.items():
            array = store.require_noisy(timestep, draws)
            wanted: dict[int, list[int]] = {}
            for row, draw in part:
                wanted.setdefault(row, []).append(draw)
            for row, stored in read_ahead(wanted, lambda row: latents.read((row,)), reads_ahead(store.path)):
                clean = stored.astype(np.float32)
                for draw in wanted[row]:
                    write(array, (row, draw), noisy_latent(store, clean, row, timestep, draw))
                    progress.advance()
    return total


def noisy_latent(store: Store, clean: NDArray[np.float32], row: int, timestep: int, draw: int) -> NDArray[np.float32]:
    """One draw of an image's noisy latents, (4, h, w), of its clean ones."""
    drawn = noise(store.header.seed, store.images.keys[row], timestep, draw, clean.shape)
    return store.header.schedule.mix(clean, drawn, timestep)


def check_noise(store: Store, rows: Sequence[int], timesteps: Iterable[int]) -> None:
    """Raise `StoreError` where a store's noisy latents are not those of its betas: one row of each timestep is looked
    at, of the images of `rows` where there is one.

    A dualsd before this one called the scheduler class that the model's folder names, and most samplers' noise is not
    that which the model was trained on. What it made would be taken for what is made today. Raises `ModelError` for a
    timestep that the model does not have.
    """
    steps = sorted(set(timesteps))
    store.header.schedule.check_timesteps(steps)
    places = {step: found for step in steps if (found := _row_of(store, rows, step))}
    mixed = store.header.schedule.has_mixed
    wrong = [
        step
        for step, place in places.items()
        for _, kept, clean, drawn in with_sources(store, noisy_path(step), [place])
        if not mixed(kept, clean, drawn, step)
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
    array, latents, timestep = store.array(path), store.latents(), _timestep(path)
    assert array is not None, "its rows were listed"
    clean, of = np.empty(0, np.float32), -1
    for (row, draw), kept in read_ahead(places, array.read, reads_ahead(store.path)):
        if row != of:
            clean, of = latents.read((row,)).astype(np.float32), row
        yield (row, draw), kept, clean, noise(store.header.seed, store.images.keys[row], timestep, draw, clean.shape)


def _timestep(path: str) -> int:
    return int(path.rpartition("/t")[2])


def _row_of(store: Store, rows: Sequence[int], timestep: int) -> tuple[int, int] | None:
    """(image row, draw) of noisy latents that are cached, and whose latents are; damaged ones are told where they are
    used."""
    array, latents = store.noisy(timestep), store.latents()
    if array is None:
        return None
    present = array.present() & latents.present()[:, None]
    asked = np.zeros_like(present)
    asked[list(rows)] = True
    places = [(row, draw) for chosen in (asked, ~asked) for row, draw in np.argwhere(present & chosen).tolist()]
    whole = (place for place in places if array.damage(place) is None and latents.damage(place[:1]) is None)
    return next(whole, None)


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
    fitting = {path: set[int]() for path in places}
    for path, rows in places.items():
        for (row, draw), kept, clean, drawn in with_sources(store, path, rows):
            if store.header.schedule.has_mixed(kept, clean, drawn, _timestep(path)):
                fitting[path].add(row)
            else:
                wrong.append(_bad(store, path, (row, draw), "it is not noise by the store's betas"))
            progress.advance()
    # Where others fit, the schedule is right; an image that then fits nowhere is more likely wrong itself.
    fits_somewhere = set[int]().union(*fitting.values())
    asked = {bad.row[0] for bad in wrong if fitting[bad.array]}
    wrong += [
        _bad(store, LATENTS, (row,), "none of its noisy latents is made of it")
        for row in sorted(asked - fits_somewhere)
    ]
    return with_maps_made_of(store, _with(found, wrong), wrong)


def with_maps_made_of(store: Store, found: Verification, wrong: Sequence[BadRow]) -> Verification:
    """What was found, and the UNet's maps of images and timesteps whose noisy latents are `wrong`."""
    damaged = {(bad.array, bad.row) for bad in found.bad}
    images: dict[str, set[int]] = {}
    for bad in wrong:
        if bad.array.startswith(f"{NOISY}/"):
            images.setdefault(bad.array.removeprefix(NOISY), set()).add(bad.row[0])
    made: list[BadRow] = []
    for path in (one.path for one in found.arrays if one.path.startswith(f"{MAPS}/")):
        of_wrong = images.get(f"/{path.rpartition('/')[2]}", set())
        array = store.array(path) if of_wrong else None
        if array is not None:
            rows = sorted(of_wrong.intersection(np.flatnonzero(array.present()).tolist()))
            made += [
                _bad(store, path, (row,), "it was made from noise that is not by the store's betas")
                for row in rows
                if (path, (row,)) not in damaged
            ]
    return _with(found, made)


def _with(found: Verification, wrong: Sequence[BadRow]) -> Verification:
    by_array: dict[str, list[BadRow]] = {}
    for bad in wrong:
        by_array.setdefault(bad.array, []).append(bad)
    return replace(
        found, arrays=tuple(replace(one, bad=(*one.bad, *by_array.get(one.path, ()))) for one in found.arrays)
    )


def _bad(store: Store, path: str, row: tuple[int, ...], why: str) -> BadRow:
    return BadRow(path, row, store.images.ids[row[0]], why)
