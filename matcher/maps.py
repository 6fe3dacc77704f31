"""What the matcher asks of feature maps: something that hands them out, and values that can be matched."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from matcher.configuration import LARGEST, SMALLEST_NORM, LayerSpec
from matcher.errors import MapError


class MapSource(Protocol):
    """Anything that hands out feature maps."""

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w) of an image at `layer.layer` and `layer.timestep`, finite. May be called from another
        thread than the one that evaluates. Raises `MapError` where it has none."""


@runtime_checkable
class FarMapSource(Protocol):
    """A `MapSource` that may be far away, and knows how far ahead it is worth reading."""

    def images_ahead(self, layers: Sequence[LayerSpec]) -> int:
        """Of how many images the maps of `layers` are to be read ahead, at least 1."""


def images_ahead(maps: MapSource, layers: Sequence[LayerSpec]) -> int:
    """Of how many images the maps are read ahead: `AHEAD`, where the source does not say."""
    return maps.images_ahead(layers) if isinstance(maps, FarMapSource) else AHEAD


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What maps may be kept in."""

SAME = 1e-3
"""Unit vectors that are no further apart have cosines that differ by 5e-7, float32's own rounding."""


def check_map(features: Tensor, name: str) -> None:
    """Raise `MapError`, naming the map, for what cannot be a map (C, h, w) of an image that was resized to a square, or
    cannot be matched: values that are not finite or too large, cells that vanish when they are normalised, cells that
    all point the same way."""
    if features.dtype not in FLOATS or features.ndim != 3 or 0 in features.shape:
        kind = str(features.dtype).removeprefix("torch.")
        raise MapError(
            f"{name} is {kind} of shape {tuple(features.shape)} where float16, bfloat16, float32 or float64 of shape "
            "(C, h, w), none of them 0, is needed."
        )
    channels, height, width = features.shape
    if height != width:
        reading = "it is (h, w, C), it seems: move the channels to the front" if channels == height else "resize both"
        raise MapError(
            f"{name} has shape {tuple(features.shape)}, which as (C, h, w) has {height} x {width} cells where images "
            f"are square and have as many cells both ways: {reading}."
        )
    if not features.abs().max() <= LARGEST:
        raise MapError(f"{name} holds values that are not finite, or larger than {LARGEST:g}; check how it was made.")
    values = features.float()
    norms = values.norm(dim=0)  # (h, w)
    filled = norms > 0  # a cell of zeros may be meant: what was masked, or what no channel answers to
    vanishing = int((norms[filled] < SMALLEST_NORM).sum())
    if not filled.any():
        raise MapError(f"{name} cannot be matched: every cell is zero; make it again.")
    if vanishing or features.abs().max() < torch.finfo(features.dtype).tiny:
        cells = "every cell is" if vanishing in (0, norms.numel()) else f"{vanishing} of its {norms.numel()} cells are"
        raise MapError(
            f"{name} cannot be matched: {cells} too small (norms from {norms[filled].min():.2g}), and a descriptor is "
            f"divided by its norm plus 1e-6; scale the layer's maps until norms are above {SMALLEST_NORM:g}, or make "
            "them again."
        )
    units = (values / norms)[:, filled]  # (C, cells)
    if (units.amax(dim=1) - units.amin(dim=1)).norm() < SAME and filled.all():
        raise MapError(
            f"{name} cannot be matched: all its {norms.numel()} cells point the same way; check how it was made."
        )


def check_maps(maps: Iterable[tuple[Hashable, str, Tensor]]) -> None:
    """`check_map` of each map, given as (its layer, its name, its values), and that those of a layer have one number of
    channels and one dtype. Raises `MapError`."""
    first: dict[Hashable, tuple[str, tuple[int, str]]] = {}
    for layer, name, features in maps:
        check_map(features, name)
        own = features.shape[0], str(features.dtype).removeprefix("torch.")
        other, theirs = first.setdefault(layer, (name, own))
        if own != theirs:
            raise MapError(
                f"{name} has {own[0]} channels in {own[1]}, but {other} of the same layer has {theirs[0]} in "
                f"{theirs[1]}: all maps of a layer come from one network, in one precision."
            )


@dataclass(frozen=True, slots=True)
class MapsInMemory:
    """Maps held in a dictionary keyed by (image id, layer name, timestep or None): the shortest way to evaluate
    features of one's own. Raises `MapError` for maps that cannot be matched, see `check_maps`."""

    maps: Mapping[tuple[str, str, int | None], Tensor]

    def __post_init__(self) -> None:
        check_maps(
            ((layer, timestep), f"The map of {image!r}, layer {layer!r}{_at(timestep)}", features)
            for (image, layer, timestep), features in self.maps.items()
        )

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        found = self.maps.get((image, layer.layer, layer.timestep))
        if found is None:
            raise MapError(f"There is no map of image {image!r} for layer {layer.layer!r}{_at(layer.timestep)}.")
        return found


def _at(timestep: int | None) -> str:
    return "" if timestep is None else f" at t = {timestep}"


Key = TypeVar("Key")
Value = TypeVar("Value")

AHEAD = 2
"""How many are read ahead where nobody says otherwise: one thread alone does not fill a disk's or a network's line."""

READERS = 8
"""Threads at once, however many are read ahead."""


def read_ahead(keys: Iterable[Key], load: Callable[[Key], Value], ahead: int = AHEAD) -> Iterator[tuple[Key, Value]]:
    """Each key with what `load` gives for it, in order; the next `ahead`, and no more, are loaded in threads meanwhile,
    none where it is 0. Exceptions of `load` come up where its value would have; then, and where the iteration ends
    early, what no thread has begun is not loaded."""
    if ahead == 0:
        for key in keys:
            yield key, load(key)
        return
    readers = ThreadPoolExecutor(min(ahead, READERS), thread_name_prefix="read-ahead")
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    try:
        for key in keys:
            waiting.append((key, readers.submit(load, key)))
            if len(waiting) > ahead:
                first, value = waiting.popleft()
                yield first, value.result()
        while waiting:
            first, value = waiting.popleft()
            yield first, value.result()
    finally:
        readers.shutdown(cancel_futures=True)
