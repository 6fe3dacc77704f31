"""Two runs over the same pairs: their PCK, the difference, how sure it is, and whether it is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matcher.bootstrap import Interval, Intervals, bootstrap
from matcher.errors import MatchError
from matcher.pairs import MatchingPair
from matcher.pck import Average, Columns, Distances, averaged
from matcher.permutation import permutation_test
from matcher.spread import Floats, graphs_of

SEED = 0
"""Of resamples and flips: the same two runs are compared alike whenever that is."""


@dataclass(frozen=True, slots=True)
class Difference:
    """first, second: PCK of either run. lead: second - first with its 95 % interval, images resampled (see
    `matcher.bootstrap`). p: of a two-sided permutation test (see `matcher.permutation`). All but p in fractions."""

    first: float
    second: float
    lead: Interval
    p: float


def compare(
    pairs: Sequence[MatchingPair], first: Distances, second: Distances, alphas: Sequence[float], average: Average
) -> dict[float, Columns[Difference]]:
    """By alpha.

    first, second: over `pairs`, in their order. Raises `MatchError` where there is no pair, or the points differ.
    """
    counts = first.counts
    if len(pairs) != len(counts) or not np.array_equal(counts, second.counts):
        raise MatchError("Runs can be compared only over the same pairs with the same points.")
    graphs = graphs_of(pairs, counts.astype(np.float64) if average is Average.POINT else None)
    hits = [np.array([run.hits(alpha) for alpha in alphas]) for run in (first, second)]  # (alphas, pairs) each
    values = (hits[1] - hits[0]) / counts
    leads, lead_of_each = bootstrap(graphs, values, SEED)
    p, p_of_each = permutation_test(graphs, values, SEED)
    # in the order of the pairs, as a table is made: sums are the same to the last bit
    everyone = np.arange(len(pairs))

    def difference(row: int, own: NDArray[np.int64], intervals: Intervals, chances: Floats) -> Difference:
        one, other = (float(averaged(run[row, own], counts[own], average)) for run in hits)
        return Difference(one, other, intervals[row].within(-1, 1), float(chances[row]))

    return {
        alpha: Columns(
            difference(row, everyone, leads, p),
            {
                graph.category: difference(row, np.sort(graph.pairs), lead, chances)
                for graph, lead, chances in zip(graphs, lead_of_each, p_of_each, strict=True)
            },
        )
        for row, alpha in enumerate(alphas)
    }
