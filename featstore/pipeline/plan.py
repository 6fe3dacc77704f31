"""What is missing of latents, noisy latents and maps. Loads no model library, as often nothing is missing."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featstore.backbones.base import Compute, DinoName
from featstore.backbones.dino import read_tokens_shape
from featstore.files import Needed
from featstore.prompts.base import Prompts
from featstore.store.keys import Extractor, Stored
from featstore.store.rows import Row
from featstore.store.store import Store


def missing_latents(store: Store, rows: Sequence[int]) -> list[int]:
    """Those of `rows` whose latents are not cached."""
    present = store.latents().present()
    return [row for row in rows if not present[row]]


def missing_noisy(store: Store, rows: Sequence[int], timestep: int, draws: int) -> list[Row]:
    """(image row, draw) of the noisy latents at `timestep` that are not cached, draws 0..draws-1."""
    wanted = [(row, draw) for row in rows for draw in range(draws)]
    array = store.noisy(timestep)
    if array is None:
        return [*wanted]
    present = array.present()
    return [(row, draw) for row, draw in wanted if draw >= present.shape[1] or not present[row, draw]]


@dataclass(frozen=True, slots=True)
class PlannedPasses:
    """UNet passes at a timestep that share a prompt: the layers tapped, and the image rows that lack any of them."""

    timestep: int
    layers: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MapPlan:
    """The UNet passes that are still to be made."""

    parts: tuple[PlannedPasses, ...]

    @property
    def images(self) -> int:
        """Images times timesteps (times layers, where their prompts differ) that a UNet pass is made for; times the
        ensemble: passes."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """The image rows of each timestep, sorted."""
        steps = {part.timestep for part in self.parts}
        return {
            step: tuple(sorted({row for part in self.parts if part.timestep == step for row in part.rows}))
            for step in sorted(steps)
        }

    def without(self, rows: Collection[int]) -> "MapPlan":
        """The plan but for some image rows."""
        kept = (replace(part, rows=tuple(row for row in part.rows if row not in rows)) for part in self.parts)
        return MapPlan(tuple(part for part in kept if part.rows))


def extractor_of(
    store: Store, prompt: Prompts, ensemble: int, compute: Compute, stored: Stored = Stored.FLOAT16
) -> Extractor:
    """The extractor under whose name a store keeps such maps."""
    header = store.header
    return Extractor(header.model_fingerprint, prompt.describe(), ensemble, compute.dtype_name, header.seed, stored)


def plan_maps(
    store: Store, extractor: Extractor, rows: Sequence[int], wanted: Iterable[tuple[int, int]], prompt: Prompts
) -> MapPlan:
    """What is missing of the maps (layer, timestep) in `wanted`, for the images of `rows`.

    Layers at one timestep share a pass where their prompt is common to them.
    """
    layers: dict[tuple[int, int | None], list[int]] = {}
    missing: dict[tuple[int, int | None], set[int]] = {}
    for layer, timestep in sorted(set(wanted), key=lambda pair: (pair[1], pair[0])):
        array = store.maps(extractor, layer, timestep)
        present = None if array is None else array.present()
        lacking = {row for row in rows if present is None or not present[row]}
        if lacking:
            key = timestep, layer if prompt.differ_by_layer else None
            layers.setdefault(key, []).append(layer)
            missing.setdefault(key, set()).update(lacking)
    return MapPlan(
        tuple(PlannedPasses(key[0], tuple(layers[key]), tuple(sorted(found))) for key, found in missing.items())
    )


def missing_inputs(
    store: Store,
    rows: Sequence[int],
    noisy: Sequence[tuple[Sequence[int], int, int]],
    dino: tuple[DinoName, Path] | None,
) -> Needed:
    """What is not written yet of the latents of `rows`, of `noisy` (image rows, timestep, draws), and of the tokens of
    `dino` (with its folder); None where no tokens are read."""
    places = {(step, place) for own, step, draws in noisy for place in missing_noisy(store, own, step, draws)}
    files = len(missing_latents(store, rows)) + len(places)
    size = files * store.latents().row_bytes
    if dino is not None:
        name, folder = dino
        array = store.patch_tokens(name)
        present = None if array is None else array.present()
        missing = sum(present is None or not present[row] for row in rows)
        files += missing
        # float16 and a checksum of 4 bytes a row
        size += missing * (math.prod(read_tokens_shape(folder)) * 2 + 4)
    return Needed(size, files, 2 + len(noisy))
