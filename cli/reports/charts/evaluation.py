"""The charts of an evaluation: PCK over alpha, a line a readout; and PCK of groups of pairs as bars with intervals, by
category and by how hard a dataset says its pairs are, as SPair-71k does: by viewpoint, scale, truncation and
occlusion."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure

from cli.reports.charts import COLOURS, FONT, PERCENT, SMALL, as_typed, canvas
from cli.reports.page import Chart
from cli.reports.scores import UNIT, Scored, at_alphas, category_block, spelled
from cli.reports.tables import Block
from matcher.pck import Matches
from matcher.statistics import Interval, pck_intervals

ALPHAS = tuple(number / 100 for number in range(1, 21))
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

LONGEST_NAME = 22
"""Of a bar, in letters: a longer one would leave no room for the bar."""
_VARIED, _HIDDEN = ("easy", "medium", "hard"), ("none", "source", "target", "both")
LEVELS = {"viewpoint": _VARIED, "scale": _VARIED, "truncation": _HIDDEN, "occlusion": _HIDDEN}
"""SPair-71k's words for 0, 1 and so on."""


def over_alpha(scored: Scored) -> Chart:
    """Lines told apart by colour and dashes; a dotted one stands at the alpha of the headline."""
    average = scored.average
    curves = {
        readout: np.array([100 * by_average[average][alpha].overall for alpha in ALPHAS])
        for readout, by_average in scored.run.scored(alphas=ALPHAS).pck.items()
    }
    figure, (axes,) = canvas(3.6)
    axes.axvline(scored.alpha, color="#888888", lw=1, ls=(0, (2, 3)))
    for (name, percent), colour, dashes in zip(curves.items(), cycle(COLOURS), cycle(_DASHES), strict=False):
        axes.plot(ALPHAS, percent, ls=dashes, color=colour, lw=2, label=name)
    axes.set(xlim=(0, 1.02 * ALPHAS[-1]), ylim=(0, None), xlabel="alpha, as a fraction of theta", ylabel=PERCENT)
    as_typed(axes.legend(loc="upper left", fontsize=SMALL, frameon=False, handlelength=2.6))
    rows = tuple(
        (f"{alpha:g}", *(f"{percent[row]:.2f}" for percent in curves.values())) for row, alpha in enumerate(ALPHAS)
    )
    title = f"The curve's points, PCK in percent, {average.value} average"
    ends = ", ".join(f"{name} from {percent[0]:.1f} to {percent[-1]:.1f}" for name, percent in curves.items())
    return Chart(
        figure,
        f"PCK in percent against alpha from 0.01 to 0.2: {ends}.",
        f"PCK against alpha from 0.01 to 0.2, {average.value} average, all pairs. The dotted line is at "
        f"{scored.alpha:g}. A curve that starts high is precise; one that only ends high finds the right part, but not "
        "the spot.",
        [Block(title, ("alpha", *curves), rows, folded=True)],
    )


def by_category(scored: Scored) -> Chart:
    """Bars a category, with all pairs as the dotted line."""
    readout, alpha = scored.readout, scored.alpha
    found = scored.intervals[readout][alpha]
    return Chart(
        _bars(list(found.by_category.items()), found.overall),
        f"PCK@{alpha:g} in percent by category: {_said(list(found.named().items()))}.",
        f"PCK@{alpha:g} by category, {readout}; orange: 95 % intervals, dotted: all pairs.",
        [replace(category_block(scored, one), folded=one is not readout) for one in scored.intervals],
    )


def by_difficulty(scored: Scored) -> Chart | None:
    """Bars a level of each flag; None where a pair has no flags."""
    readout, alpha, scoring = scored.readout, scored.alpha, scored.run.scoring
    bars, rows = [], []
    for flag, level, own in _levels(scored.run.matched):
        found = pck_intervals(own, [readout], scoring.alphas, scored.average, scoring.pixels)[readout]
        bars.append((f"{flag}: {level}", found[alpha].overall))
        rows.append((flag, level, str(len(own)), *(spelled(columns.overall) for columns in found.values())))
    if not rows:
        return None
    header = ("variation", "level", "pairs", *at_alphas(scoring.alphas))
    title = f"{readout}, {scored.average.value} average, {UNIT}"
    return Chart(
        _bars(bars, scored.intervals[readout][alpha].overall),
        f"PCK@{alpha:g} in percent by difficulty: {_said(bars)}.",
        f"PCK@{alpha:g} by the dataset's own marks of difficulty, {readout}; orange: 95 % intervals, dotted: "
        "all pairs. A pair has a level of each of them.",
        [Block(title, header, tuple(rows), left_columns=2)],
    )


def _levels(matched: Matches) -> Iterator[tuple[str, str, Matches]]:
    """Every flag and level that occurs, with its pairs; none where a pair has no flags."""
    flags = matched.pairs.flags or {}
    for flag in sorted(flags, key=lambda name: [*LEVELS, name].index(name)):
        words = LEVELS.get(flag, ())
        for value in np.unique(flags[flag]).tolist():
            yield flag, words[value] if value < len(words) else f"level {value}", matched.take(flags[flag] == value)


def _said(bars: Sequence[tuple[str, Interval]]) -> str:
    return ", ".join(f"{name.replace(':', '')} {100 * interval.mean:.1f}" for name, interval in bars)


def _bars(bars: Sequence[tuple[str, Interval]], line: Interval) -> Figure:
    """Horizontal bars from the top, each with its interval as a whisker and its number beside it.

    Args:
        bars: Names, and PCK as fractions.
        line: A PCK to hold them against.
    """
    means, lows, highs = 100 * np.array([(one.mean, one.low, one.high) for _, one in bars]).T
    figure, (axes,) = canvas(0.55 + 0.27 * len(bars))
    whiskers, spread = {"ecolor": COLOURS[1], "elinewidth": 1.6}, (means - lows, highs - means)
    drawn = axes.barh(range(len(bars)), means, 0.68, color=COLOURS[0], xerr=spread, error_kw=whiskers)
    axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=SMALL)
    axes.axvline(100 * line.mean, color="#888888", lw=1, ls=(0, (2, 3)))
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name, _ in bars]
    axes.set_yticks(range(len(bars)), names, fontsize=FONT, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlim=(0, highs.max() * 1.14 or 1), ylim=(len(bars) - 0.45, -0.55), xlabel=PERCENT)
    return figure
