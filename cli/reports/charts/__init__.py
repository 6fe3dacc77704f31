"""The charts of reports and what they share. A chart is a function from a result to a `Chart`, or to None
where the result has nothing for it; the page's module lists those of its kind of report under the titles of their
sections."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from cli.reports.page import Chart, Part

Result = TypeVar("Result")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
PERCENT = "PCK in percent"
FONT, SMALL = 11, 10
"""Sizes in points."""
_WIDTH = 5.6
"""In inches: narrow, so that a telephone shows the whole chart."""


def chart_sections(charts: Mapping[str, Callable[[Result], Chart | None]], result: Result) -> dict[str, list[Part]]:
    """Those that have something to show, as sections of a page. charts: by the titles of their sections."""
    found = ((title, draw(result)) for title, draw in charts.items())
    return {title: [chart, *chart.tables] for title, chart in found if chart is not None}


def canvas(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure without a background. height: in inches. rows: of empty panels, one under the other."""
    figure = Figure((_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    grid = list(figure.subplots(rows, 1, squeeze=False).flat)
    for axes in grid:
        axes.patch.set_visible(False)
        axes.tick_params(labelsize=SMALL)
        axes.xaxis.label.set_size(FONT)
        axes.yaxis.label.set_size(FONT)
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def as_typed(legend: Legend) -> None:
    """Names in a legend are no formulas, whatever dollars are in them."""
    for text in legend.get_texts():
        text.set_parse_math(False)
