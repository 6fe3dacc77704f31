"""Pictures of matches. The only place here that imports matplotlib: import it only where a picture is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray

Colour = tuple[float, float, float, float]
Picture = NDArray[np.uint8]
"""An image, (h, w, 3), as shown (the original aspect ratio)."""

NUMBERED_POINTS = 40

_STYLES = (True, "-"), (False, "--")
"""Of mutual matches and of others: whether discs are filled, and how lines are drawn."""


def draw_matches(
    file: Path,
    source: Picture,
    target: Picture,
    source_points: NDArray[np.float32],
    target_points: NDArray[np.float32],
    names: tuple[str, str],
    mutual: NDArray[np.bool_],
) -> None:
    """Two images side by side, points in matching colours, a line a pair; points (n, 2) in pixels of the images given.
    Those that are `mutual`, (n,), are filled, with whole lines; the others hollow, with broken ones. At most
    `NUMBERED_POINTS` have numbers; more are dots, and lines are those of mutual ones. Writes `file` in the format that
    its ending names."""
    figure, ((left, right),) = _figure(source, target, 1, 4.4)
    for axes, picture, name in zip((left, right), (source, target), names, strict=True):
        _show(axes, picture, name)
    line = {"coordsA": "data", "coordsB": "data", "axesA": left, "axesB": right}
    for index, (colour, is_mutual) in enumerate(zip(_colours(len(mutual)), mutual, strict=True)):
        start, end = source_points[index], target_points[index]
        number = index if len(mutual) <= NUMBERED_POINTS else None
        _mark(left, start, number, colour, is_mutual)
        _mark(right, end, number, colour, is_mutual)
        style = {"alpha": 0.6, "lw": 1} if is_mutual else {"alpha": 0.45, "lw": 0.8, "ls": (0, (4, 3))}
        if number is None:
            style |= {"alpha": 0.3 if is_mutual else 0}  # lines of hundreds of points would hide both images
        figure.add_artist(ConnectionPatch(tuple(start), tuple(end), color=colour, **style, **line))
    grey, counts = (0.35, 0.35, 0.35, 1.0), (int(mutual.sum()), int((~mutual).sum()))
    figure.legend(
        [Line2D([], [], color=grey, ls=style, marker="o", **_disc(grey, 7, filled)) for filled, style in _STYLES],
        [f"mutual: the way back returns ({counts[0]})", f"not mutual ({counts[1]})"],
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
        handlelength=4,
    )
    figure.savefig(file)


def draw_heatmaps(
    file: Path,
    source: Picture,
    target: Picture,
    source_points: NDArray[np.float32],
    target_points: NDArray[np.float32],
    correlations: NDArray[np.float32],
    titles: Sequence[str],
) -> None:
    """A row a point: the source with the point, and the target, with its title of n, under the point's correlation
    (n, h, w), whose scale is shown beside it. Points (n, 2) in pixels of the images given."""
    figure, grid = _figure(source, target, len(source_points), 3.2)
    extent = (-0.5, target.shape[1] - 0.5, target.shape[0] - 0.5, -0.5)
    for index, (colour, (left, right)) in enumerate(zip(_colours(len(source_points)), grid, strict=True)):
        _show(left, source, f"point {index + 1}")
        _mark(left, source_points[index], index, colour)
        grey = np.repeat(target.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)  # colours are the scale's
        _show(right, grey, titles[index])
        layer = right.imshow(correlations[index], extent=extent, alpha=0.6, cmap="inferno", interpolation="bilinear")
        _mark(right, target_points[index], index, colour)
        figure.colorbar(layer, ax=right, label="cosine", shrink=0.85)
    figure.savefig(file)


def _figure(source: Picture, target: Picture, rows: int, height: float) -> tuple[Figure, NDArray[Any]]:
    """Rows of two axes, (rows, 2), for pictures of a height in inches."""
    ratios = [source.shape[1] / source.shape[0], target.shape[1] / target.shape[0]]
    figure = Figure(figsize=(height * sum(ratios) + 0.8, (height + 0.3) * rows), dpi=120, layout="constrained")
    return figure, figure.subplots(rows, 2, squeeze=False, width_ratios=ratios)


def drawable(text: str) -> str:
    """Text in which letters that the font lacks are spelled out (`\\u732b`)."""
    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(letter if ord(letter) in known else ascii(letter)[1:-1] for letter in text)


def _show(axes: Axes, picture: Picture, title: str) -> None:
    axes.imshow(picture)
    axes.set_title(drawable(title), fontsize=9, parse_math=False)
    axes.set_axis_off()


def _mark(axes: Axes, point: NDArray[np.float32], number: int | None, colour: Colour, filled: bool = True) -> None:
    """A disc, or a ring, with a number, from 1 for 0, where there is one."""
    x, y = float(point[0]), float(point[1])
    axes.plot(x, y, "o", **_disc(colour, 4 if number is None else 9, filled))
    if number is None:
        return
    # Luminance decides between black and white figures, so that numbers stay readable on every colour.
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] if filled else 1
    ink = "black" if luminance > 0.5 else "white"
    axes.text(x, y, str(number + 1), ha="center", va="center", fontsize=6, color=ink)


def _disc(colour: Colour, size: float, filled: bool) -> dict[str, Any]:
    edge, face = ("white", colour) if filled else (colour, "white")
    return {"ms": size, "mfc": face, "mec": edge, "mew": size / 8 if filled else size / 5}


def _colours(count: int) -> list[Colour]:
    palette = colormaps["turbo"]
    return [palette(0.08 + 0.84 * index / max(count - 1, 1)) for index in range(count)]
