"""What is missing of latents, noisy latents and maps. Loads no model library, as often nothing is missing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from featstore.backbones.base import Asked, Backbone, Compute, LayerShape, MapKey
from featstore.datasets.records import Dataset
from featstore.progress import Progress
from featstore.prompts.base import Prompts
from featstore.store.keys import AnyExtractor, Extractor, PixelExtractor, Stored
from featstore.store.rows import Row, RowArray
from featstore.store.store import Store


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
    wanted = [(row, draw) for row in rows for draw in range(draws)]
    array = store.noisy(timestep)
    if array is None:
        return [*wanted]
    present = array.present()
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
    def timestep(self) -> int:
        """The one of all keys."""
        timestep = self.keys[0][1]
        assert timestep is not None, "layers of a diffusion model have timesteps"
        return timestep


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
    stored: Stored = Stored.FLOAT16
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


def extractor_of(
    store: Store, prompt: Prompts, ensemble: int, compute: Compute, stored: Stored = Stored.FLOAT16
) -> Extractor:
    """The extractor under whose name a store keeps such maps."""
    header = store.header
    return Extractor(header.model_fingerprint, prompt.describe(), ensemble, compute.dtype_name, header.seed, stored)


def plan_maps(
    store: Store, extractor: Extractor, rows: Sequence[int], wanted: Iterable[MapKey], prompt: Prompts
) -> list[PlannedPasses[int]]:
    """The passes that the maps (layer, timestep) in `wanted` are still to be made with, of the images of `rows`."""
    missing = {key: lacking for key in wanted if (lacking := missing_rows(store.maps(extractor, *key), rows))}
    return [
        PlannedPasses(keys, tuple(sorted({row for key in keys for row in missing[key]})))
        for keys in sharing_a_pass(missing, prompt.differ_by_layer)
    ]
