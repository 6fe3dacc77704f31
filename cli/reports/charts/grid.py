"""The charts of a grid, over diffusion timesteps: accuracy lines of layers, and heat maps over the timesteps of two
layers. Each draws a panel an alpha: all of them in the files beside the page, one at a time on it."""

import math
from collections.abc import Sequence
from dataclasses import astuple
from itertools import cycle

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from cli.reports.charts import COLOURS, PERCENT, as_typed
from cli.reports.grid_tables import GridView, weighted
from cli.reports.page import Chart
from matcher.grid import TimestepMap

Line = NDArray[np.float64]
"""A layer's accuracy, (T, 4): rising timesteps, PCK in 0..100, and its 95 % interval."""

MOST_LABELS = 12
"""Of an axis; maps of at most so many rows and columns have their values written in the cells."""
_LARGE, _MEDIUM, _SMALL = 15, 13, 11  # font sizes in points
_DPI = 120


def accuracy(view: GridView, alphas: Sequence[float], title: str) -> Chart:
    """Accuracy against timestep: a line per layer, one of the layers that are best together where all have the same
    timestep, and the level of the best together."""
    figure, grid = _panels(alphas, (5.3, 4.3), title)
    said = []
    for axes, alpha in zip(grid, alphas, strict=True):
        lines = _lines(view, alpha)
        for (name, line), colour, marker in zip(lines.items(), cycle(COLOURS), cycle("os^DvPX"), strict=False):
            _draw_line(axes, line, name, colour, marker)
            if name not in view.same_timestep:
                _mark_best(axes, line, colour)
            said.append(f"{name}: {', '.join(f'{percent:.1f} at t={step:g}' for step, percent, *_ in line)}")
        if (level := view.best_together(alpha)) is not None:
            axes.axhline(level, color="0.35", lw=1.5, ls="--", label="best together, any timesteps")
            said.append(f"best together: {level:.1f}")
        steps = sorted({float(step) for line in lines.values() for step in line[:, 0]})
        axes.xaxis.set_major_locator(FixedLocator(steps, nbins=MOST_LABELS))
        axes.margins(0.18)  # room for what is written at a maximum
        limits = axes.get_ylim()
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
        axes.set_ylim(limits)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.set_xlabel("timestep t (of 1000)", fontsize=_MEDIUM)
    figure.supylabel(PERCENT, fontsize=_MEDIUM)
    handles, names = grid[0].get_legend_handles_labels()
    columns = min(len(names), 2 * len(alphas))
    as_typed(figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=_SMALL + 1))
    name = _name(alphas)
    caption = f"{name}. Same t: the layers and weights of the best together, all at the same timestep."
    alt = f"{name} in percent by timestep. {'; '.join(said)}."
    return Chart(figure, alt, caption if view.same_timestep else name)


def _lines(view: GridView, alpha: float) -> dict[str, Line]:
    """By layer, and of layers together; those of layers without timesteps level over the timesteps of all others."""
    grid, scores, found = view.grid, view.grid.scores, dict[str, Line]()
    named = {**{f"layer {layer}": own for layer, own in view.alone.items()}, **view.same_timestep}
    for name, own in named.items():
        intervals = [astuple(scores.interval(index, view.readout, alpha, grid.average)) for index in own]
        steps = [max(scores.configurations[index].timesteps) for index in own]
        found[name] = np.array(sorted(zip(steps, *zip(*intervals, strict=True), strict=True)))
        found[name][:, 1:] *= 100
    known = sorted({step for line in found.values() for step in line[:, 0] if step >= 0}) or [0.0]
    return {
        name: line if line[0, 0] >= 0 else np.column_stack([known, np.repeat(line[:, 1:], len(known), axis=0)])
        for name, line in found.items()
    }


def _draw_line(axes: Axes, line: Line, name: str, colour: str, marker: str) -> None:
    """With its 95 % interval as a light band."""
    steps, percent, low, high = line.T
    if len(steps) == 1:  # a band of no width would not be seen
        axes.vlines(steps, low, high, color=colour, alpha=0.25, lw=7)
    else:
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(steps, percent, "-", marker=marker, color=colour, ms=6, lw=2, label=name)


