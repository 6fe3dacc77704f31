"""Score every configuration of a grid, and say which is best and how sure that is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from matcher.configuration import Configuration, describe_layers, frame_of
from matcher.errors import MatchError
from matcher.maps import MapSource
from matcher.pairs import ALL, MatchingPair, Pairs
from matcher.pck import CSV_HEADER as PCK_HEADER
from matcher.pck import Average, Distances, PckTable, averaged, pair_weights, table_of, to_json
from matcher.pck import to_rows as pck_rows
from matcher.statistics import Interval, bootstrap_mean
from matcher.sweep import sweep

Hits = NDArray[np.uint16]
"""How many points of a pair were matched well enough: (configurations, readouts, alphas, pairs)."""


class Ledger(Protocol):
    """Where the hits of finished target images are kept, so that a grid that was stopped goes on."""

    def load(self, target: str) -> Hits | None:
        """(configurations, readouts, alphas, pairs into the target, in their order); None where it is not finished."""

    def save(self, target: str, hits: Hits) -> None:
        """Keep them."""


@dataclass(frozen=True, slots=True, eq=False)
class GridScores:
    """Hits of every configuration: (configurations, readouts, alphas, pairs)."""

    pairs: Pairs
    configurations: tuple[Configuration, ...]
    readouts: tuple[str, ...]
    alphas: tuple[float, ...]
    hits: Hits

    def pck(self, average: Average) -> NDArray[np.float64]:
        """Fractions over all pairs, (configurations, readouts, alphas)."""
        # one by one: as floats they take four times the memory
        return np.array([averaged(own, self.pairs.counts, self.pairs.category, average) for own in self.hits])

    def table(self, configuration: int) -> PckTable:
        """Of one configuration."""
        own = zip(self.readouts, self.hits[configuration], strict=True)
        return table_of(self.pairs, {readout: dict(zip(self.alphas, hits, strict=True)) for readout, hits in own})

    def of_pairs(self, configuration: int, readout: str, alpha: float) -> NDArray[np.float64]:
        """The PCK of each pair, (pairs,), fractions."""
        hits = self.hits[configuration, self.readouts.index(readout), self.alphas.index(alpha)]
        return np.asarray(hits / self.pairs.counts)

    def interval(self, configuration: int, readout: str, alpha: float, average: Average) -> Interval:
        """PCK and its 95 % interval, images resampled."""
        return self._interval(self.of_pairs(configuration, readout, alpha), average).within(0, 1)

    def difference(self, better: int, worse: int, readout: str, alpha: float, average: Average) -> Interval:
        """The paired difference of two configurations and its 95 % interval."""
        lead = self.of_pairs(better, readout, alpha) - self.of_pairs(worse, readout, alpha)
        return self._interval(lead, average).within(-1, 1)

    def _interval(self, values: NDArray[np.float64], average: Average) -> Interval:
        return bootstrap_mean(self.pairs, values, 0, pair_weights(self.pairs, average))


def score_grid(
    pairs: Sequence[MatchingPair],
    maps: MapSource,
    configurations: Sequence[Configuration],
    readouts: Sequence[str],
    alphas: Sequence[float],
    device: torch.device,
    ledger: Ledger | None = None,
    on_pairs: Callable[[int], None] = lambda _: None,
) -> GridScores:
    """Score every configuration and readout at every alpha. `on_pairs` is told how many more pairs are done.

    Target images that the ledger has finished are not matched again. Raises `MatchError` where there is no pair, and
    what `matcher.sweep.sweep` raises.
    """
    if not pairs:
        raise MatchError("There is no pair to score.")
    pairs = Pairs.of(pairs)
    hits = np.zeros((len(configurations), len(readouts), len(alphas), len(pairs)), dtype=np.uint16)
    remaining: list[int] = []
    for target, members in pairs.grouped("target").items():
        done = None if ledger is None else ledger.load(target)
        if done is None:
            remaining += members
        else:
            hits[..., members] = done
            on_pairs(len(members))
    left = pairs.take(remaining)
    for found in sweep(left, maps, configurations, readouts, device):
        members = [remaining[index] for index in found.members]
        counted = count_hits(pairs.take(members), found.predictions, readouts, alphas)
        hits[..., members] = counted
        if ledger is not None:
            ledger.save(pairs.images[pairs.target[members[0]]], counted)
        on_pairs(len(members))
    return GridScores(pairs, tuple(configurations), tuple(readouts), tuple(alphas), hits)


def count_hits(
    pairs: Sequence[MatchingPair], predictions: NDArray[np.float32], readouts: Sequence[str], alphas: Sequence[float]
) -> Hits:
    """From predictions (configurations, readouts, points of all pairs in turn, 2) in pixels of each readout's frame."""
    pairs = Pairs.of(pairs)
    hits = np.empty((len(predictions), len(readouts), len(alphas), len(pairs)), dtype=np.uint16)
    for column, readout in enumerate(readouts):
        truth = pairs.in_frame(frame_of(readout))
        away = predictions[:, column].astype(np.float64) - truth.target_points.astype(np.float64)
        apart = np.hypot(away[..., 0], away[..., 1])  # (configurations, points)
        found = Distances(apart, truth.theta, pairs.counts, pairs.strict)
        for row, alpha in enumerate(alphas):
            hits[:, column, row] = found.hits(alpha)
    return hits


