"""Pairs with their correspondences: two small pictures side by side, lines between them drawn as SVG."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from cli.html_report.page import Chart
from featstore.datasets.pictures import decode
from featstore.datasets.records import Dataset
from featstore.errors import DatasetError
from matcher.pairs import Frame
from matcher.pck import MatchedPair, RankedPair
from matcher.registry import frame_of

Places = NDArray[np.floating[Any]]
"""Points (n, 2) in units of the drawing."""

LONGEST_SIDE = 360
"""Of an embedded picture, in pixels."""
_QUALITY = 82
_HEIGHT, _WIDEST, _GAP = 240.0, 330.0, 8.0
"""Of a picture as shown, in units of the drawing."""
_RIGHT, _WRONG = "#00b483", "#ff7a1a"

LEGEND = (
    "Circles joined by a solid green line are right; a cross at the end of a dashed orange line is a wrong match, and "
    "a thin white line leads from it to the hollow circle where the keypoint really lies."
)


def read_pictures(dataset: Dataset, pairs: Sequence[MatchedPair]) -> dict[str, Image.Image]:
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


def pair_chart(
    match: MatchedPair, ranked: RankedPair, readout: str, image_size: int, pictures: Mapping[str, Image.Image]
) -> Chart:
    """A pair as it was matched. image_size: S of the resized frame. pictures: by image id, as stored."""
    pair, original = match.pair, match.pair.in_original_frame()
    predicted = match.predictions[readout].astype(np.float64)
    if frame_of(readout) is Frame.RESIZED:
        predicted = predicted * np.asarray(original.target_size) / image_size
    left, right = (min(_HEIGHT / h, _WIDEST / w) for w, h in (original.source_size, original.target_size))
    shift = original.source_size[0] * left + _GAP
    drawn = [
        _picture(pictures[pair.source], 0.0, left),
        _picture(pictures[pair.target], shift, right),
        *_marks(
            original.source_points * left,
            np.clip(predicted, 0, original.target_size) * right + (shift, 0),
            original.target_points * right + (shift, 0),
            ranked.right,
        ),
    ]
    width = shift + original.target_size[0] * right
    height = max(original.source_size[1] * left, original.target_size[1] * right)
    count, hit = len(ranked.right), int(ranked.right.sum())
    text = (
        f"{pair.category}: {hit} of {count} keypoints right, mean distance {ranked.error:.2f} theta. "
        f"{pair.source} to {pair.target}."
    )
    box = f'<svg viewBox="0 0 {width:.1f} {height:.1f}" aria-hidden="true">'
    return Chart(Markup(f"{box}{''.join(drawn)}</svg>"), text, text)


def _picture(picture: Image.Image, left: float, scale: float) -> str:
    small = picture.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    width, height = picture.size[0] * scale, picture.size[1] * scale
    return (
        f'<image x="{left:.1f}" y="0" width="{width:.1f}" height="{height:.1f}" href="data:image/jpeg;base64,{data}"/>'
    )


def _marks(starts: Places, ends: Places, truths: Places, right: NDArray[np.bool_]) -> list[str]:
    """Wrong ones first, so that right ones lie on top; all with a white edge, to be seen on any picture."""
    found: list[str] = []
    for place in np.argsort(right, kind="stable"):
        (x, y), (u, v), (p, q) = starts[place], ends[place], truths[place]
        line = f'x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}"'
        if right[place]:
            found.append(f'<line {line} stroke="#fff" stroke-opacity=".6" stroke-width="2.6"/>')
            found.append(f'<line {line} stroke="{_RIGHT}" stroke-width="1.3"/>')
            found += [_dot(x, y, _RIGHT), _dot(u, v, _RIGHT)]
            continue
        found.append(f'<line {line} stroke="#fff" stroke-opacity=".3" stroke-width="2.4"/>')
        found.append(f'<line {line} stroke="{_WRONG}" stroke-width="1.2" stroke-dasharray="5 4"/>')
        away = f'x1="{u:.1f}" y1="{v:.1f}" x2="{p:.1f}" y2="{q:.1f}"'
        found.append(f'<line {away} stroke="#000" stroke-opacity=".5" stroke-width="2.4"/>')
        found.append(f'<line {away} stroke="#fff" stroke-width="1"/>')
        found += [_dot(x, y, _WRONG), _ring(p, q), _cross(u, v)]
    return found


def _dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" fill="{colour}" stroke="#fff" stroke-width="1.2"/>'


def _ring(x: float, y: float) -> str:
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.2" fill="none"'
    return f'{circle} stroke="#fff" stroke-width="3.4"/>{circle} stroke="{_WRONG}" stroke-width="1.6"/>'


def _cross(x: float, y: float) -> str:
    path = f'<path d="M{x - 3.6:.1f} {y - 3.6:.1f}l7.2 7.2m0 -7.2l-7.2 7.2"'
    return f'{path} stroke="#fff" stroke-width="4.2"/>{path} stroke="{_WRONG}" stroke-width="2.2"/>'
