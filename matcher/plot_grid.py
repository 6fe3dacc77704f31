"""Pictures over diffusion timesteps: accuracy lines of layers, and heat maps over the timesteps of two layers.
`accuracy_figure` and `heat_map_figure` build, `draw_*` save; matplotlib is imported only when a picture is drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

MAXIMUM = "_maximum"
"""The artists' label of a mark on a maximum; the underscore keeps it out of legends."""
NOT_COMPUTED = "#bdbdbd"
"""The grey of cells that are NaN."""
CELLS_WITH_VALUES = 12
"""Maps of at most so many rows and columns have their values written in the cells."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
_MARKERS = "os^DvPX"
_PERCENT = "PCK in percent"
_LARGE, _MEDIUM, _SMALL = 15, 13, 11  # font sizes in points
_DPI = 120


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyLine:
    """One decoder layer's accuracy. All arrays (T,), in any order; PCK and its 95 % interval in 0..100, NaN where not
    computed; timesteps in 0..1000, each once."""

    name: str
    timesteps: Integers
    percent: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyPanel:
    """One panel, usually an alpha: its name, as "PCK@0.1", and its lines. A name has one colour in all panels."""

    name: str
    lines: Sequence[AccuracyLine]


@dataclass(frozen=True, slots=True, eq=False)
class HeatPanel:
    """One map, usually an alpha: PCK (rows, columns) in 0..100, NaN where not computed, over timesteps (rows,) and
    (columns,) in 0..1000. The first row is drawn at the bottom."""

    name: str
    percent: Floats
    row_timesteps: Integers
    column_timesteps: Integers
    row_label: str
    column_label: str


def draw_accuracy(file: Path, panels: Sequence[AccuracyPanel], title: str) -> None:
    """Writes `accuracy_figure` to `file` in the format that its ending names."""
    accuracy_figure(panels, title).savefig(file)


def draw_heat_maps(file: Path, panels: Sequence[HeatPanel], title: str) -> None:
    """Writes `heat_map_figure` to `file` in the format that its ending names."""
    heat_map_figure(panels, title).savefig(file)


def accuracy_figure(panels: Sequence[AccuracyPanel], title: str) -> Figure:
    """Accuracy against timestep, a panel each, side by side and at most three a row; a line a layer with its 95 %
    interval as a light band, its maximum ringed and written beside it."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    figure, grid = _figure(len(panels), (5.0, 4.3), 3, title, 0.8)
    for axes, panel in zip(grid, panels, strict=True):
        axes.set_title(panel.name, fontsize=_MEDIUM, parse_math=False)
        for line in panel.lines:
            _draw_line(axes, line, names.index(line.name))
        _set_ranges(axes, np.unique(np.concatenate([line.timesteps for line in panel.lines])))
    figure.supxlabel("timestep t (of 1000)", fontsize=_MEDIUM)
    figure.supylabel(_PERCENT, fontsize=_MEDIUM)
    handles = {line.get_label(): line for axes in grid for line in axes.lines if line.get_label() != MAXIMUM}
    legend = figure.legend(list(handles.values()), names, loc="outside right center", fontsize=_SMALL + 1)
    for text in legend.get_texts():
        text.set_parse_math(False)
    for axes, panel in zip(grid, panels, strict=True):
        for line in panel.lines:
            _write_maximum(axes, line, _COLOURS[names.index(line.name) % len(_COLOURS)])
    return figure


def heat_map_figure(panels: Sequence[HeatPanel], title: str) -> Figure:
    """PCK over the timesteps of two layers, a panel each with its own colour bar, the maximum outlined; values are
    written in maps of at most 12 x 12 cells, and cells that are NaN are grey."""
    rows, columns = (max(panel.percent.shape[axis] for panel in panels) for axis in (0, 1))
    most = max(rows, columns)
    cell = float(np.clip(4 / most, 0.54, 1.3)) if most <= CELLS_WITH_VALUES else max(4.6 / most, 0.1)  # inches
    width, height = max(columns * cell + 2.1, 4.0), max(rows * cell + 1.2, 3.0)
    figure, grid = _figure(len(panels), (width, height), int(20.5 / width), title, 0.1)
    for axes, panel in zip(grid, panels, strict=True):
        _draw_map(axes, panel)
    return figure