@dataclass(frozen=True, slots=True)
class Winner:
    """The best configuration for a readout and alpha. best, second: indices of configurations; second and lead are None
    where there is only one. pck: of the best. lead: its paired difference to the second. Intervals of 95 %, images
    resampled, which do not know that the best was chosen among many."""

    readout: str
    alpha: float
    best: int
    pck: Interval
    second: int | None
    lead: Interval | None


def winners(scores: GridScores, average: Average) -> tuple[Winner, ...]:
    """One a readout and alpha; of equal ones the first."""
    found = []
    for readout, alpha, pck in _columns(scores, average):
        order = np.argsort(-pck, kind="stable")
        best, second = int(order[0]), int(order[1]) if len(order) > 1 else None
        lead = None if second is None else scores.difference(best, second, readout, alpha, average)
        found.append(Winner(readout, alpha, best, scores.interval(best, readout, alpha, average), second, lead))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether layers together beat the best single one, for a readout and alpha. together, alone: indices of the best
    configurations; pck_together, pck_alone: theirs. lead: their paired difference. Intervals as a `Winner` has them."""

    readout: str
    alpha: float
    together: int
    alone: int
    pck_together: Interval
    pck_alone: Interval
    lead: Interval


def answers(scores: GridScores, average: Average) -> tuple[Answer, ...]:
    """One a readout and alpha, of equal configurations the first; none where the grid lacks either kind.

    Together are configurations in which two layers or more weigh something. A layer beside others of weight 0 is of
    neither kind: it is alone, but in the cells of the finest.
    """
    together = [index for index, entry in enumerate(scores.configurations) if entry.weighing > 1]
    alone = [index for index, entry in enumerate(scores.configurations) if len(entry.layers) == 1]
    found = []
    for readout, alpha, pck in _columns(scores, average) if together and alone else ():
        first, second = (own[int(np.argmax(pck[own]))] for own in (together, alone))
        reached, single = (scores.interval(index, readout, alpha, average) for index in (first, second))
        lead = scores.difference(first, second, readout, alpha, average)
        found.append(Answer(readout, alpha, first, second, reached, single, lead))
    return tuple(found)


def _columns(scores: GridScores, average: Average) -> Iterator[tuple[str, float, NDArray[np.float64]]]:
    """Readouts, alphas, and the PCK of all configurations, (configurations,)."""
    pck = scores.pck(average)
    for column, readout in enumerate(scores.readouts):
        for row, alpha in enumerate(scores.alphas):
            yield readout, alpha, pck[:, column, row]


def describe(configuration: Configuration) -> dict[str, Any]:
    """What a configuration is, by the names that `dualsd eval --json` uses."""
    settings = configuration.settings
    return {
        **describe_layers(configuration.layers),
        "geometry": settings.geometry.value,
        "upsample": settings.upsample,
        "upsample_align": settings.upsample_align.value,
    }


def to_dictionaries(scores: GridScores) -> list[dict[str, Any]]:
    """A dictionary a configuration, `results` as `dualsd eval --json` writes them: fractions."""
    described = map(describe, scores.configurations)
    return [{**about, "results": to_json(scores.table(index))} for index, about in enumerate(described)]


CSV_HEADER = ("layers", "t", "weights", "geometry", "upsample", "upsample_align", *PCK_HEADER)


def to_rows(scores: GridScores) -> Iterator[tuple[str, ...]]:
    """One row a number over all pairs, in the order of `CSV_HEADER`; several layers are joined by `+`."""
    for index, configuration in enumerate(scores.configurations):
        layers, steps, weights, *settings = describe(configuration).values()
        several = layers, ("" if step is None else step for step in steps), (f"{weight:g}" for weight in weights)
        own = (*("+".join(map(str, column)) for column in several), *map(str, settings))
        yield from ((*own, *row) for row in pck_rows(scores.table(index)) if row[3] == ALL)


@dataclass(frozen=True, slots=True, eq=False)
class TimestepMap:
    """A number a pair of timesteps of two layers: values (rows, columns), the first layer's timesteps down, the
    second's across; NaN where the grid has no such configuration."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: NDArray[np.float64]


def timestep_map(scores: GridScores, like: Configuration, values: NDArray[np.float64]) -> TimestepMap:
    """`values` (configurations,) over the timesteps of the configurations that have the two layers, the weights and the
    settings of one of them."""
    members = {entry.timesteps: index for index, entry in enumerate(scores.configurations) if entry.is_like(like)}
    rows, columns = (tuple(sorted(set(steps))) for steps in zip(*members, strict=True))
    table = [[values[members[row, one]] if (row, one) in members else np.nan for one in columns] for row in rows]
    return TimestepMap(rows, columns, np.array(table))
