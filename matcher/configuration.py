"""What a sweep tries: configurations, and which of them share their work."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matcher.errors import MatchError
from matcher.fusion import check_weights
from matcher.maps import LayerSpec
from matcher.match import MatchSettings
from matcher.pairs import Frame
from matcher.readout import Readout

ANGLES = 11


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to match: the layers with their timesteps and weights, and how maps become matches.

    Raises `MatchError` where the weights cannot be used.
    """

    layers: tuple[LayerSpec, ...]
    settings: MatchSettings

    def __post_init__(self) -> None:
        check_weights(len(self.layers), [layer.weight for layer in self.layers])

    @property
    def name(self) -> str:
        """`layer 2 at t = 261 x 0.8 + layer 3 at t = 200 x 0.6`."""
        return " + ".join(
            f"layer {layer.layer}"
            + ("" if layer.timestep is None else f" at t = {layer.timestep}")
            + ("" if len(self.layers) == 1 else f" x {layer.weight:.3g}")
            for layer in self.layers
        )


def one_layer_each(timesteps: Mapping[str, Sequence[int | None]], settings: MatchSettings) -> tuple[Configuration, ...]:
    """Each layer alone at each of its timesteps: `timesteps` by layer name."""
    return tuple(
        Configuration((LayerSpec(layer, timestep),), settings)
        for layer, steps in timesteps.items()
        for timestep in steps
    )


def all_layers_fused(
    timesteps: Mapping[str, Sequence[int | None]], weights: Sequence[Sequence[float]], settings: MatchSettings
) -> tuple[Configuration, ...]:
    """All layers together: every choice of a timestep a layer, with every weighting (a weight a layer, in the order of
    `timesteps`)."""
    for weighting in weights:
        check_weights(len(timesteps), weighting)
    return tuple(
        Configuration(tuple(map(LayerSpec, timesteps, steps, weighting)), settings)
        for weighting in weights
        for steps in itertools.product(*timesteps.values())
    )


def angles(count: int = ANGLES) -> tuple[tuple[float, float], ...]:
    """Weightings of two layers from the first alone to the second alone, in equal steps of the angle; each of norm 1
    (the report's 0.8 : 0.6 lies at 36.9 degrees)."""
    if count < 2:
        raise MatchError(f"A sweep of {count} angle(s) goes nowhere: it takes at least 2.")
    steps = [index / (count - 1) * math.pi / 2 for index in range(count)]
    return tuple(
        (max(math.cos(step), 0.0) if index < count - 1 else 0.0, math.sin(step)) for index, step in enumerate(steps)
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """Configurations of the same layers and settings, which differ in timesteps and weights alone: their source points
    are sampled once a map, and each map is correlated once.

    layers: names. maps: for each layer, the distinct maps asked for (of weight 1). members: indices of the
    configurations. frame and readouts: ORIGINAL is for the readout `pixel`, which samples elsewhere, RESIZED for all
    others.
    """

    layers: tuple[str, ...]
    settings: MatchSettings
    frame: Frame
    readouts: tuple[Readout, ...]
    members: tuple[int, ...]
    maps: tuple[tuple[LayerSpec, ...], ...]

    @property
    def rows(self) -> int:
        """Correlation maps that a point asks for: 4 where `bilinear` is read, else 1."""
        return 4 if Readout.BILINEAR in self.readouts else 1


def layouts(configurations: Sequence[Configuration], readouts: Sequence[Readout]) -> tuple[Layout, ...]:
    """The configurations by what they share, each readout with its frame."""
    grouped: dict[tuple[tuple[str, ...], MatchSettings], list[int]] = defaultdict(list)
    for index, configuration in enumerate(configurations):
        grouped[tuple(layer.layer for layer in configuration.layers), configuration.settings].append(index)
    found = []
    for (names, settings), members in grouped.items():
        maps = tuple(
            tuple(dict.fromkeys(configurations[index].layers[position].map for index in members))
            for position in range(len(names))
        )
        for frame in Frame:
            own = tuple(readout for readout in readouts if readout.frame is frame)
            if own:
                found.append(Layout(names, settings, frame, own, tuple(members), maps))
    return tuple(found)
