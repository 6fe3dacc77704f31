"""Match the points of many pairs in one configuration: a sweep (`matcher.sweep`) of one."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from matcher.configuration import Configuration
from matcher.maps import LayerSpec, MapSource
from matcher.match import MatchSettings
from matcher.pairs import MatchingPair
from matcher.pck import MatchedPair
from matcher.readout import Readout
from matcher.sweep import sweep


def evaluate(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    layers: Sequence[LayerSpec],
    readouts: Sequence[Readout],
    settings: MatchSettings,
    device: torch.device,
    on_pair: Callable[[], None] = lambda: None,
) -> list[MatchedPair]:
    """What each readout predicts for each pair, in the order of `pairs`. `on_pair` is called as each is done.

    Raises `MapError` and `MatchError`, see `matcher.sweep.sweep`.
    """
    matched: list[MatchedPair | None] = [None] * len(pairs)
    for target in sweep(pairs, maps, [Configuration(tuple(layers), settings)], readouts, device):
        ends = np.cumsum([len(pairs[index].source_points) for index in target.members])
        by_pair = np.split(target.predictions[0], ends[:-1], axis=1)  # (readouts, n, 2) each
        for index, predictions in zip(target.members, by_pair, strict=True):
            matched[index] = MatchedPair(pairs[index], dict(zip(readouts, predictions, strict=True)))
            on_pair()
    return [match for match in matched if match is not None]
