"""The charts of a grid, over diffusion timesteps: accuracy lines of layers, and heat maps over the timesteps of two
layers. Each draws a panel an alpha: all of them in the files beside the page, one at a time on it."""

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cli.reports.charts import COLOURS, PERCENT, Chart, as_typed
from cli.reports.grid_tables import GridView, weighted
from matcher.grid import TimestepMap

Line = NDArray[np.float64]
"""A layer's accuracy, (T, 4): rising timesteps, PCK in 0..100, and its 95 % interval."""

CELLS_WITH_VALUES = 12
"""Maps of at most so many rows and columns have their values written in the cells."""
_LARGE, _MEDIUM, _SMALL = 15, 13, 11  # font sizes in points
_DPI = 120


@dataclass(frozen=True, slots=True)
class GridChart:
    """A chart of a grid's view. heading: over its pictures on the page. title: of the file. draw: takes alphas, a panel
    each, and the figure's title."""

    heading: str
    title: str
    draw: Callable[[Sequence[float], str], Chart]


def accuracy(view: GridView) -> GridChart:
    """Accuracy against timestep, a line a layer."""
    heading = f"Accuracy against timestep, {view.readout}, with 95 % intervals"
    return GridChart(heading, "Accuracy by timestep", partial(_accuracy, view))


def two_layers(view: GridView) -> GridChart | None:
    """Maps over the timesteps of two layers in their best weighting; None where no two are together."""
    if not view.fused or len(view.best_fused.layers) != 2 or -1 in view.best_fused.timesteps:
        return None
    weights = weighted(view.best_fused)
    return GridChart(f"Two layers together, {view.readout}: {weights}", weights, partial(_heat_maps, view))


def _accuracy(view: GridView, alphas: Sequence[float], title: str) -> Chart:
    """Each line with its 95 % interval as a light band, its maximum ringed and written beside it."""
    figure, grid = _panels(alphas, (5.0, 4.3), 3, title, 0.8)
    said = []
    for axes, alpha in zip(grid, alphas, strict=True):
        lines = _levelled({f"layer {layer}": _line(view, own, alpha) for layer, own in view.alone.items()})
        for (name, line), colour, marker in zip(lines.items(), cycle(COLOURS), cycle("os^DvPX"), strict=False):
            _draw_line(axes, line, name, colour, marker)
            said.append(f"{name}: {', '.join(f'{percent:.1f} at t={step:g}' for step, percent, *_ in line)}")
        _set_ranges(axes, np.unique(np.concatenate([line[:, 0] for line in lines.values()])))
        for line, colour in zip(lines.values(), cycle(COLOURS), strict=False):
            _write_maximum(axes, line, colour)
    figure.supxlabel("timestep t (of 1000)", fontsize=_MEDIUM)
    figure.supylabel(PERCENT, fontsize=_MEDIUM)
    handles, names = grid[0].get_legend_handles_labels()
    as_typed(figure.legend(handles, names, loc="outside right center", fontsize=_SMALL + 1))
    name = _name(alphas)
    return Chart(figure, f"{name} in percent by timestep. {'; '.join(said)}.", name)


def _line(view: GridView, own: Sequence[int], alpha: float) -> Line:
    """own: a layer's configurations."""
    steps = {index: view.grid.scores.configurations[index].timesteps[0] for index in own}
    intervals = {index: view.grid.scores.interval(index, view.readout, alpha, view.grid.average) for index in own}
    rows = [(steps[index], 100 * one.mean, 100 * one.low, 100 * one.high) for index, one in intervals.items()]
    return np.array(sorted(rows))


def _levelled(lines: dict[str, Line]) -> dict[str, Line]:
    """The lines, those of layers without timesteps level over the timesteps of all others."""
    steps = np.unique(np.concatenate([line[:, 0] for line in lines.values()]))
    known = steps[steps >= 0] if (steps >= 0).any() else np.zeros(1)
    return {
        name: line if line[0, 0] >= 0 else np.column_stack([known, np.repeat(line[:, 1:], len(known), axis=0)])
        for name, line in lines.items()
    }


def _draw_line(axes: Axes, line: Line, name: str, colour: str, marker: str) -> None:
    steps, percent, low, high = line.T
    alone = len(steps) == 1
    if alone:  # a band of no width would not be seen
        axes.vlines(steps, low, high, color=colour, alpha=0.25, lw=7)
    else:
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(steps, percent, "" if alone else "-", marker=marker, color=colour, ms=6, lw=2, label=name)
    axes.plot(*_maximum(line), "o", ms=14, mfc="none", mec=colour, mew=2)


