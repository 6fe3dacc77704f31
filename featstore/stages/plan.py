"""What is missing of latents, noisy latents and maps. Loads no model library, as often nothing is missing."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from featstore.prompts.text import TextPrompt
from featstore.stages.compute import Compute
from featstore.store.keys import Extractor
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
class MapPlan:
    """The UNet passes that are still to be made: by timestep, the layers tapped and the image rows that lack any."""

    layers: Mapping[int, tuple[int, ...]]
    rows: Mapping[int, tuple[int, ...]]

    @property
    def images(self) -> int:
        """Images times timesteps that a UNet pass is made for (times the ensemble: passes)."""
        return sum(len(rows) for rows in self.rows.values())

    def without(self, rows: Collection[int]) -> "MapPlan":
        """The plan but for some image rows."""
        kept = {step: tuple(row for row in part if row not in rows) for step, part in self.rows.items()}
        return MapPlan(self.layers, {step: part for step, part in kept.items() if part})


def extractor_of(store: Store, prompt: TextPrompt, ensemble: int, compute: Compute) -> Extractor:
    """The extractor under whose name a store keeps such maps."""
    return Extractor(store.header.model_fingerprint, prompt.describe(), ensemble, compute.dtype_name, store.header.seed)


def plan_maps(store: Store, extractor: Extractor, rows: Sequence[int], wanted: Iterable[tuple[int, int]]) -> MapPlan:
    """What is missing of the maps (layer, timestep) in `wanted`, for the images of `rows`.

    Layers at one timestep share a pass, as their prompt is common to them.
    """
    layers: dict[int, tuple[int, ...]] = {}
    missing: dict[int, set[int]] = {}
    for layer, timestep in sorted(set(wanted), key=lambda pair: (pair[1], pair[0])):
        array = store.maps(extractor, layer, timestep)
        present = None if array is None else array.present()
        lacking = {row for row in rows if present is None or not present[row]}
        if lacking:
            layers[timestep] = (*layers.get(timestep, ()), layer)
            missing[timestep] = missing.get(timestep, set()) | lacking
    return MapPlan(layers, {timestep: tuple(sorted(found)) for timestep, found in missing.items()})
