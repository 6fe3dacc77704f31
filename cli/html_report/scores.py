"""An evaluation's scores as tables and charts."""

from collections.abc import Mapping, Sequence

import numpy as np

from cli.html_report.drawing import inline_svg
from cli.html_report.page import Chart
from cli.table_text import Block
from matcher.pairs import Frame
from matcher.pck import Average, Columns, PckTable
from matcher.plot_scores import Bar, Curve, bar_figure, curve_figure
from matcher.statistics import Interval, PckIntervals

CURVE_ALPHAS = tuple(number / 100 for number in range(1, 21))
LONGEST_NAME = 22
"""Of a bar, in letters: a longer one would leave no room for the bar."""


def spelled(interval: Interval) -> str:
    """`41.72 [39.10, 44.30]`, in percent."""
    # + 0.0: a zero that was rounded from below would be spelled -0.00
    mean, low, high = (round(100 * value, 2) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def overall_block(found: Mapping[str, PckIntervals], average: Average, frames: Mapping[str, Frame]) -> Block:
    """A row a readout, a column an alpha."""
    alphas = list(next(iter(found.values())))
    several = len(set(frames.values())) > 1
    rows = tuple(
        (
            f"{readout}, {frames[readout].value} frame" if several else readout,
            *(spelled(by_alpha[alpha].overall) for alpha in alphas),
        )
        for readout, by_alpha in found.items()
    )
    title = f"{average.value.capitalize()} average, PCK in percent [95 % interval]"
    return Block(title, ("readout", *(f"@{alpha:g}" for alpha in alphas)), rows)


def category_block(readout: str, found: PckIntervals, pairs: Mapping[str, int], average: Average) -> Block:
    """A row a category, `all` last. pairs: how many each has."""
    columns = [own.named() for own in found.values()]
    rows = tuple((name, str(pairs[name]), *(spelled(own[name]) for own in columns)) for name in columns[0])
    title = f"{readout}, {average.value} average, PCK in percent [95 % interval]"
    return Block(title, ("category", "pairs", *(f"@{alpha:g}" for alpha in found)), rows)


def curve_block(table: PckTable, average: Average) -> Block:
    """The curves' points: a row an alpha, a column a readout."""
    rows = tuple(
        (f"{alpha:g}", *(f"{100 * by_average[average][alpha].overall:.2f}" for by_average in table.values.values()))
        for alpha in CURVE_ALPHAS
    )
    header = ("alpha", *(readout for readout in table.values))
    return Block(f"The curve's points, PCK in percent, {average.value} average", header, rows)


def curve_chart(table: PckTable, average: Average, marked: float) -> Chart:
    """PCK over alpha, a line a readout, over all pairs."""
    curves = [
        Curve(
            readout,
            np.array(CURVE_ALPHAS),
            np.array([100 * by_average[average][alpha].overall for alpha in CURVE_ALPHAS]),
        )
        for readout, by_average in table.values.items()
    ]
    ends = ", ".join(f"{curve.name} from {curve.percent[0]:.1f} to {curve.percent[-1]:.1f}" for curve in curves)
    return Chart(
        inline_svg(curve_figure(curves, marked), "curve"),
        f"PCK in percent against alpha from 0.01 to 0.2: {ends}.",
        f"PCK against alpha from 0.01 to 0.2, {average.value} average, all pairs. The dotted line is at {marked:g}. "
        "A curve that starts high is precise; one that only ends high finds the right part, but not the spot.",
    )


def category_chart(readout: str, found: Columns[Interval], alpha: float) -> Chart:
    """Bars a category, with all pairs as the dotted line."""
    bars = [bar(name, interval) for name, interval in found.by_category.items()]
    values = ", ".join(f"{name} {100 * interval.mean:.1f}" for name, interval in found.named().items())
    return Chart(
        inline_svg(bar_figure(bars, 100 * found.overall.mean), "categories"),
        f"PCK@{alpha:g} in percent by category: {values}.",
        f"PCK@{alpha:g} by category, {readout}; orange: 95 % intervals, dotted: all pairs.",
    )


def bar(name: str, interval: Interval, group: str = "") -> Bar:
    """One of percent."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return Bar(short, 100 * interval.mean, 100 * interval.low, 100 * interval.high, group)


def shown_alpha(alphas: Sequence[float]) -> float:
    """The alpha of what can show only one: 0.1, by which models are selected, else the middle one."""
    return 0.1 if 0.1 in alphas else alphas[len(alphas) // 2]
