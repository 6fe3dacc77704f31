"""Why matches are wrong, as tables."""

import numpy as np
from numpy.typing import NDArray

from cli.reports.tables import Block
from featstore.pipeline.misses import Misses, in_words
from matcher.misses import KINDS
from matcher.pck import Average

READING = (
    "Right: within alpha theta of the truth. Near: within 2 alpha theta. Another keypoint: else within alpha theta of "
    "one that the target shows; mirrored: of these, the one on the other side. Elsewhere: the rest."
)


def misses_block(misses: Misses, readout: str, alpha: float) -> Block:
    """A row per category, `all` last."""
    found = {name: in_words(own, misses.has_sides) for name, own in misses.shares[readout][alpha].named().items()}
    rows = tuple(
        (name, *("unknown" if value is None else f"{100 * value:.2f}" for value in own.values()))
        for name, own in found.items()
    )
    header = ("category", "right", "near", "another keypoint", "of it mirrored", "elsewhere")
    return Block(f"What became of the points at {alpha:g}, {readout}, percent of all points", header, rows)


def aware_block(misses: Misses) -> Block | None:
    """PCK of the geometry-aware points, a row per readout and alpha; None where there is none."""
    if misses.aware is None:
        return None
    rows = tuple(
        (readout, f"{alpha:g}", *(f"{100 * pck[average][alpha].overall:.2f}" for average in Average))
        for readout, pck in misses.aware.values.items()
        for alpha in pck.image
    )
    title = f"PCK in percent of the {misses.aware_points} geometry-aware points, which {misses.aware_pairs} pairs have"
    return Block(title, ("readout", "alpha", *(average.value for average in Average)), rows, left_columns=2)


def repairs_block(found: NDArray[np.int64], letter: str, alpha: float) -> Block:
    """A row per kind in the first run, a column per kind in the other."""
    rows = tuple(
        (kind.value, str(int(own.sum())), *(f"{100 * count / max(own.sum(), 1):.2f}" for count in own))
        for kind, own in zip(KINDS, found, strict=True)
    )
    title = f"What A's points at {alpha:g} are in {letter}, percent of each row"
    return Block(title, ("in A", "points", *(f"{kind.value} in {letter}" for kind in KINDS)), rows)
