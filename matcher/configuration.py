"""How maps become matches: layers, weights, geometry and settings, and what a readout is.

Loads neither torch nor numpy, so that what cannot be is refused at once.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from matcher.errors import MatchError

if TYPE_CHECKING:
    from torch import Tensor

NORM_EPSILON = 1e-6
"""x / (||x|| + 1e-6), as in SD4Match."""

SMALLEST_NORM = 1e3 * NORM_EPSILON
"""Of what is normalised: below it the epsilon takes more than a thousandth of a cosine."""

LARGEST = 1e17
"""Of a value: beyond it a descriptor's norm overflows float32, and every match would be the first cell."""

ANGLES = 11

BETA = 0.04
"""Temperature of the matching probability softmax(m / beta) (SD4Match; docs/method.md, Correlation)."""

SIGMA = 7.0
"""Width in cells of the Gaussian of `kernel_soft_argmax` (SD4Match)."""

WINDOW = 7
"""Reach in cells of the window of `window_soft_argmax`: 15 x 15 cells (GeoAware-SC's SOFT_EVAL_WINDOW)."""

WINDOW_BETA = 0.02
"""Temperature of `window_soft_argmax` (GeoAware-SC's evaluation)."""


class Frame(Enum):
    """In whose pixels points, theta and distances are measured: of the image resized to S x S, or as it came."""

    RESIZED = "resized"
    ORIGINAL = "original"


class Pad(Enum):
    """How an image becomes a square of S x S pixels.

    STRETCH: resized to it, whatever its aspect ratio (SD4Match, DIFT). SQUARE: its longer side becomes S, and the rest
    is black, half of it on either side (GeoAware-SC, SD-DINO).
    """

    STRETCH = "stretch"
    SQUARE = "square"


class Geometry(Enum):
    """How pixel x maps to cell u on a map of width w (docs/method.md, Points).

    CORNERS: u = x (w - 1) / (S - 1), the centres of corner pixels and corner cells coincide (SD4Match).
    HALF_PIXEL: u = (x + 1/2) w / S - 1/2, the outer edges of image and map coincide (what strided convolutions do).
    FLOOR: u = floor(x w / S), the cell that holds the pixel, and back x = u S / w + floor(S / w / 2) (GeoAware-SC).
    """

    CORNERS = "corners"
    HALF_PIXEL = "half-pixel"
    FLOOR = "floor"

    @property
    def align_corners(self) -> bool:
        """The `align_corners` of torch's interpolation that keeps this geometry when a map is resized."""
        return self is Geometry.CORNERS


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


