"""What the matcher asks of feature maps: which layers make up a feature, and something that hands their maps out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from matcher.errors import MapError
from matcher.read_ahead import AHEAD


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of the feature.

    layer: its name, "2" for SD's second up block, anything for imported features. timestep: of the diffusion, None for
    features that have none. weight: its share in the fused descriptor.
    """

    layer: str
    timestep: int | None
    weight: float = 1.0

    @property
    def map(self) -> "LayerSpec":
        """The same without its weight, on which the map does not depend."""
        return LayerSpec(self.layer, self.timestep)


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


@dataclass(frozen=True, slots=True)
class MapsInMemory:
    """Maps held in a dictionary keyed by (image id, layer name, timestep or None): the shortest way to evaluate
    features of one's own."""

    maps: Mapping[tuple[str, str, int | None], Tensor]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        found = self.maps.get((image, layer.layer, layer.timestep))
        if found is None:
            at = "" if layer.timestep is None else f" at t = {layer.timestep}"
            raise MapError(f"There is no map of image {image!r} for layer {layer.layer!r}{at}.")
        return found
