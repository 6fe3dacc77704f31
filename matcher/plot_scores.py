"""Pictures of scores alone: PCK over alpha, bars with intervals, and learning curves. Narrow, so that a telephone shows
them whole. Nothing is drawn on a background; matplotlib is imported only when a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
GRID = "#e6e6e6"
_WIDTH = 5.6
"""Of every picture, in inches."""
_FONT = 11
_SMALL = 10


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One readout's PCK in 0..100, (A,), over alphas (A,), fractions of theta in rising order."""

    name: str
    alphas: Floats
    percent: Floats


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: PCK and its 95 % interval in 0..100. group: a heading over the bars that share it; empty for none."""

    name: str
    percent: float
    low: float
    high: float
    group: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """A training's course. steps, loss: (S,). validated: steps, (V,), at which PCK (V,) in 0..100 was measured."""

    steps: NDArray[np.integer[Any]]
    loss: Floats
    validated: NDArray[np.integer[Any]]
    percent: Floats


def curve_figure(curves: Sequence[Curve], marked: float) -> Figure:
    """PCK against alpha, a line each, told apart by colour and dashes. marked: the alpha at which a line stands."""
    figure, (axes,) = _figure(3.6, 1)
    axes.axvline(marked, color="#888888", lw=1, ls=(0, (2, 3)))
    for index, curve in enumerate(curves):
        colour, dashes = COLOURS[index % len(COLOURS)], _DASHES[index % len(_DASHES)]
        axes.plot(curve.alphas, curve.percent, ls=dashes, color=colour, lw=2, label=curve.name)
    last = float(max(curve.alphas[-1] for curve in curves))
    axes.set_xlim(0, last * 1.02)
    ticks = np.linspace(0, last, 5)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, _ceiling(max(float(curve.percent.max()) for curve in curves)))
    axes.set_xlabel("alpha, as a fraction of theta", fontsize=_FONT)
    axes.set_ylabel("PCK in percent", fontsize=_FONT)
    legend = axes.legend(loc="upper left", fontsize=_SMALL, frameon=False, handlelength=2.6)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def bar_figure(bars: Sequence[Bar], line: float) -> Figure:
    """Horizontal bars from the top, each with its interval as a whisker and its number beside it. line: a PCK to hold
    them against, in 0..100."""
    heights: list[float] = []
    headings: list[tuple[float, str]] = []
    place = 0.0
    for group, members in groupby(bars, lambda bar: bar.group):
        if group:
            headings.append((place + 0.1, group))
            place += 0.9
        for _ in members:
            heights.append(place)
            place += 1
        place += 0.35 if group else 0
    figure, (axes,) = _figure(0.55 + 0.27 * place, 1)
    axes.grid(visible=False, axis="y")
    axes.barh(heights, [bar.percent for bar in bars], height=0.68, color=COLOURS[0])
    axes.axvline(line, color="#888888", lw=1, ls=(0, (2, 3)))
    most = max(max(bar.percent, bar.high) for bar in bars)
    for height, bar in zip(heights, bars, strict=True):
        axes.plot([bar.low, bar.high], [height, height], color=COLOURS[1], lw=1.6, solid_capstyle="butt")
        end = max(bar.percent, bar.high) + 0.015 * most
        axes.text(end, height, f"{bar.percent:.1f}", va="center", ha="left", fontsize=_SMALL)
    for height, group in headings:
        axes.text(0, height, group, va="center", ha="left", fontsize=_SMALL, weight="bold", parse_math=False)
    axes.set_yticks(heights, [bar.name for bar in bars], fontsize=_FONT, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.45, -0.55)
    axes.set_xlim(0, most * 1.14 or 1)
    axes.set_xlabel("PCK in percent", fontsize=_FONT)
    return figure


def learning_figure(course: Learning) -> Figure:
    """The loss of every step with its running mean, and under it PCK on validation, the best ringed."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = _figure(4.6, 2 if len(course.validated) else 1)
    loss = panels[0]
    loss.plot(course.steps, course.loss, color=COLOURS[0], lw=0.8, alpha=0.4)
    loss.plot(course.steps, running_mean(course.loss), color=COLOURS[0], lw=2)
    loss.set_ylabel("loss", fontsize=_FONT)
    if len(course.validated):
        below = panels[1]
        best = int(np.argmax(course.percent))
        below.plot(course.validated, course.percent, "o-", color=COLOURS[1], ms=4, lw=2)
        ringed = (course.validated[best], course.percent[best])
        below.plot(*ringed, "o", ms=12, mfc="none", mec=COLOURS[1], mew=1.6)
        below.margins(y=0.2)
        below.set_ylabel("PCK@0.1 in percent", fontsize=_FONT)
        below.sharex(loss)
        loss.tick_params(labelbottom=False)
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    panels[-1].set_xlabel("step", fontsize=_FONT)
    return figure


def running_mean(values: Floats) -> NDArray[np.float64]:
    """The mean of each value and those before it, a twentieth of all
    and at least five: (S,) to (S,)."""
    reach = max(len(values) // 20, 5)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - reach, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _ceiling(percent: float) -> float:
    """A round number over the largest."""
    return min(100.0, 10 * np.ceil((percent + 4) / 10))


def _figure(height: float, rows: int) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` empty panels, one under the other. height: in inches."""
    from matplotlib.figure import Figure

    figure = Figure((_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    grid = list(figure.subplots(rows, 1, squeeze=False).flat)
    for axes in grid:
        axes.patch.set_visible(False)
        axes.tick_params(labelsize=_SMALL)
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, grid