def _mark_best(axes: Axes, line: Line, colour: str) -> None:
    """The maximum ringed and written below the ring, where layers together are not, on a white edge that keeps it
    readable over other lines."""
    step, highest, *_ = line[np.argmax(line[:, 1])]  # of equal ones the first
    axes.plot(step, highest, "o", ms=14, mfc="none", mec=colour, mew=2)
    axes.annotate(
        f"{highest:.1f} at t={step:g}",
        (step, highest),
        (0, -11),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=_SMALL,
        color=tuple(0.65 * part for part in to_rgb(colour)),
        path_effects=[withStroke(linewidth=3, foreground="white")],
        zorder=4,
    )


def two_layers(view: GridView, alphas: Sequence[float], title: str) -> Chart | None:
    """Heat maps over the timesteps of the best two layers in their best weighting, with the level of the best single
    layer; None where no two are together."""
    best, maps = view.best_two, [found for alpha in alphas if (found := view.over_timesteps(alpha)) is not None]
    if best is None:
        return None
    alone = [view.best_alone(alpha) for alpha in alphas]
    levels = [view.percents[alpha][index] for alpha, index in zip(alphas, alone, strict=True)]
    rows, columns = maps[0].values.shape
    most = max(rows, columns)
    cell = float(np.clip(4 / most, 0.54, 1.3)) if most <= MOST_LABELS else max(4.6 / most, 0.1)  # inches
    size = max(columns * cell + 2.1, 4.0), max(rows * cell + 1.2, 3.0)
    figure, grid = _panels(alphas, size, f"{title}: {weighted(best)}")
    first, second = (f"timestep t of layer {layer.layer}" for layer in best.layers)
    for axes, found, level in zip(grid, maps, levels, strict=True):
        _draw_map(axes, found, level)
        axes.set_xlabel(second, fontsize=_MEDIUM)
        axes.set_ylabel(first, fontsize=_MEDIUM)
    name = _name(alphas)
    values = np.array([found.values for found in maps])
    alt = (
        f"Heat map of {name} over the timesteps of two layers, from {np.nanmin(values):.1f} to "
        f"{np.nanmax(values):.1f} percent; the numbers are in the tables below."
    )
    singles = ", ".join(f"{one:.1f} ({view.entries[index].name})" for one, index in zip(levels, alone, strict=True))
    caption = f"{name}; the best cell outlined. The line on the colour bar: the best single layer, {singles}"
    return Chart(figure, f"{alt} The best single layer: {singles}.", f"{caption}; cells above it in bold.")


def _draw_map(axes: Axes, found: TimestepMap, level: float) -> None:
    """With a colour bar of its own on which `level` is a line, the maximum outlined and, in small maps, values written
    in the cells, those above the level in bold; cells that are NaN are grey. Rows run down, as in the table."""
    percent = found.values
    image = axes.imshow(
        percent,
        cmap=colormaps["viridis"].with_extremes(bad="#bdbdbd"),
        vmin=min(np.nanmin(percent), level),
        vmax=max(np.nanmax(percent), level),
        aspect="equal",
    )
    for axis, timesteps in ((axes.xaxis, found.columns), (axes.yaxis, found.rows)):
        every = math.ceil(len(timesteps) / MOST_LABELS)  # thinned out where there are too many for their labels
        axis.set_ticks(range(0, len(timesteps), every), [str(step) for step in timesteps[::every]])
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(f"{PERCENT} (line: best single layer, {level:.1f})", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    bar.ax.axhline(level, color="#D55E00", lw=3)
    middle = sum(image.get_clim()) / 2
    for (row, column), value in np.ndenumerate(percent):
        if max(percent.shape) <= MOST_LABELS and np.isfinite(value):
            colour = "black" if value > middle else "white"  # viridis grows lighter all the way
            weight = "bold" if value > level else "normal"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=10, color=colour, weight=weight)
    row, column = np.unravel_index(int(np.nanargmax(percent)), percent.shape)
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#D55E00", lw=3.5, clip_on=False))


def _panels(alphas: Sequence[float], size: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    """A figure with a panel an alpha, in at most three columns.

    Args:
        alphas: Those of the panels.
        size: Of a panel, about: width and height in inches.
        title: Over all panels.
    """
    rows = math.ceil(len(alphas) / 3)
    columns = math.ceil(len(alphas) / rows)
    figure = Figure((size[0] * columns, size[1] * rows + 0.3), _DPI, layout="constrained")
    figure.suptitle(title, fontsize=_LARGE, parse_math=False, wrap=True)
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
