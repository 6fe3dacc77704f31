"""Why a match is wrong, from what was predicted: each point is right, near, at another keypoint, or elsewhere; and
which points are geometry-aware. No map is looked at."""

from collections.abc import Callable, Collection, Mapping
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from matcher.configuration import frame_of
from matcher.errors import MatchError
from matcher.pairs import Integers, PixelFrame, Unmatched
from matcher.pck import Columns, Matched, Matches, distances, to_measured


class Kind(Enum):
    """What became of a point at alpha. Distances count as at PCK: up to alpha theta, below it where that is strict.

    RIGHT: within alpha theta of the truth. NEAR: else within 2 alpha theta of it. Else the nearest of the other
    keypoints that the target shows is looked at, whether the source shows them or not. MIRRORED, OTHER: that one is
    within alpha theta, and is the keypoint on the other side, or another. ELSEWHERE: the rest.
    """

    RIGHT = "right"
    NEAR = "near"
    MIRRORED = "mirrored"
    OTHER = "another keypoint"
    ELSEWHERE = "elsewhere"


KINDS = tuple(Kind)

Partners = Callable[[str, Collection[str]], Mapping[str, str]]
"""From a category and all names of its keypoints to the keypoint on the other side, by name."""

Groups = Callable[[str, Collection[str]], Collection[frozenset[str]]]
"""From the same to groups of keypoints that look alike."""


def _place(kind: Kind) -> int:
    return KINDS.index(kind)


def _shown(matches: Matches) -> tuple[tuple[str, ...], Integers, Unmatched]:
    """Names of keypoints, the place of each matched point's among them, and what else the targets show."""
    pairs = matches.pairs
    if pairs.keypoints is None or pairs.unmatched is None:
        raise MatchError("It is not known which keypoints the targets show: match again.")
    return *pairs.keypoints, pairs.unmatched


def kinds(
    matched: Matched, readout: str, alpha: float, partners: Partners, frame: PixelFrame | None = None
) -> NDArray[np.uint8]:
    """What became of each point: (N,), places in `KINDS`.

    Args:
        matched: The pairs, with all keypoints that their targets show, and what was predicted.
        readout: Whose predictions are meant.
        alpha: A fraction of theta.
        partners: Which keypoints are mirrored.
        frame: In which distances are measured, see `matcher.pck.distances`.

    Raises:
        MatchError: It is not known which keypoints the targets show.
    """
    matches = Matches.of(matched)
    pairs, own = matches.pairs, frame_of(readout)
    names, marks, others = _shown(matches)
    measured = distances(matches, readout, frame)
    found = np.where(measured.right(alpha), _place(Kind.RIGHT), _place(Kind.ELSEWHERE)).astype(np.uint8)
    found[(found > 0) & measured.right(2 * alpha)] = _place(Kind.NEAR)
    truths, beside = pairs.in_frame(own).target_points, others.in_frame(own)
    scale, reach = to_measured(pairs, own, frame), alpha * measured.thetas
    of_category = {place: partners(pairs.categories[place], names) for place in np.unique(pairs.category)}
    for row in np.unique(np.repeat(np.arange(len(pairs)), pairs.counts)[found == _place(Kind.ELSEWHERE)]):
        points, more = (slice(start, start + count) for start, count in (pairs.span(row), others.span(row)))
        shown = np.concatenate([truths[points], beside[more]]).astype(np.float64)
        named = [names[place] for place in (*marks[points], *others.keypoints[more])]
        wrong = np.flatnonzero(found[points] == _place(Kind.ELSEWHERE))
        predicted = matches.predictions[readout][points][wrong].astype(np.float64)
        away = np.linalg.norm((predicted[:, None] - shown) * scale[row], axis=2)  # (wrong, shown)
        away[np.arange(len(wrong)), wrong] = np.inf
        nearest = away.argmin(axis=1)
        apart = away[np.arange(len(wrong)), nearest]
        at_another = apart < reach[row] if pairs.strict else apart <= reach[row]
        partner = of_category[pairs.category[row]]
        for point, other in zip(wrong[at_another], nearest[at_another], strict=True):
            is_mirrored = partner.get(named[point]) == named[other]
            found[points.start + point] = _place(Kind.MIRRORED if is_mirrored else Kind.OTHER)
    return found


def shares(matched: Matched, found: NDArray[np.uint8]) -> Columns[dict[Kind, float]]:
    """Which share of all points, and of those of each category, is of each kind: fractions that sum to 1. found: see
    `kinds`."""
    pairs = Matches.of(matched).pairs
    of_point = np.repeat(pairs.category, pairs.counts)

    def share(own: NDArray[np.uint8]) -> dict[Kind, float]:
        return {kind: float((own == place).mean()) for place, kind in enumerate(KINDS)}

    by_category = {pairs.categories[place]: share(found[of_point == place]) for place in np.unique(pairs.category)}
    return Columns(share(found), by_category)


def geometry_aware(matched: Matched, groups: Groups) -> NDArray[np.bool_]:
    """Which points are geometry-aware, (N,), as GeoAware-SC defines it: of their group at least two keypoints are
    visible in the target, whether they are in the source or not. Raises `MatchError` where that is not known."""
    matches = Matches.of(matched)
    pairs = matches.pairs
    names, marks, others = _shown(matches)
    mask = np.zeros(len(marks), dtype=bool)
    of_category = {place: groups(pairs.categories[place], names) for place in np.unique(pairs.category)}
    for row in range(len(pairs)):
        points, more = (slice(start, start + count) for start, count in (pairs.span(row), others.span(row)))
        own = [names[place] for place in marks[points]]
        visible = {*own, *(names[place] for place in others.keypoints[more])}
        aware = {name for group in of_category[pairs.category[row]] if len(group & visible) > 1 for name in group}
        mask[points] = [name in aware for name in own]
    return mask
