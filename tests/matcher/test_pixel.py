"""DIFT's readout: the factorised version against one that upsamples everything, and a case computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.maps import MapSource
from matcher.match import fuse
from matcher.pairs import MatchingPair, OriginalFrame
from matcher.sweep import evaluate
from tests.matcher.test_against_reference import CPU, LAYERS, SIZE, smooth_maps, some_pairs
from tests.matcher.unchecked import Unchecked

SIZES = {"i0": (61, 40), "i1": (33, 75), "i2": (96, 96), "i3": (50, 20)}
"""(width, height) of the original images."""


def in_both_frames(pairs: list[MatchingPair]) -> list[MatchingPair]:
    """The pairs with their points in pixels of original images of SIZES."""

    def original(image: str, points: NDArray[np.float32]) -> NDArray[np.float32]:
        return (points * np.array(SIZES[image]) / SIZE).astype(np.float32)

    return [
        replace(
            pair,
            original=OriginalFrame(
                SIZES[pair.source],
                SIZES[pair.target],
                original(pair.source, pair.source_points),
                original(pair.target, pair.target_points),
                20.0,
            ),
        )
        for pair in pairs
    ]


def upsampling_everything(
    pair: MatchingPair, maps: MapSource, layers: list[LayerSpec], settings: MatchSettings
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines (n, H, W) of each point with every pixel of the original target, and the best pixels (n, 2)."""
    assert pair.original is not None
    dense = []
    for image, (width, height) in (
        (pair.source, pair.original.source_size),
        (pair.target, pair.original.target_size),
    ):
        raw = [maps.load(image, layer) for layer in layers]
        fused = fuse(raw, [layer.weight for layer in layers], settings.upsample, settings.upsample_align)
        pixels = functional.interpolate(fused[None].double(), (height, width), mode="bilinear", align_corners=False)[0]
        dense.append(pixels.numpy() / (np.linalg.norm(pixels.numpy(), axis=0) + 1e-6))
    source, target = dense
    cosines, best = [], []
    for x, y in pair.original.source_points:
        column = min(int(np.floor(x + 0.5)), source.shape[2] - 1)
        row = min(int(np.floor(y + 0.5)), source.shape[1] - 1)
        found = np.tensordot(source[:, row, column], target, axes=1)  # (H, W)
        cosines.append(found)
        best.append(np.unravel_index(found.argmax(), found.shape)[::-1])
    return np.stack(cosines), np.array(best, dtype=np.float64)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("geometry", list(Geometry))
@pytest.mark.parametrize("factor", [1, 2])
def test_it_equals_upsampling_everything(layers: list[LayerSpec], geometry: Geometry, factor: int) -> None:
    maps, pairs = smooth_maps(4, seed=50), in_both_frames(some_pairs(4, seed=51))
    settings = MatchSettings(SIZE, geometry, factor, geometry)
    matched = evaluate(pairs, maps, layers, ["pixel"], settings, CPU)
    same, count = 0, 0
    for found in matched:
        ours = found.predictions["pixel"]
        cosines, best = upsampling_everything(found.pair, maps, layers, settings)
        same += (ours == best).all(axis=1).sum()
        count += len(ours)
        # beyond the outermost cells' centres all pixels are equal: where rounding chose another one, it is as good
        x, y = ours.astype(int).T
        chosen = cosines[np.arange(len(ours)), y, x]
        np.testing.assert_allclose(chosen, cosines.max(axis=(1, 2)), rtol=0, atol=1e-5)
    assert same >= 0.9 * count


def test_a_case_by_hand() -> None:
    """A map of 2 x 1 cells, upsampled to 8 x 4 pixels: shares of the right cell in a row of pixels are 0, 0, 1/8, 3/8,
    5/8, 7/8, 1, 1. The source pixel 3 is (5/8, 3/8); in the mirrored target that is pixel 4, in every row: the first
    counts."""
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    source, target = torch.stack([left, right], dim=1)[:, None], torch.stack([right, left], dim=1)[:, None]
    maps = Unchecked({("a", "x", None): source, ("b", "x", None): target})
    points = np.array([[3.2, 1.0]], dtype=np.float32)
    pair = MatchingPair("a", "b", "c", points, points, 1.0, OriginalFrame((8, 4), (8, 4), points, points, 1.0))
    (found,) = evaluate([pair], maps, [LayerSpec("x", None)], ["pixel"], MatchSettings(8), CPU)
    np.testing.assert_array_equal(found.predictions["pixel"], [[4.0, 0.0]])
