"""The pairs that were matched best and worst, by a rule that can be told in a sentence (`RULE`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matcher.pairs import PixelFrame
from matcher.pck import MatchedPair, distances
from matcher.readout import Readout

LEAST_POINTS = 3
RULE = (
    f"Pairs are ranked by their own PCK, equal ones by the mean distance from the truth in units of theta; pairs of "
    f"fewer than {LEAST_POINTS} keypoints are passed over where there are enough others, and in either list no image "
    "is shown twice."
)


@dataclass(frozen=True, slots=True, eq=False)
class RankedPair:
    """index: its place among the pairs. right: which of its points count as right, (n,). error: mean distance from the
    truth, as a share of theta."""

    index: int
    right: NDArray[np.bool_]
    error: float

    @property
    def pck(self) -> float:
        """A fraction."""
        return float(self.right.mean())


def best_and_worst(
    matched: Sequence[MatchedPair], readout: Readout, alpha: float, frame: PixelFrame | None, count: int
) -> tuple[list[RankedPair], list[RankedPair]]:
    """At most `count` of each, the best first and the worst first, no pair in both: see `RULE`. Raises `MatchError`
    where there is no pair."""
    measured = distances(matched, readout, frame)
    apart = np.split(measured.distances, np.cumsum(measured.counts)[:-1])
    ranked = [
        RankedPair(index, own <= alpha * theta, float(own.mean() / theta))
        for index, (own, theta) in enumerate(zip(apart, measured.thetas, strict=True))
    ]
    telling = [one for one in ranked if len(one.right) >= LEAST_POINTS]
    chosen = telling if len(telling) >= 2 * count else ranked
    ordered = sorted(chosen, key=lambda one: (-one.pck, one.error, one.index))
    best = _of_other_images(matched, ordered, count)
    shown = {one.index for one in best}
    worst = _of_other_images(matched, [one for one in reversed(ordered) if one.index not in shown], count)
    return best, worst


def _of_other_images(matched: Sequence[MatchedPair], ordered: Sequence[RankedPair], count: int) -> list[RankedPair]:
    """The first ones, without those that show an image again."""
    seen: set[str] = set()
    found: list[RankedPair] = []
    for one in ordered:
        images = {matched[one.index].pair.source, matched[one.index].pair.target}
        if len(found) < count and not images & seen:
            seen |= images
            found.append(one)
    return found