def _maximum(line: Line) -> tuple[float, float]:
    """Timestep and accuracy, of equal ones the first."""
    step, percent, *_ = line[np.argmax(line[:, 1])]
    return float(step), float(percent)


def _set_ranges(axes: Axes, timesteps: NDArray[np.float64]) -> None:
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


def _write_maximum(axes: Axes, line: Line, colour: str) -> None:
    """The maximum's value and timestep above its ring, on a white edge that keeps it readable over other lines."""
    timestep, percent = _maximum(line)
    left, right = axes.get_xlim()
    share = (timestep - left) / (right - left)
    axes.annotate(
        f"{percent:.1f} at t={timestep:g}",
        (timestep, percent),
        (0, 11),
        textcoords="offset points",
        ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
        va="bottom",
        fontsize=_SMALL,
        color=tuple(0.65 * part for part in to_rgb(colour)),
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _heat_maps(view: GridView, alphas: Sequence[float], title: str) -> Chart:
    """Each with its own colour bar, the maximum outlined; values are written in maps of at most 12 x 12 cells, and
    cells that are NaN are grey. The first row is drawn at the bottom."""
    maps = [view.over_timesteps(alpha) for alpha in alphas]
    rows, columns = maps[0].values.shape
    most = max(rows, columns)
    cell = float(np.clip(4 / most, 0.54, 1.3)) if most <= CELLS_WITH_VALUES else max(4.6 / most, 0.1)  # inches
    width, height = max(columns * cell + 2.1, 4.0), max(rows * cell + 1.2, 3.0)
    figure, grid = _panels(alphas, (width, height), int(20.5 / width), title, 0.1)
    first, second = (f"timestep t of layer {layer.layer}" for layer in view.best_fused.layers)
    for axes, found in zip(grid, maps, strict=True):
        _draw_map(axes, found)
        axes.set_xlabel(second, fontsize=_MEDIUM)
        axes.set_ylabel(first, fontsize=_MEDIUM)
    name = _name(alphas)
    values = np.array([found.values for found in maps])
    alt = (
        f"Heat map of {name} over the timesteps of two layers, from {np.nanmin(values):.1f} to "
        f"{np.nanmax(values):.1f} percent; the numbers are in the tables below."
    )
    return Chart(figure, alt, f"{name}; the best cell outlined.")


def _draw_map(axes: Axes, found: TimestepMap) -> None:
    percent = found.values
    palette = colormaps["viridis"].with_extremes(bad="#bdbdbd")
    image = axes.imshow(np.ma.masked_invalid(percent), cmap=palette, origin="lower", aspect="equal")
    for axis, timesteps in ((axes.xaxis, found.columns), (axes.yaxis, found.rows)):
        every = math.ceil(len(timesteps) / CELLS_WITH_VALUES)  # thinned out where there are too many for their labels
        axis.set_ticks(range(0, len(timesteps), every), [str(step) for step in timesteps[::every]])
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(PERCENT, fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    if max(percent.shape) <= CELLS_WITH_VALUES:
        colours = palette(np.asarray(image.norm(percent)))  # (rows, columns, 4)
        for (row, column), value in np.ndenumerate(percent):
            if np.isfinite(value):
                dark = colours[row, column, :3] @ (0.3, 0.59, 0.11) < 0.5
                colour = "white" if dark else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=10, color=colour)
    row, column = np.unravel_index(int(np.nanargmax(percent)), percent.shape)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#D55E00", lw=3.5, clip_on=False))


def _panels(
    alphas: Sequence[float], size: tuple[float, float], most_columns: int, title: str, margin: float
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel an alpha, in at most three columns and in rows about equally full.

    Args:
        alphas: Those of the panels.
        size: Of a panel, about: width and height.
        most_columns: As many as fit; three at most are taken.
        title: Over all panels.
        margin: What is added to the width. All in inches.
    """
    rows = math.ceil(len(alphas) / min(max(most_columns, 1), 3))
    columns = math.ceil(len(alphas) / rows)
    width = size[0] * columns + margin
    title = textwrap.fill(title, int(width * 72 / (_LARGE * 0.6)))
    figure = Figure((width, size[1] * rows + 0.3 * (1 + title.count("\n"))), _DPI, layout="constrained")
    figure.suptitle(title, fontsize=_LARGE, parse_math=False)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(alphas) :]:
        axes.remove()
    for axes, alpha in zip(grid, alphas, strict=False):
        axes.tick_params(labelsize=_SMALL)
        axes.set_title(_name([alpha]), fontsize=_MEDIUM)
    return figure, grid[: len(alphas)]


def _name(alphas: Sequence[float]) -> str:
    """`PCK@0.1`."""
    return ", ".join(f"PCK@{alpha:g}" for alpha in alphas)