def check_weights(layers: int, weights: Sequence[float]) -> None:
    """Raise `MatchError` unless there is one weight >= 0 per layer, not all zero, and the fused cells' norm, the root
    of the sum of their squares, is one that float32 and the normalisation's epsilon leave as it is."""
    if layers == 0:
        raise MatchError("No layer is named: give at least one.")
    if len(weights) != layers:
        raise MatchError(f"{layers} layer(s) but {len(weights)} weight(s): give one weight a layer.")
    norm = math.hypot(*weights)
    if min(weights) < 0 or not SMALLEST_NORM <= norm <= LARGEST:
        raise MatchError(
            f"The weights {list(weights)} cannot be used: none may be negative or infinite and one must be positive, "
            f"and the root of the sum of their squares, {norm:g}, must lie between {SMALLEST_NORM:g} and {LARGEST:g}; "
            "only ratios count."
        )


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """How maps become matches; recorded with every result.

    image_size: side S of the resized image in pixels. geometry: pixel to cell. upsample: factor on the finest map's
    size. upsample_align: geometry of the upsampling. beta: softmax temperature. sigma: kernel width in cells. window:
    reach in cells of the readout `window`, window_beta: its own temperature. pad: how images were made squares.
    """

    image_size: int
    geometry: Geometry = Geometry.CORNERS
    upsample: int = 1
    upsample_align: Geometry = Geometry.CORNERS
    beta: float = BETA
    sigma: float = SIGMA
    window: int = WINDOW
    window_beta: float = WINDOW_BETA
    # not in the text that names a grid's ledger: a store has images of one kind
    pad: Pad = field(default=Pad.STRETCH, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("image_size", 2), ("upsample", 1), ("window", 0)):
            if getattr(self, name) < least:
                raise MatchError(f"{name} is {getattr(self, name)}: it must be at least {least}.")
        for name in ("beta", "sigma", "window_beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise MatchError(f"{name} is {getattr(self, name)}: it must be finite and above 0.")


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to match: the layers with their timesteps and weights, and how maps become matches.

    Raises `MatchError` where the weights cannot be used.
    """

    layers: tuple[LayerSpec, ...]
    settings: MatchSettings

    def __post_init__(self) -> None:
        check_weights(len(self.layers), self.weights)

    @property
    def weights(self) -> tuple[float, ...]:
        """One per layer."""
        return tuple(layer.weight for layer in self.layers)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """One per layer; -1 for features that have none."""
        return tuple(-1 if layer.timestep is None else layer.timestep for layer in self.layers)

    @property
    def weighing(self) -> int:
        """How many layers weigh something."""
        return sum(weight > 0 for weight in self.weights)

    def is_like(self, other: "Configuration") -> bool:
        """Whether it differs from another in timesteps at most."""
        own, theirs = ([(layer.layer, layer.weight) for layer in one.layers] for one in (self, other))
        return own == theirs and self.settings == other.settings

    @property
    def name(self) -> str:
        """`layer 2 at t = 261 x 0.8 + layer 3 at t = 200 x 0.6`."""
        return " + ".join(
            f"layer {layer.layer}"
            + ("" if layer.timestep is None else f" at t = {layer.timestep}")
            + ("" if len(self.layers) == 1 else f" x {layer.weight:.3g}")
            for layer in self.layers
        )


def describe_layers(layers: Sequence[LayerSpec]) -> dict[str, list[Any]]:
    """Layers by the names that `dualsd eval --json` uses: one entry per layer; diffusion's layers by number."""
    return {
        "layers": [
            int(own.layer) if own.timestep is not None and own.layer.isdecimal() else own.layer for own in layers
        ],
        "t": [layer.timestep for layer in layers],
        "weights": [layer.weight for layer in layers],
    }


def one_layer_each(timesteps: Mapping[str, Sequence[int | None]], settings: MatchSettings) -> tuple[Configuration, ...]:
    """Each layer alone at each of its timesteps: `timesteps` by layer name."""
    alone = (LayerSpec(layer, timestep) for layer, steps in timesteps.items() for timestep in steps)
    return tuple(Configuration((layer,), settings) for layer in alone)


def all_layers_fused(
    timesteps: Mapping[str, Sequence[int | None]], weights: Sequence[Sequence[float]], settings: MatchSettings
) -> tuple[Configuration, ...]:
    """All layers together: every choice of a timestep per layer, with every weighting (a weight per layer, in the order
    of `timesteps`)."""
    for weighting in weights:
        check_weights(len(timesteps), weighting)
    choices = itertools.product(weights, itertools.product(*timesteps.values()))
    layers = (tuple(map(LayerSpec, timesteps, steps, weighting)) for weighting, steps in choices)
    return tuple(Configuration(own, settings) for own in layers)


def angles(count: int = ANGLES) -> tuple[tuple[float, float], ...]:
    """Weightings of two layers from the first alone to the second alone, in equal steps of the angle; each of norm 1
    (the report's 0.8 : 0.6 lies at 36.9 degrees)."""
    if count < 2:
        raise MatchError(f"A sweep of {count} angle(s) goes nowhere: it takes at least 2.")
    steps = [index / (count - 1) * math.pi / 2 for index in range(count)]
    return (*((math.cos(step), math.sin(step)) for step in steps[:-1]), (0.0, 1.0))


@dataclass(frozen=True, eq=False)
class Correlations:
    """Those of n points with every cell of a target, (H, W) cells, or pixels in the original frame.

    sums: (n, H, W), proportional to the cosines of each point. scale: (n,), what makes cosines of them, None where they
    are cosines. nearest: (n, 2), the (x, y) of the largest. neighbours: (n, 4, H, W), of the four cells around each
    source point, and shares: (n, 4), their bilinear weights; only for a readout that asks for them.
    """

    settings: MatchSettings
    sums: "Tensor"
    scale: "Tensor | None"
    nearest: "Tensor"
    neighbours: "Tensor"
    shares: "Tensor"

    @cached_property
    def cosines(self) -> "Tensor":
        """(n, H, W) in [-1, 1]."""
        return self.sums if self.scale is None else self.sums * self.scale[:, None, None]


@dataclass(frozen=True, slots=True)
class Readout:
    """A way to read target points off correlations.

    read: `Correlations` of n points to (n, 2), (x, y) in cells of the target (pixels in the original frame). frame: in
    which its predictions are, and are scored. rows: correlation maps per point that it asks for: 4 where it reads
    `neighbours`, which only the resized frame has.
    """

    name: str
    read: "Callable[[Correlations], Tensor]"
    frame: Frame = Frame.RESIZED
    rows: int = 1


MODULES: Mapping[str, str] = {
    **dict.fromkeys(("nn", "bilinear", "softmax", "kernelsoftmax", "window", "pixel"), "matcher.readout"),
}
"""Where each readout lies, in the order in which help texts name them. A new one is a file with a `READOUTS` of its
own, and its line here; it is loaded, and torch, only once it is used."""


def readout(name: str) -> Readout:
    """The readout of a name. Raises `MatchError` where there is none."""
    find_readouts([name])
    found: Readout = import_module(MODULES[name]).READOUTS[name]
    return found


def find_readouts(names: Sequence[str], pad: Pad = Pad.STRETCH) -> tuple[str, ...]:
    """Readouts' names, each once. Raises `MatchError` for one that there is not, or not for such images."""
    for name in names:
        if name not in MODULES:
            raise MatchError(f"There is no readout {name!r}: choose from {', '.join(MODULES)}.")
        if pad is Pad.SQUARE and frame_of(name) is Frame.ORIGINAL:
            raise MatchError(
                f"The readout {name} spreads a map over the image as it came, and maps of padded images cover more: "
                "leave it out of --readouts."
            )
    return tuple(dict.fromkeys(names))


PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "softmax": {"beta": "beta"},
    "kernelsoftmax": {"beta": "beta", "sigma": "sigma"},
    "window": {"beta": "window_beta", "window": "window"},
}
"""Of readouts that have parameters: as users name them, and as `MatchSettings` does."""


