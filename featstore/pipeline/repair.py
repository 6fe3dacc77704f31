"""`cache verify --repair`: what is damaged is deleted and made anew, each row from what it was made from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from featstore.backbones.base import Asked, Compute, NetworkName
from featstore.backbones.locate import is_at_hand
from featstore.backbones.stable_diffusion import Model
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, ModelError
from featstore.pipeline.needed import find_backbones, model_of, require_maps
from featstore.pipeline.plan import MapRequest, extractor_of
from featstore.progress import Progress
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import prompts_of
from featstore.store.keys import CONDITIONING, LATENTS, MAPS, NOISY, PATCH_TOKENS, Extractor, PixelExtractor, Stored
from featstore.store.ledger import GRIDS
from featstore.store.schema import STORED_DTYPE
from featstore.store.store import Store
from featstore.store.verify import (
    BadRow,
    Expected,
    Verification,
    check_arrays,
    drop_metadata,
    drop_rows,
    restore_metadata,
    sweep,
    unknown,
)
from matcher.errors import InputError


@dataclass(frozen=True, slots=True)
class Repaired:
    """made: how many rows were made anew, by array. given_up: a sentence on each thing that could only be deleted. bad:
    images that cannot be read, whose rows are missing now."""

    made: Mapping[str, int]
    given_up: tuple[str, ...]
    bad: tuple[ImageError, ...]


def repair(
    store: Store,
    dataset: Dataset,
    found: Verification,
    learned: Sequence[LearnedPrompts],
    compute: Compute,
    progress: Progress,
) -> Repaired:
    """Delete what was `found` damaged and make it anew. learned: the prompts of runs that maps may have been made with.

    Latents first, then noisy latents, then maps, which are computed in the precision that they were. Rows come out as
    they were where the batch size is the same. Raises what making them raises: `ModelError` for a model out of reach,
    `StoreError` for an image whose file has changed.
    """
    model = model_of(store)
    given_up: list[str] = []
    restored: list[str] = []
    for damaged in found.metadata:
        expected = rows_of_model(store, model, damaged.path) if damaged.is_array else None
        if expected is None:
            given_up.append(drop_metadata(store, damaged))
        elif restore_metadata(store, damaged, *expected):
            restored.append(damaged.path)
        else:
            given_up.append(f"{damaged.path} was removed: how much it held is not known; it is made anew when needed")
    arrays = [array for path in restored if (array := store.array(path)) is not None]
    rows = [*found.bad, *(row for array in check_arrays(store, arrays, progress) for row in array.bad)]
    drop_rows(store, rows, progress)
    sweep(store)
    images: dict[str, list[int]] = {}
    for row in rows:
        images.setdefault(row.array, []).append(row.row[0])
    makers = Makers(store, dataset, model, learned, compute, progress)
    made: dict[str, int] = {}
    bad: dict[str, ImageError] = {}
    for path in sorted(images, key=_order):
        own = sorted(set(images[path]))
        outcome = makers.make(path, own)
        if isinstance(outcome, str):
            given_up.append(f"{len(images[path])} damaged row(s) of {path} were deleted: {outcome}")
            continue
        bad |= {error.image_id: error for error in outcome}
        made[path] = _count(store, [row for row in rows if row.array == path])
    return Repaired(made, tuple(given_up), tuple(bad.values()))


@dataclass(frozen=True, slots=True)
class Makers:
    """What makes rows anew, in the store that they belong to or in one like it."""

    store: Store
    dataset: Dataset
    model: Model
    learned: Sequence[LearnedPrompts]
    compute: Compute
    progress: Progress

    def make(self, path: str, rows: Sequence[int]) -> Sequence[ImageError] | str:
        """Make what is missing of some images in an array: the images that cannot be read, or why none was made."""
        kind = path.split("/")[0]
        if kind == LATENTS:
            return self._latents(rows)
        if kind == NOISY:
            return self._noisy(path, rows)
        if kind == MAPS:
            return self.maps([path], rows)
        if path == PATCH_TOKENS:
            return self._patch_tokens(rows)
        if kind == GRIDS:
            return "the grid that was stopped scores those images anew when it goes on"
        return "what makes such rows is not known"

    def _latents(self, rows: Sequence[int]) -> list[ImageError]:
        from featstore.pipeline.latents import encode_images

        return encode_images(self.store, self.dataset, self.model.location, rows, self.compute, self.progress)[1]

    def _noisy(self, path: str, rows: Sequence[int]) -> list[ImageError]:
        from featstore.pipeline.noisy import add_noise

        array = self.store.array(path)
        assert array is not None, "its rows were read"
        bad = self._latents(rows)
        unreadable = {self.store.images.row(error.image_id) for error in bad}
        good = [row for row in rows if row not in unreadable]
        timestep, draws = int(path.rpartition("/t")[2]), array.rows_shape[1]
        add_noise(self.store, good, [timestep], draws, self.progress)
        return bad

    def maps(self, paths: Sequence[str], rows: Sequence[int]) -> Sequence[ImageError] | str:
        """The same for several arrays of one extractor, which share passes."""
        places = [path.split("/")[1:] for path in paths]
        key = places[0][0]
        if places[0][2] == "patches":
            return self._other_maps(key, [layer for _, layer, _ in places], rows)
        description = self.store.attributes(f"{MAPS}/{key}")
        prompt = description.get("prompt")
        prompts = prompts_of(prompt, self.learned) if isinstance(prompt, Mapping) else None
        if prompts is None:
            kind = prompt.get("kind") if isinstance(prompt, Mapping) else "unknown"
            return f"no run here has the {kind} prompts that they were made with; such maps are made anew when needed"
        dtype = getattr(torch, str(description.get("dtype")), None)
        compute = replace(self.compute, dtype=dtype) if isinstance(dtype, torch.dtype) else self.compute
        ensemble = int(description.get("ensemble", 1))
        stored = Stored(description.get("stored", Stored.FLOAT16.value))
        if extractor_of(self.store, prompts, ensemble, compute, stored).key != key:
            return "their extractor's description does not say all that they were made with"
        wanted = [(layer.removeprefix("layer"), int(step.removeprefix("t"))) for _, layer, step in places]
        request = MapRequest(prompts, ensemble, compute, stored)
        made = require_maps(self.store, self.dataset, rows, wanted, request, self.progress)
        return made.bad

    def _other_maps(self, key: str, layers: Sequence[str], rows: Sequence[int]) -> Sequence[ImageError] | str:
        extractor = PixelExtractor.from_description(self.store.attributes(f"{MAPS}/{key}"))
        dtype = None if extractor is None else getattr(torch, extractor.dtype, None)
        if extractor is not None and isinstance(dtype, torch.dtype):
            compute = replace(self.compute, dtype=dtype)
            for name in (None, extractor.network.id):  # the usual one, or the one of that name
                asked = {extractor.family: Asked(name, extractor.size)}
                request = MapRequest(None, 1, compute, extractor.stored, asked)
                try:
                    found = find_backbones(self.store, layers, request)
                except ModelError:
                    continue
                if found[extractor.family].extractor.key == key:
                    wanted = [(layer, None) for layer in layers]
                    return require_maps(self.store, self.dataset, rows, wanted, request, self.progress).bad
        named = "DINOv2" if extractor is None or extractor.family == "dino" else extractor.family
        return f"the {named} that they were made with is not at hand; such maps are made anew when needed"

    def _patch_tokens(self, rows: Sequence[int]) -> Sequence[ImageError] | str:
        from featstore.pipeline.latents import cache_patch_tokens

        dino = find_dino(self.model, _maker_of_tokens(self.store))
        if dino is None:
            return "the DINOv2 that they were made with is not at hand; `dualsd train --mode cpm` makes them anew"
        known = {record.id for record in self.dataset.images()}
        gone = [image for row in rows if (image := self.store.images.ids[row]) not in known]
        if gone:
            return [ImageError(image, f"The image {image!r} is no longer in the dataset.") for image in gone]
        try:
            cache_patch_tokens(self.store, self.dataset, *dino, rows, self.compute, self.progress)
        except ImageError as error:
            return [error]
        return []


def find_dino(model: Model, wanted: NetworkName | None) -> tuple[NetworkName, Path] | None:
    """The DINOv2 of that fingerprint, where it is at hand: the model's own, or the one of that name."""
    from featstore.backbones.dino import locate_dino

    if wanted is None:
        return None
    for name in (None, wanted.id):
        try:
            found = locate_dino(name, model.location)
        except ModelError:
            continue
        if found[0].fingerprint == wanted.fingerprint:
            return found
    return None


