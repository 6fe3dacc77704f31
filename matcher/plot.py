"""Pictures of matches. The only place here that imports matplotlib: import it only where a picture is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray

Colour = tuple[float, float, float, float]
Picture = NDArray[np.uint8]
"""An image, (h, w, 3), as shown (the original aspect ratio)."""


def draw_matches(
    file: Path,
    source: Picture,
    target: Picture,
    source_points: NDArray[np.float32],
    target_points: NDArray[np.float32],
    names: tuple[str, str],
) -> None:
    """Two images side by side, numbered points in matching colours, a line a pair; points (n, 2) in pixels of the
    images given. Writes `file` in the format that its ending names."""
    figure, ((left, right),) = _figure(source, target, 1, 4.4)
    for axes, picture, name in zip((left, right), (source, target), names, strict=True):
        _show(axes, picture, name)
    line = {"coordsA": "data", "coordsB": "data", "axesA": left, "axesB": right, "alpha": 0.45, "lw": 1}
    for index, colour in enumerate(_colours(len(source_points))):
        start, end = source_points[index], target_points[index]
        _mark(left, start, index, colour)
        _mark(right, end, index, colour)
        figure.add_artist(ConnectionPatch(tuple(start), tuple(end), color=colour, **line))
    figure.savefig(file)


def draw_heatmaps(
    file: Path,
    source: Picture,
    target: Picture,
    source_points: NDArray[np.float32],
    target_points: NDArray[np.float32],
    correlations: NDArray[np.float32],
) -> None:
    """A row a point: the source with the point, and the target under the point's correlation (n, h, w), whose scale
    is shown beside it. Points (n, 2) in pixels of the images given."""
    figure, grid = _figure(source, target, len(source_points), 3.2)
    extent = (-0.5, target.shape[1] - 0.5, target.shape[0] - 0.5, -0.5)
    for index, (colour, (left, right)) in enumerate(zip(_colours(len(source_points)), grid, strict=True)):
        _show(left, source, f"point {index + 1}")
        _mark(left, source_points[index], index, colour)
        grey = np.repeat(target.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)  # colours are the scale's
        _show(right, grey, "correlation over the target")
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


def _mark(axes: Axes, point: NDArray[np.float32], index: int, colour: Colour) -> None:
    """The point's number, from 1, on a disc."""
    x, y = float(point[0]), float(point[1])
    axes.plot(x, y, "o", ms=9, mfc=colour, mec="white", mew=1.2)
    # Luminance decides between black and white figures, so that numbers stay readable on every colour.
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    axes.text(x, y, str(index + 1), ha="center", va="center", fontsize=6, color="black" if luminance > 0.5 else "white")


def _colours(count: int) -> list[Colour]:
    palette = colormaps["turbo"]
    return [palette(0.08 + 0.84 * index / max(count - 1, 1)) for index in range(count)]
