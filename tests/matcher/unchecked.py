"""Maps as somebody's own source may hand them out: of any kind, which `MapsInMemory` refuses."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from matcher.configuration import LayerSpec
from matcher.errors import MapError


@dataclass(frozen=True)
class Unchecked:
    """A `matcher.maps.MapSource`."""

    maps: Mapping[tuple[str, str, int | None], Tensor]

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        try:
            return self.maps[image, layer.layer, layer.timestep]
        except KeyError:
            raise MapError(f"no map {layer.layer!r}") from None