def _figure(
    count: int, size: tuple[float, float], most_columns: int, title: str, margin: float
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` empty panels of about `size` (width, height), in at most three columns and in rows about
    equally full; `margin` is added to the width. All in inches."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / min(max(most_columns, 1), 3))
    columns = math.ceil(count / rows)
    width = size[0] * columns + margin
    title = textwrap.fill(title, int(width * 72 / (_LARGE * 0.6)))
    figure = Figure((width, size[1] * rows + 0.3 * (1 + title.count("\n"))), _DPI, layout="constrained")
    figure.suptitle(title, fontsize=_LARGE, parse_math=False)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for index, axes in enumerate(grid):
        axes.tick_params(labelsize=_SMALL)
        if index >= count:
            axes.remove()
    return figure, grid[:count]


def _draw_line(axes: Axes, line: AccuracyLine, index: int) -> None:
    order = np.argsort(line.timesteps)
    timesteps, low, high = line.timesteps[order], line.low[order], line.high[order]
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    if len(order) == 1:  # a band of no width would not be seen
        axes.vlines(timesteps, low, high, color=colour, alpha=0.25, lw=7)
    else:
        axes.fill_between(timesteps, low, high, color=colour, alpha=0.15, lw=0)
    style = "" if len(order) == 1 else "-" if index < len(_COLOURS) else "--"
    axes.plot(timesteps, line.percent[order], style, marker=marker, color=colour, ms=6, lw=2, label=line.name)
    for maximum in _maximum(line):
        axes.plot(*maximum, "o", ms=14, mfc="none", mec=colour, mew=2, label=MAXIMUM)


def _set_ranges(axes: Axes, timesteps: Integers) -> None:
    """Sets ranges, ticks and grid lines for sorted timesteps (T,)."""
    span = float(timesteps[-1] - timesteps[0]) or 600.0
    axes.set_xlim(timesteps[0] - 0.08 * span, timesteps[-1] + 0.08 * span)
    if np.diff(timesteps, prepend=-math.inf).min() >= 0.09 * span:  # else matplotlib's round numbers
        axes.set_xticks(timesteps)
    axes.margins(y=0.18)
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if max(bottom, 0) <= tick <= min(top, 100)])
    axes.set_ylim(bottom, top)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def _maximum(line: AccuracyLine) -> list[tuple[int, float]]:
    """The timestep and accuracy of the line's maximum; empty if the line has no number at all."""
    if not np.isfinite(line.percent).any():
        return []
    best = int(np.nanargmax(line.percent))
    return [(int(line.timesteps[best]), float(line.percent[best]))]


def _write_maximum(axes: Axes, line: AccuracyLine, colour: str) -> None:
    """The maximum's value and timestep above its ring, on a white edge that keeps it readable over other lines."""
    from matplotlib.colors import to_rgb
    from matplotlib.patheffects import withStroke

    for timestep, percent in _maximum(line):
        left, right = axes.get_xlim()
        share = (timestep - left) / (right - left)
        axes.annotate(
            f"{percent:.1f} at t={timestep}",
            (timestep, percent),
            (0, 11),
            textcoords="offset points",
            ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
            va="bottom",
            fontsize=_SMALL,
            color=tuple(0.65 * part for part in to_rgb(colour)),
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )


def _draw_map(axes: Axes, panel: HeatPanel) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows, columns = panel.percent.shape
    palette = colormaps["viridis"].with_extremes(bad=NOT_COMPUTED)
    image = axes.imshow(np.ma.masked_invalid(panel.percent), cmap=palette, origin="lower", aspect="equal")
    axes.set_title(panel.name, fontsize=_MEDIUM, parse_math=False)
    _set_ticks(axes, panel)
    axes.set_xlabel(panel.column_label, fontsize=_MEDIUM)
    axes.set_ylabel(panel.row_label, fontsize=_MEDIUM)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(_PERCENT, fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    if max(rows, columns) <= CELLS_WITH_VALUES:
        colours = palette(np.asarray(image.norm(panel.percent)))  # (rows, columns, 4)
        for (row, column), value in np.ndenumerate(panel.percent):
            if np.isfinite(value):
                red, green, blue, _ = colours[row, column]
                dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
                colour = "white" if dark else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=10, color=colour)
    if np.isfinite(panel.percent).any():
        row, column = np.unravel_index(int(np.nanargmax(panel.percent)), panel.percent.shape)
        corner = (column - 0.5, row - 0.5)
        mark = Rectangle(corner, 1, 1, fill=False, ec="#D55E00", lw=3.5, label=MAXIMUM, clip_on=False)
        axes.add_patch(mark)


def _set_ticks(axes: Axes, panel: HeatPanel) -> None:
    """At the timesteps, thinned out where there are too many for their labels."""
    for axis, timesteps in ((axes.xaxis, panel.column_timesteps), (axes.yaxis, panel.row_timesteps)):
        every = math.ceil(len(timesteps) / CELLS_WITH_VALUES)
        axis.set_ticks(range(0, len(timesteps), every), [str(step) for step in timesteps[::every]])
