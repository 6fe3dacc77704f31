"""`cache verify --recompute`: rows are made anew from the images and compared with what is stored, the one check that
finds what every checksum agrees with: rows of other images, an edited header, weights or a driver that changed.

- Noisy latents need no network: every row is compared with the formula, from the stored latents.
- Of latents, maps and tokens a choice goes through the networks again, in a scratch store beside nobody's, by the code
  that made them: rows that something speaks against first (noisy latents that do not fit,
  `by_suspicion`), then a random choice, the same images for every array.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from featstore.backbones.base import Asked, Compute, NetworkName
from featstore.backbones.model_file import forget
from featstore.backbones.models import Model
from featstore.backbones.registry import TITLES
from featstore.datasets.records import Dataset
from featstore.errors import ImageError, ModelError
from featstore.pipeline.build import image_faults, survey_images
from featstore.pipeline.features import chunks
from featstore.pipeline.needed import find_backbones, model_of, require_maps
from featstore.pipeline.plan import MapRequest, Work, extractor_of, with_sources
from featstore.progress import Progress
from featstore.prompts.base import LearnedPrompts
from featstore.prompts.saved import prompts_of
from featstore.store import keys
from featstore.store.care import BadRow, Verification
from featstore.store.metadata import require_group
from featstore.store.rows import Row, RowArray
from featstore.store.store import Store, create_store

FEW = 4
"""Fewer rows may well all be wrong."""

BLOCK = 256
"""Rows that lie in the scratch store at once: 3 GB of the largest maps."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a row that is made anew may be from the stored one. relative: the difference's norm over the row's. cell:
    1 - cosine of a cell's descriptors."""

    relative: float
    cell: float


BOUNDS: Mapping[str, Bound] = {
    "float64": Bound(5e-3, 1e-3),
    "float32": Bound(5e-3, 1e-3),
    "float16": Bound(1e-2, 1e-2),
    "bfloat16": Bound(5e-2, 1e-2),
}
"""By the precision that maps and tokens were computed in. Measured on the demo, batches of 1 to 32 and 1 or 2 threads:
2e-5 and 3e-7 in float32; against float32, float16 is off by 5e-4 and 7e-7, bfloat16 by 5e-3 and 5e-5. The bounds are
far above, since a GPU may multiply with fewer bits (TF32: 1e-3) or in another order, and far below the
1 of another image's row."""

LATENTS_BOUND = Bound(1e-2, 0.0)
"""Latents do not say in which precision they were computed. Measured on the demo: 2e-5 in float32, 6e-4 in float16,
5e-3 in bfloat16; another draw of the posterior, or its mean, is off by 3e-2 to 5e-2."""

ROUNDED = Bound(2e-2, 2e-2)
"""What an encoding adds that rounds values, where two maps that differ in the last bit are rounded apart."""


@dataclass(frozen=True, slots=True)
class Compared:
    """An array of which `rows` were compared. relative, cell: the largest deviations, see `Bound`; None of latents,
    whose cells have no direction. skipped: why none was compared."""

    path: str
    rows: int
    relative: float
    cell: float | None
    bad: tuple[BadRow, ...]
    skipped: str = ""


@dataclass(frozen=True, slots=True)
class Recomputed:
    """images: those whose files, sizes or categories are not what the table of images says. unreadable: how many
    could not be read, whose rows are not compared."""

    arrays: tuple[Compared, ...]
    images: tuple[BadRow, ...]
    unreadable: int

    @property
    def nothing_fits(self) -> bool:
        """Whether no latents, or no noisy latents, came out as they are stored: then rather the header is wrong."""
        for kind in (keys.LATENTS, keys.NOISY):
            own = [one for one in self.arrays if one.path.split("/")[0] == kind]
            if sum(one.rows for one in own) >= FEW and all(len(one.bad) == one.rows for one in own):
                return True
        return False

    def added_to(self, found: Verification) -> Verification:
        """What was found, with the rows that came out otherwise among the damaged ones."""
        bad = {own.path: own.bad for own in self.arrays}
        arrays = (replace(own, bad=(*own.bad, *bad.get(own.path, ()))) for own in found.arrays)
        return replace(found, arrays=tuple(arrays))


