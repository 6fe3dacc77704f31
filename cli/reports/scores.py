"""An evaluation's scores as its tables and charts take them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from cli.reports.page import Headline
from cli.reports.tables import Block
from featstore.pipeline.results import EvaluationRun
from matcher.pairs import ALL, Pairs
from matcher.pck import Average
from matcher.statistics import Interval, PckIntervals, pck_intervals

FEWEST_IMAGES = 20
"""For a figure in large type."""
UNIT = "PCK in percent [95 % interval]"


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """An evaluation with its intervals. readout, alpha: those of what can show only one. by_average: PCK as fractions
    with 95 % intervals, the average of the headline first."""

    run: EvaluationRun
    readout: str
    alpha: float
    by_average: Mapping[Average, Mapping[str, PckIntervals]]

    @classmethod
    def of(cls, run: EvaluationRun) -> Self:
        """Resample the images of a run."""
        scoring = run.scoring
        found = {
            average: pck_intervals(run.matched, scoring.readouts, scoring.alphas, average, scoring.pixels)
            for average in sorted(Average, key=lambda one: one is not run.average)
        }
        return cls(run, scoring.readouts[0], shown_alpha(scoring.alphas), found)

    @property
    def average(self) -> Average:
        """That of the headline."""
        return self.run.average

    @property
    def intervals(self) -> Mapping[str, PckIntervals]:
        """In the average of the headline."""
        return self.by_average[self.average]


def shown_alpha(alphas: Sequence[float]) -> float:
    """The alpha of what can show only one: 0.1, by which models are selected, else the middle one."""
    return 0.1 if 0.1 in alphas else alphas[len(alphas) // 2]


def spelled(interval: Interval) -> str:
    """`41.72 [39.10, 44.30]`, in percent."""
    # + 0.0: a zero that was rounded from below would be spelled -0.00
    mean, low, high = (round(100 * value, 2) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def pck_headline(label: str, pck: Interval, sentence: str, pairs: Pairs, of_interval: str = "") -> Headline:
    """A PCK with its interval and what that says; of too few images neither is in large type."""
    images = len({*pairs.grouped("source"), *pairs.grouped("target")})
    if images < FEWEST_IMAGES:
        words = f"These are {images} images, and fewer than {FEWEST_IMAGES} say little of how others would do."
        return Headline(label, "Too few images", f"{words} Of them: {sentence}")
    interval = f"95 % interval {100 * pck.low:.2f} to {100 * pck.high:.2f}"
    return Headline(label, f"{100 * pck.mean:.2f}", f"{sentence} {of_interval}".rstrip(), "%", interval)


def at_alphas(alphas: Iterable[float]) -> Iterator[str]:
    """The header of their columns."""
    return (f"@{alpha:g}" for alpha in alphas)


def overall_block(scored: Scored, average: Average) -> Block:
    """A row a readout, a column an alpha."""
    scoring, found = scored.run.scoring, scored.by_average[average]
    frames = {readout: f", {scoring.frame_of(readout).value} frame" for readout in found}
    several = len(set(frames.values())) > 1
    rows = tuple(
        (f"{readout}{frames[readout] if several else ''}", *(spelled(one.overall) for one in by_alpha.values()))
        for readout, by_alpha in found.items()
    )
    return Block(f"{average.value.capitalize()} average, {UNIT}", ("readout", *at_alphas(scoring.alphas)), rows)


def category_block(scored: Scored, readout: str) -> Block:
    """A row a category, `all` last."""
    matched, by_alpha = scored.run.matched, scored.intervals[readout]
    pairs = {**{name: int(own.sum()) for name, own in matched.pairs.occurring.items()}, ALL: len(matched)}
    columns = [own.named() for own in by_alpha.values()]
    rows = tuple((name, str(pairs[name]), *(spelled(own[name]) for own in columns)) for name in columns[0])
    title = f"{readout}, {scored.average.value} average, {UNIT}"
    return Block(title, ("category", "pairs", *at_alphas(by_alpha)), rows)
