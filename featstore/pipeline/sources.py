"""What the matcher asks for: maps of a store or a file, and the hits of a grid that was stopped."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featstore.backbones.registry import DIFFUSION, family_of
from featstore.errors import StoreError
from featstore.plain_text import is_plain, nfc, one_line, shown
from featstore.store.keys import GRIDS, AdaptedExtractor, AnyExtractor, Extractor, PixelExtractor
from featstore.store.rows import AHEAD_BYTES, REQUESTS, RowArray, require_rows
from featstore.store.store import Store
from matcher.configuration import LayerSpec
from matcher.errors import MapError, MatchError
from matcher.grid import Hits
from matcher.maps import AHEAD, MapSource, check_maps, images_ahead
from matcher.pairs import MatchingPair

_NAMED = "'<image id>|<layer name>'"


@dataclass(frozen=True, slots=True)
class StoredMaps:
    """Maps in a store (a `matcher.maps.MapSource`): the UNet's of `extractor`, those of other backbones of `others`, by
    family (`featstore.backbones.registry`); adapted ones are all of `extractor`."""

    store: Store
    extractor: Extractor | AdaptedExtractor | None
    others: Mapping[str, PixelExtractor] = field(default_factory=dict)
    _arrays: dict[tuple[str, int | None], RowArray] = field(default_factory=dict, repr=False, compare=False)

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w), float16. Raises `StoreError` where it is missing or damaged."""
        return torch.from_numpy(self._array(layer).read((self.store.images.row(image),)))

    def images_ahead(self, layers: Sequence[LayerSpec]) -> int:
        """See `FarMapSource.images_ahead`: of a bucket as many as `AHEAD_BYTES` hold, no more than rows are read at
        once. Threads that read a disk take cores and memory from the matching, and wait for little."""
        if self.store.objects.disk is not None:
            return AHEAD
        image_bytes = sum(self._array(layer).row_bytes for layer in layers)
        return max(min(AHEAD_BYTES // max(image_bytes, 1), REQUESTS), AHEAD)

    def _array(self, layer: LayerSpec) -> RowArray:
        key = layer.layer, layer.timestep
        if key not in self._arrays:
            extractor: AnyExtractor | None = self.extractor
            if not isinstance(extractor, AdaptedExtractor) and (family := family_of(layer.layer)) != DIFFUSION:
                extractor = self.others.get(family)
            array = None if extractor is None else self.store.maps(extractor, layer.layer, layer.timestep)
            if array is None:
                which = f"layer {layer.layer}" + ("" if layer.timestep is None else f" at t = {layer.timestep}")
                raise StoreError(f"{self.store.path} has no maps of {which}.")
            self._arrays[key] = array
        return self._arrays[key]


@dataclass(frozen=True, slots=True)
class MapsByLayer:
    """Maps of several sources, each of its own layers. sources: by the layer's name."""

    sources: Mapping[str, MapSource]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        return self.sources[layer.layer].load(image, layer)

    def images_ahead(self, layers: Sequence[LayerSpec]) -> int:
        """See `FarMapSource.images_ahead`."""
        own = {name: [layer for layer in layers if layer.layer == name] for name in self.sources}
        return max(images_ahead(self.sources[name], wanted) for name, wanted in own.items() if wanted)


@dataclass(frozen=True)
class FeatureFile:
    """Somebody's own features: a safetensors file of tensors named `<image id>|<layer name>`, each (C, h, w). names: as
    in the file, by the names in NFC, which ids are in."""

    path: Path
    handle: Any
    names: Mapping[str, str]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w). Raises `MapError` where it is missing or cannot be read; whether it can be matched is
        known from `check`."""
        name = self._name(image, layer)
        try:
            features: Tensor = self.handle.get_tensor(self.names[name])
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # of a type torch lacks
            raise MapError(
                f"{self.path}: tensor {name!r} cannot be read ({one_line(error)}); write it again."
            ) from error
        return features

    def check(self, images: Sequence[str], layers: Sequence[LayerSpec]) -> None:
        """Read the maps of some images, one at a time. Raises `MapError` for the first one that is missing or cannot be
        matched."""
        wanted = [(image, layer, self._name(image, layer)) for image in images for layer in layers]
        check_maps(
            (layer.layer, f"{self.path}: tensor {name!r}", self.load(image, layer)) for image, layer, name in wanted
        )

    def _name(self, image: str, layer: LayerSpec) -> str:
        name = nfc(f"{image}|{layer.layer}")
        if name not in self.names:
            raise MapError(f"{self.path} has no tensor {name!r}; {self._what_it_has()}.")
        return name

    def _what_it_has(self) -> str:
        layers = sorted({name.rpartition("|")[2] for name in self.names})
        images = len({name.rpartition("|")[0] for name in self.names})
        return f"it has {images} images with the layers {', '.join(layers[:10])}{', ...' if len(layers) > 10 else ''}"


def open_features(path: Path) -> FeatureFile:
    """Open a features file. Raises `MapError` where it is missing, no safetensors, or names nothing rightly."""
    if not path.is_file():
        raise MapError(f"There is no features file {path}.")
    try:
        handle = safe_open(path, framework="pt")
        names = frozenset(handle.keys())
    except (SafetensorError, OSError) as error:
        raise MapError(f"{path} cannot be read as safetensors: {one_line(error)}; write it again.") from error
    if not names:
        raise MapError(f"{path} holds no tensors; name them {_NAMED}.")
    wrong = [name for name in names if not is_plain(name) or not all(name.rpartition("|")[::2])]
    if wrong:
        raise MapError(f"{path} must hold tensors named {_NAMED}, and has {shown(min(wrong))}.")
    composed = {nfc(name): name for name in sorted(names)}
    if len(composed) < len(names):
        twice = min(names - set(composed.values()))
        raise MapError(f"{path} has two tensors {twice!a}, in both Unicode normal forms; remove one of them.")
    return FeatureFile(path, handle, composed)


LARGEST_COUNT = 2048
"""Whole numbers up to it are exact in float16."""


@dataclass(frozen=True, slots=True)
class StoredLedger:
    """A `matcher.grid.Ledger`: an array of one row a target image, (images, configurations, readouts, alphas, pairs).

    pairs: how many go into each target image. done: the target images that were finished when it was opened.
    """

    store: Store
    path: str
    array: RowArray
    pairs: Mapping[str, int]
    done: frozenset[str]

    def load(self, target: str) -> Hits | None:
        """See `matcher.grid.Ledger.load`."""
        if target not in self.done:
            return None
        hits: Hits = self.array.read((self.store.images.row(target),))[..., : self.pairs[target]].astype(np.uint16)
        return hits

    def save(self, target: str, hits: Hits) -> None:
        """See `matcher.grid.Ledger.save`."""
        full = np.zeros(self.array.row_shape, dtype=np.float32)
        full[..., : self.pairs[target]] = hits
        self.array.write((self.store.images.row(target),), full)

    def forget(self) -> None:
        """Remove it, once the grid is done."""
        self.store.objects.remove(self.path)


def open_ledger(
    store: Store, pairs: Sequence[MatchingPair], shape: tuple[int, int, int], description: Mapping[str, Any]
) -> StoredLedger:
    """The ledger of a grid, made where it is not there. shape: configurations, readouts, alphas. description: all that
    its hits depend on besides the pairs and what their images hold, which are added here. Raises `MatchError` where
    there is no pair, `StoreError` for one of more points than can be counted."""
    if not pairs:
        raise MatchError("There is no pair to score.")
    digest = hashlib.blake2b(json.dumps(description, sort_keys=True, default=str).encode(), digest_size=8)
    for pair in pairs:
        for image in (pair.source, pair.target):
            digest.update(f"{image} {store.images.keys[store.images.row(image)]} ".encode())
        frames = (pair,) if pair.original is None else (pair, pair.original)
        for frame in frames:
            for numbers in (frame.source_points, frame.target_points, np.float64(frame.theta)):
                digest.update(numbers.tobytes())
    if max(len(pair.source_points) for pair in pairs) > LARGEST_COUNT:
        raise StoreError(f"A pair with more than {LARGEST_COUNT} points cannot be counted in a store: leave it out.")
    counts = Counter(pair.target for pair in pairs)
    path = f"{GRIDS}/{digest.hexdigest()}"
    array = require_rows(store.group, path, (len(store.images),), (*shape, max(counts.values())))
    present = array.present()
    done = frozenset(target for target in counts if present[store.images.row(target)])
    return StoredLedger(store, path, array, counts, done)