def check_parameters(said: Mapping[str, Any], readouts: Sequence[str]) -> dict[str, Any]:
    """What is said of readouts' parameters, by the names of `MatchSettings`. Raises `MatchError` for an unusual value
    of one that none of the readouts has: it would change nothing."""
    usual = {"beta": BETA, "sigma": SIGMA, "window": WINDOW}
    for name, value in said.items():
        users = [readout for readout, own in PARAMETERS.items() if name in own]
        if value != usual[name] and not set(users) & set(readouts):
            raise MatchError(
                f"--{name} goes with the readout {' or '.join(users)}: {', '.join(readouts)} has no use for it."
            )
    asked = (own for readout, own in PARAMETERS.items() if readout in readouts)
    return {field: said[name] for own in asked for name, field in own.items() if name in said}


def spell_readout(name: str, settings: MatchSettings) -> str:
    """`window with beta 0.02, window 5`; the name alone where its parameters are the usual ones, or it has none."""
    usual, own = MatchSettings(settings.image_size), PARAMETERS.get(name, {})
    if all(getattr(settings, field) == getattr(usual, field) for field in own.values()):
        return name
    return f"{name} with {', '.join(f'{said} {getattr(settings, field):g}' for said, field in own.items())}"


def frame_of(name: str) -> Frame:
    """The frame in which a readout's predictions are, and are scored. Raises `MatchError` where there is none."""
    return readout(name).frame
