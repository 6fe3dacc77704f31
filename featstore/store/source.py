"""A store's maps, and a file's, as the matcher asks for them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featstore.backbone.dino_name import DINO
from featstore.errors import StoreError
from featstore.store.keys import DinoExtractor, Extractor
from featstore.store.rows import RowArray
from featstore.store.store import Store
from matcher.errors import MapError
from matcher.maps import LayerSpec, MapSource


@dataclass(frozen=True, slots=True)
class StoredMaps:
    """Maps of one extractor in a store (a `matcher.maps.MapSource`); the layer `dino`'s are of another, `dino`."""

    store: Store
    extractor: Extractor | None
    dino: DinoExtractor | None = None
    _arrays: dict[tuple[str, int | None], RowArray] = field(default_factory=dict, repr=False, compare=False)

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w), float16. Raises `StoreError` where it is missing or damaged."""
        array = self._arrays.get((layer.layer, layer.timestep))
        if array is None:
            array = self._arrays[layer.layer, layer.timestep] = self._open(layer)
        return torch.from_numpy(array.read((self.store.images.row(image),)))

    def _open(self, layer: LayerSpec) -> RowArray:
        array, which = None, f"layer {layer.layer}"
        if layer.layer == DINO:
            array = None if self.dino is None else self.store.dino_maps(self.dino)
        elif self.extractor is not None:
            assert layer.timestep is not None, "the UNet's maps have timesteps"
            array = self.store.maps(self.extractor, int(layer.layer), layer.timestep)
            which = f"{which} at t = {layer.timestep}"
        if array is None:
            raise StoreError(f"{self.store.path} has no maps of {which}.")
        return array


@dataclass(frozen=True, slots=True)
class WithDino:
    """The maps of a source, and with them the layer `dino` of another."""

    others: MapSource
    dino: MapSource

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        return (self.dino if layer.layer == DINO else self.others).load(image, layer)


@dataclass(frozen=True)
class FeatureFile:
    """Somebody's own features: a safetensors file of tensors named `<image id>|<layer name>`, each (C, h, w)."""

    path: Path
    handle: Any
    names: frozenset[str]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w). Raises `MapError` where it is missing, of another shape or not finite."""
        name = f"{image}|{layer.layer}"
        if name not in self.names:
            raise MapError(f"{self.path} has no tensor {name!r}; {self._what_it_has()}.")
        features: Tensor = self.handle.get_tensor(name)
        if features.ndim != 3 or not features.is_floating_point():
            raise MapError(f"{self.path}: tensor {name!r} must be floating point (C, h, w), not {features.shape}.")
        if not torch.isfinite(features).all():
            raise MapError(f"{self.path}: tensor {name!r} holds values that are not finite.")
        return features

    def _what_it_has(self) -> str:
        layers = sorted({name.rpartition("|")[2] for name in self.names})
        images = len({name.rpartition("|")[0] for name in self.names})
        return f"it has {images} images with the layers {', '.join(layers)}"


def open_features(path: Path) -> FeatureFile:
    """Open a features file. Raises `MapError` where it is missing, no safetensors, or names nothing rightly."""
    if not path.is_file():
        raise MapError(f"There is no features file {path}.")
    try:
        handle = safe_open(path, framework="pt")
        names = frozenset(handle.keys())
    except (SafetensorError, OSError) as error:
        raise MapError(f"{path} cannot be read as safetensors: {error}.") from error
    if not names or not all("|" in name for name in names):
        raise MapError(f"{path} must hold tensors named '<image id>|<layer name>'.")
    return FeatureFile(path, handle, names)