def recompute(
    store: Store,
    dataset: Dataset,
    found: Verification,
    learned: Sequence[LearnedPrompts],
    count: int | None,
    seed: int,
    compute: Compute,
    progress: Progress,
) -> Recomputed:
    """Compare every noisy latent with the formula, and rows of each other array with what the model makes of the images
    now. The model's files are hashed anew.

    Args:
        store: The store, which is read only.
        dataset: What it was made from.
        found: The damage that is known already; such rows are not compared.
        learned: The prompts that maps may have been made with.
        count: Rows of each array; None for all.
        seed: Of their choice.
        compute: Device and batch size; each array's own precision is taken.
        progress: Told how far it is.

    Returns:
        What was compared, array by array, and what is wrong with the table of images.

    Raises:
        StoreError: Where the model is not the one that the store was made with, or the dataset has other images.
    """
    forget()
    model = model_of(store)
    survey = survey_images(dataset, progress)
    images = tuple(BadRow("images", (row,), store.images.ids[row], why) for row, why in image_faults(store, survey))
    readable = {record.id for record, key in zip(survey.records, survey.keys, strict=True) if key is not None}
    unreadable = {row for image, row in store.images.rows.items() if image not in readable}
    left_out = unreadable | store.images.gone | {bad.row[0] for bad in images}
    known = {(bad.array, bad.row) for bad in found.bad}
    paths = [own.path for own in found.arrays if own.path.split("/")[0] not in (keys.IMAGES, keys.GRIDS)]
    arrays = {path: array for path in paths if (array := store.array(path)) is not None}
    mixed = [array for path, array in arrays.items() if keys.leading_of(path) == 2]
    noisy = [_against_formula(store, array, known, progress) for array in mixed]

    order = np.random.default_rng(seed).permutation(len(store.images)).tolist()
    whole = {
        path: {row for (row,) in _whole(array, known)} - left_out
        for path, array in arrays.items()
        if keys.leading_of(path) == 1
    }
    there = whole.pop(keys.LATENTS, set())
    misfits = [{bad.row[0] for bad in own.bad} for own in noisy]
    unfit = there.intersection(*misfits) if misfits else set()
    chosen = {
        path: _choose(rows, _suspected(store, path, there & rows, count, progress), order, count)
        for path, rows in whole.items()
    }
    first = {row for rows in chosen.values() for row in rows} & there
    first |= {*_choose(there, sorted(unfit), order, count)}
    compared: list[Compared] = []
    with _scratch(store) as scratch:
        makers = _Makers(scratch, dataset, model, learned, compute, progress)
        (latents,) = _against_model(store, makers, {keys.LATENTS: sorted(first)})
        if any(bad.row[0] in unfit for bad in latents.bad):  # then any of those whose noise does not fit may be wrong
            (latents,) = _against_model(store, makers, {keys.LATENTS: sorted(first | unfit)})
        for group in dict.fromkeys(map(_group, chosen)):
            own = {path: sorted(rows) for path, rows in chosen.items() if _group(path) == group}
            compared += _against_model(store, makers, own)
    return Recomputed((latents, *noisy, *compared), images, len(unreadable))


def _whole(array: RowArray, known: Collection[tuple[str, Row]]) -> list[Row]:
    """The rows that are there and not known to be damaged."""
    present = map(tuple, np.argwhere(array.present()).tolist())
    return [row for row in present if (array.path, row) not in known]


def _against_formula(store: Store, array: RowArray, known: Collection[tuple[str, Row]], progress: Progress) -> Compared:
    """Every row of noisy latents."""
    timestep = keys.number_of(array.path)
    there = {*_whole(store.latents(), known)}
    rows = [(row, draw) for row, draw in _whole(array, known) if (row,) in there]
    progress.start(f"comparing {array.path} with the formula", len(rows), "latents")
    bad, largest, schedule = list[BadRow](), 0.0, store.header.schedule
    for (row, draw), kept, clean, drawn in with_sources(store, array.path, rows):
        made = schedule.mix(clean, drawn, timestep).astype(np.float16)
        if not schedule.has_mixed(kept, clean, drawn, timestep):
            differ = f"{int((kept != made).sum())} of {made.size} values differ"
            why = f"it is not its latents with its noise at t = {timestep}: {differ}"
            bad.append(BadRow(array.path, (row, draw), store.images.ids[row], why))
        largest = max(largest, _relative(kept, made))
        progress.advance()
    return Compared(array.path, len(rows), largest, None, tuple(bad))


