"""PCK with 95 % intervals, images resampled: of every readout and alpha, over all pairs and by category."""

from collections.abc import Mapping, Sequence

import numpy as np

from matcher.bootstrap import Interval, bootstrap
from matcher.pairs import PixelFrame
from matcher.pck import Average, Columns, MatchedPair, distances
from matcher.readout import Readout
from matcher.spread import graphs_of

SEED = 0

PckIntervals = Mapping[float, Columns[Interval]]
"""Fractions by alpha."""


def pck_intervals(
    matched: Sequence[MatchedPair],
    readouts: Sequence[Readout],
    alphas: Sequence[float],
    average: Average,
    frame: PixelFrame | None = None,
) -> dict[Readout, PckIntervals]:
    """Of `readouts` at `alphas`, each in its own frame or all in `frame`: see `matcher.pck.distances`. The means are
    those of `matcher.pck.tabulate`. Raises `MatchError` where there is no pair."""
    measured = [distances(matched, readout, frame) for readout in readouts]
    values = np.array([found.hits(alpha) / found.counts for found in measured for alpha in alphas])  # (values, pairs)
    sizes = measured[0].counts.astype(np.float64) if average is Average.POINT else None
    graphs = graphs_of([match.pair for match in matched], sizes)
    over_all, of_each = bootstrap(graphs, values, SEED)

    def columns(value: int) -> Columns[Interval]:
        own = {graph.category: found[value].within(0, 1) for graph, found in zip(graphs, of_each, strict=True)}
        return Columns(over_all[value].within(0, 1), own)

    return {
        readout: {alpha: columns(place * len(alphas) + row) for row, alpha in enumerate(alphas)}
        for place, readout in enumerate(readouts)
    }
