"""Match the points of many pairs: the plain version, which builds every fused map and goes pair by pair.

Slow and easy to read; `matcher.sweep` is tested against it.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from matcher.configuration import LayerSpec, MatchSettings, check_weights
from matcher.maps import MapSource
from matcher.match import fuse, match_pixels, match_points
from matcher.pairs import MatchingPair
from matcher.pck import MatchedPair

KEPT_IMAGES = 12
"""Final maps kept between pairs; one of SD 2-1's dual maps takes 71 MB in float32."""


def hits(match: MatchedPair, readout: str, alpha: float) -> NDArray[np.bool_]:
    """Which points of a pair are matched well enough in the readout's own frame, (n,)."""
    truth = match.pair.in_original_frame() if readout == "pixel" else match.pair
    away = match.predictions[readout].astype(np.float64) - truth.target_points.astype(np.float64)
    return np.asarray(np.linalg.norm(away, axis=1) <= alpha * truth.theta)


def evaluate_plainly(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    readouts: Sequence[str],
    settings: MatchSettings,
    device: torch.device,
) -> list[MatchedPair]:
    """What each readout predicts for each pair, in the order of `pairs`.

    Raises `MapError` and `MatchError` where maps are missing or do not fit together.
    """
    check_weights(len(layers), [layer.weight for layer in layers])

    @lru_cache(maxsize=KEPT_IMAGES)
    def final_map(image: str) -> Tensor:
        raw = [maps.load(image, layer).to(device) for layer in layers]
        return fuse(raw, [layer.weight for layer in layers], settings.upsample, settings.upsample_align)

    matched = []
    for pair in pairs:
        source, target = final_map(pair.source), final_map(pair.target)
        points = torch.from_numpy(pair.source_points).to(device)
        on_cells = [readout for readout in readouts if readout != "pixel"]
        found = match_points(source, target, points, on_cells, settings)
        if "pixel" in readouts:
            original = pair.in_original_frame()
            points = torch.from_numpy(original.source_points).to(device)
            sizes = original.source_size, original.target_size
            found["pixel"] = match_pixels(source, target, points, *sizes)
        matched.append(MatchedPair(pair, {readout: found[readout].cpu().numpy() for readout in readouts}))
    return matched