def _suspected(store: Store, path: str, rows: Collection[int], count: int | None, progress: Progress) -> Sequence[int]:
    """Half as many rows of an array as are made anew: those that look most as if they were another image's."""
    array, latents = store.array(path), store.latents()
    if count is None or count >= len(rows) or array is None:
        return ()
    order = by_suspicion(sorted(rows), lambda row: latents.read((row,)), lambda row: array.read((row,)), progress)
    return order[: (count + 1) // 2]


def _choose(rows: Collection[int], first: Sequence[int], order: Sequence[int], count: int | None) -> list[int]:
    """`count` of some rows: `first`, then as `order` has them."""
    ordered = dict.fromkeys([*first, *(row for row in order if row in rows)])
    return list(ordered)[:count]


@contextmanager
def _scratch(store: Store) -> Iterator[Store]:
    """An empty store of the same images, which is gone with the block; extractors are described as they are."""
    with tempfile.TemporaryDirectory(prefix="dualsd-verify-") as folder:
        channels, height, width = store.latents().row_shape
        made = create_store(Path(folder) / "scratch.zarr", store.header, store.images, (channels, height, width))
        for path in {*map(_group, store.array_paths())}:
            if description := store.attributes(path):
                require_group(made.group, path, description)
        yield replace(made, images=store.images)  # whatever is gone in the store's own table


def _group(path: str) -> str:
    """What describes an array: an extractor's group, which its arrays share."""
    return "/".join(path.split("/")[:2]) if path.startswith(f"{keys.MAPS}/") else path.split("/")[0]


@dataclass(frozen=True, slots=True)
class _Makers:
    """What makes rows anew, in a scratch store."""

    store: Store
    dataset: Dataset
    model: Model
    learned: Sequence[LearnedPrompts]
    compute: Compute
    progress: Progress

    def make(self, paths: Sequence[str], rows: Sequence[int]) -> str:
        """Make what arrays of one group are to hold of some images: empty, or why none was made."""
        from featstore.pipeline.features import encode_images

        kind, *rest = paths[0].split("/")
        if kind == keys.LATENTS:
            encode_images(Work(self.store, self.dataset, self.compute, self.progress), self.model, rows)
            return ""
        if kind == keys.MAPS:
            return self._maps(paths, rows) if rest[1].startswith("layer") else self._other_maps(paths, rows)
        return self._patch_tokens(rows) if paths[0] == keys.PATCH_TOKENS else "what makes such rows is not known"

    def _maps(self, paths: Sequence[str], rows: Sequence[int]) -> str:
        """Of several arrays of one extractor, which share passes."""
        places = [path.split("/")[1:] for path in paths]
        unet = keys.Extractor.from_description(self.store.attributes(_group(paths[0])))
        prompts = None if unet is None else prompts_of(unet.prompt, self.learned)
        if unet is None or prompts is None:
            kind = "unknown" if unet is None else unet.prompt.get("kind")
            return f"no run here has the {kind} prompts that they were made with; such maps are made anew when needed"
        compute = replace(self.compute, dtype=getattr(torch, unet.dtype, self.compute.dtype))
        if extractor_of(self.store, prompts, unet.ensemble, compute, unet.encoding).key != places[0][0]:
            return "their extractor's description does not say all that they were made with"
        wanted = [(unquote(layer).removeprefix("layer"), keys.timestep_of(step)) for _, layer, step in places]
        request = MapRequest(prompts, unet.ensemble, compute, unet.encoding)
        require_maps(self.store, self.dataset, rows, wanted, request, self.progress)
        return ""

    def _other_maps(self, paths: Sequence[str], rows: Sequence[int]) -> str:
        """Of a backbone that sees images alone: the usual one, or the one of the name that they were made with."""
        layers = [unquote(path.split("/")[2]) for path in paths]
        extractor = keys.PixelExtractor.from_description(self.store.attributes(_group(paths[0])))
        if extractor is not None and extractor.dtype in BOUNDS:
            compute = replace(self.compute, dtype=getattr(torch, extractor.dtype))
            for name in (None, extractor.network.id):
                asked = {extractor.family: Asked(name, extractor.size, extractor.debias)}
                request = MapRequest(None, 1, compute, extractor.encoding, asked)
                try:
                    found = find_backbones(self.store, layers, request)[extractor.family]
                except ModelError:
                    continue
                if found.extractor.key == paths[0].split("/")[1]:
                    wanted = [(layer, None) for layer in layers]
                    require_maps(self.store, self.dataset, rows, wanted, request, self.progress)
                    return ""
        named = "network" if extractor is None else TITLES.get(extractor.family, extractor.family)
        return f"the {named} that they were made with is not at hand; such maps are made anew when needed"

    def _patch_tokens(self, rows: Sequence[int]) -> str:
        from featstore.pipeline.features import cache_patch_tokens

        made_by = self.store.attributes(keys.CONDITIONING)
        wanted = NetworkName(str(made_by.get("id")), str(made_by["fingerprint"])) if "fingerprint" in made_by else None
        dino = None if wanted is None else find_dino(self.model, wanted)
        if dino is None:
            return "the DINOv2 that they were made with is not at hand; `dualsd train --mode cpm` makes them anew"
        try:
            cache_patch_tokens(Work(self.store, self.dataset, self.compute, self.progress), *dino, rows)
        except ImageError as error:
            return str(error)
        return ""


def find_dino(model: Model, wanted: NetworkName) -> tuple[NetworkName, Path] | None:
    """The DINOv2 of that fingerprint, where it is at hand: the model's own, or the one of that name."""
    from featstore.backbones.dino import locate_dino

    for name in (None, wanted.id):
        try:
            found = locate_dino(name, model.location)
        except ModelError:
            continue
        if found[0].fingerprint == wanted.fingerprint:
            return found
    return None


def _against_model(store: Store, makers: _Makers, chosen: Mapping[str, Sequence[int]]) -> list[Compared]:
    """Some rows of arrays of one group, made anew in the makers' scratch store."""
    found = {path: list[tuple[int, float, float]]() for path in chosen}
    for block in chunks(sorted({row for rows in chosen.values() for row in rows}), BLOCK):
        why_not = makers.make([*chosen], block)
        if why_not:
            return [Compared(path, 0, 0.0, None, (), why_not) for path in chosen]
        for path, rows in chosen.items():
            found[path] += _deviations(store, makers.store, path, sorted({*rows} & {*block}))
    return [_judged(store, path, rows) for path, rows in found.items()]


def _deviations(store: Store, scratch: Store, path: str, rows: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    """How far rows are from those in the scratch store, as `Bound` has it, which are then taken away there."""
    kept, made = store.array(path), scratch.array(path)
    assert kept is not None, "its rows were listed"
    assert made is not None, "its rows were made just now"
    present = made.present()
    for row in (row for row in rows if present[row]):
        ours, theirs = kept.read((row,)), made.read((row,))
        apart = _relative(ours, theirs)
        yield row, apart, 0.0 if path == keys.LATENTS else _cell(ours, theirs)
        if path == keys.LATENTS and apart <= LATENTS_BOUND.relative:
            made.write((row,), ours)  # so that what is made of them is made of the same bits
    if path != keys.LATENTS:
        made.delete_rows([(int(row),) for row in np.flatnonzero(present)])


def _judged(store: Store, path: str, deviations: Sequence[tuple[int, float, float]]) -> Compared:
    """What came of an array's rows."""
    description = store.attributes(_group(path))
    # neither tokens nor latents say in which precision they were computed
    bound = LATENTS_BOUND if path == keys.LATENTS else BOUNDS.get(str(description.get("dtype")), BOUNDS["float16"])
    if "encoding" in description:
        bound = Bound(bound.relative + ROUNDED.relative, bound.cell + ROUNDED.cell)
    rounding = f"of its norm, where {bound.relative:.2g} is rounding"
    bad = [
        BadRow(path, (row,), store.images.ids[row], f"made anew it differs by {apart:.2g} {rounding}")
        for row, apart, turned in deviations
        if apart > bound.relative or turned > bound.cell
    ]
    largest, cell = (max((own[place] for own in deviations), default=0.0) for place in (1, 2))
    return Compared(path, len(deviations), largest, None if path == keys.LATENTS else cell, tuple(bad))


def _relative(kept: NDArray[Any], made: NDArray[Any]) -> float:
    ours, theirs = kept.astype(np.float32), made.astype(np.float32)
    return float(np.linalg.norm(ours - theirs)) / max(float(np.linalg.norm(theirs)), 1e-12)


def _cell(kept: NDArray[Any], made: NDArray[Any]) -> float:
    """The largest 1 - cosine of a cell of maps (C, h, w) or a token of (P, C); of cells that are next to nothing, whose
    direction is rounding, none."""
    axis = 0 if kept.ndim == 3 else 1
    ours, theirs = kept.astype(np.float32), made.astype(np.float32)
    norms = np.linalg.norm(ours, axis=axis) * np.linalg.norm(theirs, axis=axis)
    apart = 1 - (ours * theirs).sum(axis=axis) / np.maximum(norms, 1e-12)
    return float(apart[norms >= 1e-4 * norms.mean()].max(initial=0.0))


SIDE = 16
"""Cells a side to which latents and maps are averaged: enough to tell images apart, and little to keep of many."""

CHANNELS = 16
"""Random mixtures of a map's channels that are predicted."""

RIDGE = 1e-3
"""Keeps the fit finite where latents say the same twice, as a share of their mean square."""

Read = Callable[[int], NDArray[np.floating]]


def by_suspicion(rows: Sequence[int], latents: Read, maps: Read, progress: Progress) -> list[int]:
    """Image rows, those whose map fits their latents least first. latents: (c, h, w) of a row. maps: (C, h, w), or
    tokens (P, C) of square images of which the first may be the class token's."""
    if len(rows) < 3:  # nothing to fit
        return list(rows)
    progress.start("looking for rows of other images", len(rows), "rows")
    around, mixed = [], []
    mixture: Tensor | None = None
    for row in rows:
        found = _as_map(torch.from_numpy(np.asarray(maps(row), dtype=np.float32)))
        if mixture is None:
            mixture = torch.randn(CHANNELS, len(found), generator=torch.Generator().manual_seed(0)) / len(found) ** 0.5
        around.append(_around(torch.from_numpy(latents(row).astype(np.float32))))
        pooled = adaptive_avg_pool2d(found, SIDE)
        mixed.append(torch.einsum("kc,chw->khw", mixture, pooled).flatten(1).T)  # (SIDE * SIDE, CHANNELS)
        progress.advance()
    inputs, outputs = torch.cat(around), torch.cat(mixed)  # (images * SIDE * SIDE, features), (..., CHANNELS)
    outputs = (outputs - outputs.mean(0)) / (outputs.std(0) + 1e-12)
    square = inputs.T @ inputs
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    predicted = inputs @ torch.linalg.solve(square + ridge, inputs.T @ outputs)
    fits = _unit(predicted.reshape(len(rows), -1)) @ _unit(outputs.reshape(len(rows), -1)).T  # (latents of, maps of)
    own = fits.diagonal().clone()
    fits.fill_diagonal_(-torch.inf)
    # another image's latents that predict this map, or another image's map that these latents predict
    margin = own - torch.maximum(fits.max(0).values, fits.max(1).values)
    return [rows[index] for index in margin.argsort().tolist()]


def _as_map(values: Tensor) -> Tensor:
    """(C, h, w) of a map or of tokens."""
    if values.ndim == 3:
        return values
    side = int(len(values) ** 0.5)
    return values[len(values) - side * side :].T.unflatten(1, (side, side))


def _around(latents: Tensor) -> Tensor:
    """Of each cell its latents and its neighbours', their squares and a one: (SIDE * SIDE, features)."""
    cells = pad(adaptive_avg_pool2d(latents, SIDE)[None], (1, 1, 1, 1), mode="replicate")[0]
    near = torch.cat([cells[:, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]).flatten(1).T
    return torch.cat([near, near**2, torch.ones(len(near), 1)], dim=1)


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred / (centred.norm(dim=1, keepdim=True) + 1e-12)
