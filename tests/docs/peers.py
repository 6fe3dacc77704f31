"""What DIFT's `eval_spair.py` and SD4Match's `PCKEvaluator` compute, in numpy and float64, pair by pair and point by
point: they read the files that their code reads, and share nothing with dualsd's matcher.

DIFT (Tsingularity/dift, commit 47e7807): both maps are upsampled bilinearly to the original images' pixels (corners not
aligned); the source's pixel at the keypoint is compared with every pixel of the target by the cosine; the first best is
the match. A point is right within alpha times the longer side of the target's box, in pixels of the original image.

SD4Match (ActiveVisionLab/SD4Match, commit 1da3e2e): points, boxes and matches in pixels of the resized S x S image; a
pixel x is cell x (w - 1) / (S - 1); maps are sampled bilinearly; vectors are divided by their norm plus 1e-6.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PeerPair:
    """A pair as annotations have it: images by name, points (n, 2) and box in pixels of the original images, sizes
    (width, height)."""

    source: str
    target: str
    category: str
    source_points: Array
    target_points: Array
    target_box: tuple[float, float, float, float]
    source_size: tuple[int, int]
    target_size: tuple[int, int]


def averages(right: Sequence[NDArray[np.bool_]]) -> dict[str, float]:
    """PCK per image (mean over pairs of a pair's PCK) and per point (of all points), of which points are right."""
    return {"image": float(np.mean([own.mean() for own in right])), "point": float(np.concatenate(right).mean())}


def dift(pair: PeerPair, maps: Mapping[str, Array], alpha: float) -> NDArray[np.bool_]:
    """Which of a pair's points DIFT's evaluation counts as right, (n,). maps: (C, h, w) by image."""
    source, target = (
        _pixels(maps[name], size) for name, size in ((pair.source, pair.source_size), (pair.target, pair.target_size))
    )
    target = target / np.maximum(np.linalg.norm(target, axis=0), 1e-12)
    x0, y0, x1, y1 = pair.target_box
    right = []
    for (x, y), (true_x, true_y) in zip(pair.source_points, pair.target_points, strict=True):
        descriptor = source[:, int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]
        cosines = np.tensordot(descriptor / max(np.linalg.norm(descriptor), 1e-12), target, axes=1)
        row, column = np.unravel_index(cosines.argmax(), cosines.shape)
        away = ((column - true_x) ** 2 + (row - true_y) ** 2) ** 0.5
        right.append(away / max(y1 - y0, x1 - x0) <= alpha)
    return np.array(right)


def _pixels(cells: Array, size: tuple[int, int]) -> Array:
    """(C, H, W) of (C, h, w): pixel i looks at cell (i + 1/2) h / H - 1/2, within the map."""
    width, height = size
    rows, columns = (_blend(own, wanted) for own, wanted in zip(cells.shape[1:], (height, width), strict=True))
    return rows @ cells @ columns.T


def _blend(cells: int, pixels: int) -> Array:
    """(pixels, cells) shares of each cell in each pixel."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))


def sd4match(pair: PeerPair, maps: Mapping[str, Array], alphas: Sequence[float], size: int) -> Mapping[str, Array]:
    """Which of a pair's points SD4Match's evaluator counts as right: (alphas, n) of zeros and ones by readout."""
    source, target = maps[pair.source], maps[pair.target]
    cells = target.shape[1]
    scale = (cells - 1) / (size - 1)
    sides = (pair.source_points, pair.source_size), (pair.target_points, pair.target_size)
    ours, truth = (np.clip(points * size / np.array(own), 1e-4, size - 1 - 1e-4) for points, own in sides)
    x0, y0, x1, y1 = pair.target_box
    theta = max((x1 - x0) * size / pair.target_size[0], (y1 - y0) * size / pair.target_size[1])
    target = target / (np.linalg.norm(target, axis=0) + 1e-6)
    found: dict[str, list[Array]] = {"nn": [], "bilinear": [], "softmax": [], "kernelsoftmax": []}
    for u, v in ours * scale:
        similar = _similarities(source, target, u, v)
        best = _place(similar)
        left, top = np.floor(u), np.floor(v)
        corners = [(left + across, top + down) for down in (0, 1) for across in (0, 1)]
        shares = [(1 - abs(u - column)) * (1 - abs(v - row)) for column, row in corners]
        places = [_place(_similarities(source, target, *corner)) for corner in corners]
        grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), axis=-1)
        near = np.exp(-((grid - best) ** 2).sum(axis=-1) / (2 * 7**2))
        found["nn"].append(best)
        found["bilinear"].append(np.average(places, axis=0, weights=shares))
        found["softmax"].append(_mean_place(similar, grid))
        found["kernelsoftmax"].append(_mean_place(near * similar, grid))
    away = {name: np.linalg.norm(np.stack(places) / scale - truth, axis=1) for name, places in found.items()}
    return {name: np.stack([own <= alpha * theta for alpha in alphas]) for name, own in away.items()}


def _similarities(source: Array, target: Array, u: float, v: float) -> Array:
    """(h, w) of the source at cell (u, v), beyond whose last cells nothing is, with all cells of the target."""
    _, height, width = source.shape
    down, across = (np.maximum(0, 1 - np.abs(at - np.arange(cells))) for at, cells in ((v, height), (u, width)))
    descriptor = source @ across @ down
    return np.tensordot(descriptor / (np.linalg.norm(descriptor) + 1e-6), target, axes=1)


def _place(similar: Array) -> Array:
    row, column = np.unravel_index(similar.argmax(), similar.shape)
    return np.array([column, row], dtype=np.float64)


def _mean_place(similar: Array, grid: Array) -> Array:
    likely = np.exp((similar - similar.max()) / 0.04)
    return np.einsum("yx,yxd->d", likely / likely.sum(), grid)
