"""Best and worst pairs with their correspondences: two pictures side by side, lines between them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cli.reports.page import Gallery, Paragraph, Part, Picture, Table, photographed
from cli.reports.scores import Scored
from cli.reports.tables import Block
from featstore.datasets.pictures import decode
from featstore.datasets.records import Dataset
from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError
from featstore.pipeline.results import EvaluationRun
from matcher.configuration import Frame, frame_of
from matcher.errors import InputError
from matcher.pck import RULE, MatchedPair, RankedPair, best_and_worst

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

Places = NDArray[np.floating[Any]]
"""Points, (n, 2)."""

PAIRS_SHOWN = 4
"""Of the best, and of the worst."""
_HEIGHT, _WIDEST, _GAP = 240.0, 330.0, 8.0
"""Of a picture as shown, in CSS pixels."""
_SHARPNESS = 2
"""Pixels per CSS pixel."""
_POINTS = 0.72
"""Of a CSS pixel: a hundred of them are drawn on an inch."""
_RIGHT, _WRONG = "#00b483", "#ff7a1a"
_DOT: dict[str, Any] = {"ms": 7.2 * _POINTS, "mec": "white", "mew": 1.2 * _POINTS}

LEGEND = (
    "Circles joined by a solid green line are right; a cross at the end of a dashed orange line is a wrong match, and "
    "a thin white line leads from it to the hollow circle where the keypoint really lies."
)


def best_and_worst_parts(scored: Scored, root: Path | None) -> list[Part]:
    """The pairs at the alpha and readout of the headline: their pictures, or, where those are not found, why not, and
    their names. root: the dataset's folder, where it was moved."""
    run, readout, alpha = scored.run, scored.readout, scored.alpha
    best, worst = best_and_worst(run.matched, readout, alpha, run.scoring.pixels, PAIRS_SHOWN)
    rule = Paragraph(f"At alpha = {alpha:g}, {readout}. {RULE}")
    chosen = [("Best", one) for one in best] + [("Worst", one) for one in worst]
    try:
        pictures = read_pictures(_dataset(run, root), [run.matched[one.index] for _, one in chosen])
    except InputError as error:
        rows = tuple(
            (kind.lower(), match.pair.category, match.pair.source, match.pair.target, f"{100 * one.pck:.1f}")
            for kind, one in chosen
            for match in [run.matched[one.index]]
        )
        header = ("", "category", "source", "target", f"PCK@{alpha:g}")
        table = Table(Block("Best and worst pairs", header, rows, left_columns=4))
        return [rule, Paragraph(f"Their pictures cannot be shown: {error}"), table]
    galleries = [
        Gallery(title, tuple(_picture(scored, one, pictures) for kind, one in chosen if kind == title))
        for title in dict.fromkeys(kind for kind, _ in chosen)
    ]
    return [rule, Paragraph(LEGEND), *galleries]


def _dataset(run: EvaluationRun, root: Path | None) -> Dataset:
    kept = run.description.get("root")
    return open_dataset(run.dataset, root or (None if kept is None else Path(kept)))


def read_pictures(dataset: Dataset, pairs: Iterable[MatchedPair]) -> dict[str, Image.Image]:
    """The pictures of some pairs, by image id. Raises `DatasetError` or `ImageError` where one is missing, cannot be
    read, or is not of the size that it was matched in."""
    sizes: dict[str, tuple[int, int]] = {}
    for match in pairs:
        original = match.pair.in_original_frame()
        sizes |= {match.pair.source: original.source_size, match.pair.target: original.target_size}
    records = {image.id: image for image in dataset.images() if image.id in sizes}
    found = {}
    for name, size in sizes.items():
        if name not in records:
            raise DatasetError(f"{dataset.name} has no image {name!r}: it is not the dataset that was evaluated.")
        picture = decode(records[name], dataset.read(records[name]))
        if picture.size != size:
            raise DatasetError(f"The image {name} is {picture.size} pixels now and was {size}: it was replaced.")
        found[name] = picture
    return found


