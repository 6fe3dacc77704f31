"""DINOv2 patch maps alone, and fused with a layer of the UNet, against the formula written out in numpy: the cosine,
and the mean of both cosines, of cells that were brought to the finer map's size."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.maps import MapsInMemory
from matcher.match import correlate, fuse
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate

SIZE = 64
"""63 pixels between the first and the last cell's centre: 7 a cell for 10 cells, 9 for 8."""

SD, DINO = LayerSpec("2", 261), LayerSpec("dino", None)

Array = NDArray[np.float64]


def random_maps(sd_side: int, dino_side: int) -> MapsInMemory:
    """Of two images, as raw features are: of unlike magnitudes, the UNet's around a mean that is not zero."""
    random = np.random.default_rng(11)
    maps = {}
    for image in ("cat/a", "cat/b"):
        sd, dino = random.normal(3, 40, (20, sd_side, sd_side)), random.normal(0, 2, (12, dino_side, dino_side))
        maps[image, "2", 261] = torch.from_numpy(sd.astype(np.float32))
        maps[image, "dino", None] = torch.from_numpy(dino.astype(np.float32))
    return MapsInMemory(maps)


def bicubic(cells: int, wanted: int) -> Array:
    """(wanted, cells): the cubic convolution of a = -0.75, the first and last cells on each other, borders repeated."""
    matrix = np.zeros((wanted, cells))
    for index in range(wanted):
        place = index * (cells - 1) / (wanted - 1)
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3
            matrix[index, min(max(tap, 0), cells - 1)] += near if x <= 1 else far if x < 2 else 0
    return matrix


def cosines(maps: MapsInMemory, layer: LayerSpec, side: int) -> Array:
    """(source cells, target cells), both in reading order, of one layer brought to `side` cells."""
    ends = []
    for image in ("cat/a", "cat/b"):
        raw = maps.load(image, layer).numpy().astype(np.float64)
        up = bicubic(raw.shape[1], side) if raw.shape[1] != side else np.eye(side)
        cells = np.einsum("ih,chw,jw->ijc", up, raw, up).reshape(side * side, -1)
        ends.append(cells / np.linalg.norm(cells, axis=1, keepdims=True))
    source, target = ends
    return source @ target.T


def all_cells(side: int) -> Array:
    """(side * side, 2) pixels (x, y) of the centres of all cells, in reading order."""
    y, x = np.divmod(np.arange(side * side), side)
    return np.stack([x, y], axis=1) * (SIZE - 1) / (side - 1)


def expected_matches(correlation: Array, side: int, readout: str) -> Array:
    """(n, 2) pixels, of correlations (n, cells)."""
    if readout == "nn":
        return all_cells(side)[correlation.argmax(axis=1)]
    likely = np.exp((correlation - correlation.max(axis=1, keepdims=True)) / 0.04)
    return likely / likely.sum(axis=1, keepdims=True) @ all_cells(side)


@pytest.mark.parametrize(("sd_side", "dino_side"), [(8, 8), (8, 10), (10, 8)])
@pytest.mark.parametrize("layers", [(DINO,), (SD, DINO), (DINO, SD)])
def test_dino_and_sd_dino_are_the_formula(sd_side: int, dino_side: int, layers: tuple[LayerSpec, ...]) -> None:
    maps = random_maps(sd_side, dino_side)
    side = max(maps.load("cat/a", layer).shape[1] for layer in layers)
    correlation = np.mean([cosines(maps, layer, side) for layer in layers], axis=0)
    points = all_cells(side).astype(np.float32)
    half = tuple(LayerSpec(layer.layer, layer.timestep, 0.5) for layer in layers)
    pair = MatchingPair("cat/a", "cat/b", "cat", points, points, 10.0)
    readouts = ["nn", "softmax"]
    (matched,) = evaluate([pair], maps, half, readouts, MatchSettings(SIZE), torch.device("cpu"))
    for readout in readouts:
        expected = expected_matches(correlation, side, readout)
        np.testing.assert_allclose(matched.predictions[readout], expected, atol=2e-3)
    # and the correlation itself, of maps that were fused
    ends = [
        fuse([maps.load(image, layer) for layer in layers], [0.5] * len(layers), 1, Geometry.CORNERS)
        for image in ("cat/a", "cat/b")
    ]
    cells = torch.from_numpy(points * (side - 1) / (SIZE - 1)).float().round()
    found = correlate(ends[0], cells, ends[1]).flatten(1)
    np.testing.assert_allclose(found.numpy(), correlation, atol=5e-6)


def test_weights_count_squared() -> None:
    maps = random_maps(8, 8)
    expected = 0.64 * cosines(maps, SD, 8) + 0.36 * cosines(maps, DINO, 8)
    source, target = (
        fuse([maps.load(image, SD), maps.load(image, DINO)], [0.8, 0.6], 1, Geometry.CORNERS)
        for image in ("cat/a", "cat/b")
    )
    y, x = np.divmod(np.arange(64), 8)
    found = correlate(source, torch.from_numpy(np.stack([x, y], axis=1)), target).flatten(1)
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-6)
