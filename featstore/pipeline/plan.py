"""What is missing of latents, noisy latents and maps. Loads no model library, as often nothing is missing."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from featstore.backbones.base import Asked, Compute, MapKey
from featstore.prompts.base import Prompts
from featstore.store.keys import AnyExtractor, Extractor, Stored
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


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PlannedPasses(Generic[Item]):
    """Passes at a timestep that share a prompt: the layers tapped, and what they are made of, rows of images that lack
    any of them."""

    timestep: int | None
    layers: tuple[str, ...]
    rows: tuple[Item, ...]


def sharing_a_pass(wanted: Iterable[MapKey], differ_by_layer: bool) -> list[tuple[MapKey, ...]]:
    """Maps in groups that one pass makes: those at one timestep, where their prompt is common to them."""
    groups: dict[tuple[int, str | None], list[MapKey]] = {}
    for layer, timestep in sorted(set(wanted), key=lambda key: (key[1] or 0, key[0])):
        groups.setdefault((timestep or 0, layer if differ_by_layer else None), []).append((layer, timestep))
    return [tuple(keys) for keys in groups.values()]


@dataclass(frozen=True, slots=True)
class MapPlan:
    """The passes of a diffusion model that are still to be made."""

    parts: tuple[PlannedPasses[int], ...]

    @property
    def images(self) -> int:
        """Images times timesteps (times layers, where their prompts differ) that a UNet pass is made for; times the
        ensemble: passes."""
        return sum(len(part.rows) for part in self.parts)

    @property
    def rows(self) -> dict[int, tuple[int, ...]]:
        """The image rows of each timestep, sorted."""
        steps = {part.timestep for part in self.parts if part.timestep is not None}
        return {
            step: tuple(sorted({row for part in self.parts if part.timestep == step for row in part.rows}))
            for step in sorted(steps)
        }

    def without(self, rows: Collection[int]) -> "MapPlan":
        """The plan but for some image rows."""
        kept = (replace(part, rows=tuple(row for row in part.rows if row not in rows)) for part in self.parts)
        return MapPlan(tuple(part for part in kept if part.rows))


@dataclass(frozen=True, slots=True)
class MapRequest:
    """How maps are made. prompt: what the UNet is told, None where none of its layers is asked for. ensemble: noise
    draws that are averaged. stored: the precision that maps are kept in. asked: which other backbones, by family, where
    not the usual ones."""

    prompt: Prompts | None
    ensemble: int
    compute: Compute
    stored: Stored = Stored.FLOAT16
    asked: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def told(self) -> Prompts:
        """The prompt, where layers of the UNet are asked for."""
        assert self.prompt is not None, "the UNet's layers have a prompt"
        return self.prompt


def extractor_of(
    store: Store, prompt: Prompts, ensemble: int, compute: Compute, stored: Stored = Stored.FLOAT16
) -> Extractor:
    """The extractor under whose name a store keeps such maps."""
    header = store.header
    return Extractor(header.model_fingerprint, prompt.describe(), ensemble, compute.dtype_name, header.seed, stored)


def missing_maps(store: Store, extractor: AnyExtractor, rows: Sequence[int], key: MapKey) -> set[int]:
    """Those of `rows` whose maps (layer, timestep) are not cached."""
    array = store.maps(extractor, *key)
    present = None if array is None else array.present()
    return {row for row in rows if present is None or not present[row]}


def plan_maps(
    store: Store, extractor: Extractor, rows: Sequence[int], wanted: Iterable[MapKey], prompt: Prompts
) -> MapPlan:
    """What is missing of the maps (layer, timestep) in `wanted`, for the images of `rows`."""
    missing = {key: lacking for key in wanted if (lacking := missing_maps(store, extractor, rows, key))}
    return MapPlan(
        tuple(
            PlannedPasses(
                keys[0][1],
                tuple(layer for layer, _ in keys),
                tuple(sorted(set[int]().union(*(missing[key] for key in keys)))),
            )
            for keys in sharing_a_pass(missing, prompt.differ_by_layer)
        )
    )
