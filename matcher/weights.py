"""Which weights layers can be fused with, and which norms float32 holds. Loads no torch, so that weights are refused at
once."""

import math
from collections.abc import Sequence

from matcher.errors import MatchError

NORM_EPSILON = 1e-6
"""x / (||x|| + 1e-6), as in SD4Match."""

SMALLEST_NORM = 1e3 * NORM_EPSILON
"""Of what is normalised: below it the epsilon takes more than a thousandth of a cosine."""

LARGEST = 1e17
"""Of a value: beyond it a descriptor's norm overflows float32, and every match would be the first cell."""


def check_weights(layers: int, weights: Sequence[float]) -> None:
    """Raise `MatchError` unless there is one weight >= 0 a layer, not all zero, and the fused cells' norm, the root of
    the sum of their squares, is one that float32 and the normalisation's epsilon leave as it is."""
    if layers == 0:
        raise MatchError("No layer is named: give at least one.")
    if len(weights) != layers:
        raise MatchError(f"{layers} layer(s) but {len(weights)} weight(s): give one weight a layer.")
    if not all(math.isfinite(weight) for weight in weights) or min(weights) < 0 or max(weights) == 0:
        raise MatchError(
            f"The weights {list(weights)} cannot be used: none may be negative or infinite and one must be positive."
        )
    if not SMALLEST_NORM <= math.hypot(*weights) <= LARGEST:
        raise MatchError(
            f"The weights {list(weights)} cannot be used: the root of the sum of their squares is "
            f"{math.hypot(*weights):g}, and must lie between {SMALLEST_NORM:g} and {LARGEST:g}; only ratios count."
        )
