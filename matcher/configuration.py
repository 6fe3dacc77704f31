"""How maps become matches: the settings, and the configurations of layers that a sweep tries."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matcher.errors import MatchError
from matcher.fusion import check_weights
from matcher.geometry import Geometry
from matcher.maps import LayerSpec

ANGLES = 11

BETA = 0.04
"""Temperature of the matching probability softmax(m / beta) (SD4Match; docs/method.md, Correlation)."""

SIGMA = 7.0
"""Width in cells of the Gaussian of `kernel_soft_argmax` (SD4Match)."""

WINDOW = 7
"""Reach in cells of the window of `window_soft_argmax`: 15 x 15 cells (GeoAware-SC's SOFT_EVAL_WINDOW)."""

WINDOW_BETA = 0.02
"""Temperature of `window_soft_argmax` (GeoAware-SC's evaluation)."""


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """How maps become matches; recorded with every result.

    image_size: side S of the resized image in pixels. geometry: pixel to cell. upsample: factor on the finest map's
    size. upsample_align: geometry of the upsampling. beta: softmax temperature. sigma: kernel width in cells. window:
    reach in cells of the readout `window`, window_beta: its own temperature.
    """

    image_size: int
    geometry: Geometry = Geometry.CORNERS
    upsample: int = 1
    upsample_align: Geometry = Geometry.CORNERS
    beta: float = BETA
    sigma: float = SIGMA
    window: int = WINDOW
    window_beta: float = WINDOW_BETA

    def __post_init__(self) -> None:
        if self.image_size < 2:
            raise MatchError(f"An image size of {self.image_size} pixels is too small: it must be at least 2.")
        if self.upsample < 1:
            raise MatchError(f"Maps cannot be upsampled {self.upsample} times: the factor must be at least 1.")
        for name in ("beta", "sigma", "window_beta"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise MatchError(f"{name} is {getattr(self, name)}: it must be finite and above 0.")
        if self.window < 0:
            raise MatchError(f"A window of {self.window} cells cannot be: it must be at least 0.")


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
