"""What the matcher asks of feature maps: which layers make up a feature, and something that hands their maps out."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from matcher.errors import MapError


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer of the feature.

    layer: its name, "2" for SD's second up block, anything for imported features. timestep: of the diffusion, None for
    features that have none. weight: its share in the fused descriptor.
    """

    layer: str
    timestep: int | None
    weight: float


class MapSource(Protocol):
    """Anything that hands out feature maps."""

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """The raw map (C, h, w) of an image's layer, finite. Raises `MapError` where it has none."""


@dataclass(frozen=True, slots=True)
class MapsInMemory:
    """Maps held in a dictionary keyed by (image id, layer name): the shortest way to evaluate features of one's own."""

    maps: dict[tuple[str, str], Tensor]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        found = self.maps.get((image, layer.layer))
        if found is None:
            raise MapError(f"There is no map of image {image!r} for layer {layer.layer!r}.")
        return found