def _maker_of_tokens(store: Store) -> NetworkName | None:
    made_by = store.attributes(CONDITIONING)
    return NetworkName(str(made_by.get("id")), str(made_by["fingerprint"])) if "fingerprint" in made_by else None


def rows_at_hand(store: Store, progress: Progress) -> Expected:
    """`rows_of_model`, where the store's model lies on this machine; nothing is downloaded for it."""
    try:
        model = model_of(store) if is_at_hand(store.header.model_id, store.header.model_revision) else None
        why = "is not on this machine"
    except InputError as error:
        model, why = None, f"cannot be used ({error})"
    if model is None:
        progress.note(
            f"The model {store.header.model_id} {why}: shapes of rows are not held against it, only against each other."
        )
        return unknown
    found = model
    return lambda path: rows_of_model(store, found, path)


def rows_of_model(store: Store, model: Model, path: str) -> tuple[tuple[int, ...], str] | None:
    """The shape of an array's rows and how they lie on the disk, as header and model make them; None where that cannot
    be told. No weights are loaded."""
    kind, *rest = path.split("/")
    size = store.header.image_size
    if kind in (LATENTS, NOISY):
        side = model.latent_side(size)
        return (model.latent_channels, side, side), STORED_DTYPE
    named = re.fullmatch(r"layer([1-4])", rest[1]) if kind == MAPS else None
    if named is None:  # of a DINOv2 that nobody has named here, or hits of a grid
        return None
    extractor = Extractor.from_description(store.attributes(f"{MAPS}/{rest[0]}"))
    shape = model.shape(int(named[1]), size)
    stored = Stored.FLOAT16 if extractor is None else extractor.stored
    return (shape.channels, shape.side, shape.side), stored.value


def _order(path: str) -> tuple[int, str]:
    """Latents before what is made from them."""
    kind = path.split("/")[0]
    return ([LATENTS, NOISY].index(kind) if kind in (LATENTS, NOISY) else 2), path


def _count(store: Store, rows: Sequence[BadRow]) -> int:
    """How many of some rows are there now."""
    array = store.array(rows[0].array)
    present = None if array is None else array.present()
    return 0 if present is None else sum(bool(present[row.row]) for row in rows)
