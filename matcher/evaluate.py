"""Match the points of many pairs: the plain version, pair by pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from matcher.errors import MapError
from matcher.fusion import check_weights, fuse
from matcher.match import MatchSettings, match_points
from matcher.pairs import MatchingPair
from matcher.pck import MatchedPair
from matcher.readout import Readout

KEPT_IMAGES = 12
"""Final maps kept between pairs; one of SD 2-1's dual maps takes 71 MB in float32."""


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


def evaluate(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    readouts: Sequence[Readout],
    settings: MatchSettings,
    device: torch.device,
    on_pair: Callable[[], None] = lambda: None,
) -> list[MatchedPair]:
    """What each readout predicts for each pair, in the order of `pairs`. `on_pair` is called after each.

    Raises `MapError` and `MatchError` where maps are missing or do not fit together.
    """
    check_weights(len(layers), [layer.weight for layer in layers])

    @lru_cache(maxsize=KEPT_IMAGES)
    def final_map(image: str) -> Tensor:
        raw = [maps.load(image, layer).to(device) for layer in layers]
        return fuse(raw, [layer.weight for layer in layers], settings.upsample, settings.upsample_align)

    matched = []
    for pair in pairs:
        points = torch.from_numpy(pair.source_points).to(device)
        found = match_points(final_map(pair.source), final_map(pair.target), points, readouts, settings)
        matched.append(MatchedPair(pair, {readout: where.cpu().numpy() for readout, where in found.items()}))
        on_pair()
    return matched


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