def _picture(scored: Scored, ranked: RankedPair, pictures: Mapping[str, Image.Image]) -> Picture:
    match = scored.run.matched[ranked.index]
    pair, original = match.pair, match.pair.in_original_frame()
    predicted = match.predictions[scored.readout].astype(np.float64)
    if frame_of(scored.readout) is Frame.RESIZED:
        predicted = predicted * np.asarray(original.target_size) / scored.run.scoring.settings.image_size
    text = (
        f"{pair.category}: {int(ranked.right.sum())} of {len(ranked.right)} keypoints right, mean distance "
        f"{ranked.error:.2f} theta. {pair.source} to {pair.target}."
    )
    inside = np.clip(predicted, 0, original.target_size)
    points = (original.source_points, inside, original.target_points)
    return photographed(pair_figure((pictures[pair.source], pictures[pair.target]), points, ranked.right), text, text)


def pair_figure(
    pictures: tuple[Image.Image, Image.Image],
    points: tuple[Places, Places, Places],
    right: NDArray[np.bool_],
) -> "Figure":
    """Two pictures and what was matched.

    Args:
        pictures: Source and target.
        points: Those of the source, what was predicted, and the truth, (n, 2) each, in pixels of their picture.
        right: Which predictions are, (n,).
    """
    from matplotlib.figure import Figure

    scales = [min(_HEIGHT / picture.height, _WIDEST / picture.width) for picture in pictures]
    lefts = [0.0, pictures[0].width * scales[0] + _GAP]
    width = lefts[1] + pictures[1].width * scales[1]
    height = max(picture.height * scale for picture, scale in zip(pictures, scales, strict=True))
    figure = Figure((width / 100, height / 100), dpi=100 * _SHARPNESS)
    figure.patch.set_visible(False)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for picture, left, scale in zip(pictures, lefts, scales, strict=True):
        small = picture.copy()
        small.thumbnail((int(_WIDEST * _SHARPNESS), int(_HEIGHT * _SHARPNESS)), Image.Resampling.LANCZOS)
        extent = (left, left + picture.width * scale, picture.height * scale, 0)
        axes.imshow(np.asarray(small), extent=extent, aspect="auto")
    axes.set(xlim=(0, width), ylim=(height, 0))
    starts = points[0] * scales[0]
    ends, truths = (own * scales[1] + (lefts[1], 0) for own in points[1:])
    _mark_wrong(axes, starts[~right], ends[~right], truths[~right])
    _mark_right(axes, starts[right], ends[right])  # last, so that they lie on top
    return figure


def _mark_right(axes: "Axes", starts: Places, ends: Places) -> None:
    _lines(axes, starts, ends, color=_RIGHT, lw=1.3 * _POINTS, path_effects=_edge(2.6, 0.6))
    axes.plot(*np.concatenate([starts, ends]).T, "o", **_DOT, mfc=_RIGHT)


def _mark_wrong(axes: "Axes", starts: Places, ends: Places, truths: Places) -> None:
    dashes = (0, (5 / 1.2, 4 / 1.2))
    _lines(axes, starts, ends, color=_WRONG, lw=1.2 * _POINTS, ls=dashes, path_effects=_edge(2.4, 0.3))
    _lines(axes, ends, truths, color="white", lw=_POINTS, path_effects=_edge(2.4, 0.5, "black"))
    axes.plot(*starts.T, "o", **_DOT, mfc=_WRONG)
    for colour, width in (("white", 3.4), (_WRONG, 1.6)):  # an edge would fill the ring
        axes.plot(*truths.T, "o", ms=8.4 * _POINTS, mew=width * _POINTS, mfc="none", mec=colour)
    axes.plot(*ends.T, "x", ms=7.2 * _POINTS, mew=2.2 * _POINTS, mec=_WRONG, path_effects=_edge(4.2))


def _lines(axes: "Axes", starts: Places, ends: Places, **how: Any) -> None:
    axes.plot(*np.stack([starts, ends], axis=1).T, **how)  # x and y: (2, n) each


def _edge(width: float, alpha: float = 1.0, colour: str = "white") -> "list[AbstractPathEffect]":
    """What makes a mark seen on any picture."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width * _POINTS, foreground=colour, alpha=alpha)]
