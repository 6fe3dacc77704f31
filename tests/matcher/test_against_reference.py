"""The factorised evaluation against the plain one, which builds every fused map."""

import itertools

import numpy as np
import pytest
import torch

from matcher.configuration import MODULES, Geometry, LayerSpec, MatchSettings
from matcher.geometry import squared_norms, upsampling
from matcher.maps import MapsInMemory
from matcher.match import upsample
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate
from tests.reference import evaluate_plainly

CPU = torch.device("cpu")
SIZE = 96
ON_CELLS = [readout for readout in MODULES if readout != "pixel"]
SHAPES = {"coarse": (20, 6, 6), "fine": (12, 12, 12), "odd": (8, 9, 9)}


def smooth_maps(images: int, seed: int) -> MapsInMemory:
    """Maps whose neighbouring cells resemble each other, as real ones do, in half precision as stored."""
    random = torch.Generator().manual_seed(seed)
    maps = {}
    for image, (layer, (channels, height, width)) in itertools.product(range(images), SHAPES.items()):
        rough = torch.randn(1, channels, height // 2, width // 2, generator=random)
        features = torch.nn.functional.interpolate(rough, (height, width), mode="bilinear")[0]
        maps[f"i{image}", layer, None] = (5 * features + 0.3 * torch.randn(features.shape, generator=random)).half()
    return MapsInMemory(maps)


def some_pairs(images: int, seed: int) -> list[MatchingPair]:
    """Ordered pairs in two categories, in an order that mixes sources and targets, 1 to 6 points a pair."""
    random = np.random.default_rng(seed)
    found = []
    for source, target in random.permutation(list(itertools.permutations(range(images), 2))):
        points = random.uniform(0, SIZE - 1, (2, random.integers(1, 7), 2)).astype(np.float32)
        points[0, 0] = [0.0001, SIZE - 1.0001]  # at the border
        found.append(MatchingPair(f"i{source}", f"i{target}", "ab"[target % 2], points[0], points[1], 30.0))
    return found


LAYERS = {
    "one": [LayerSpec("coarse", None, 1.0)],
    "two": [LayerSpec("coarse", None, 0.8), LayerSpec("fine", None, 0.6)],
    "three": [LayerSpec("fine", None, 0.5), LayerSpec("odd", None, 1.5), LayerSpec("coarse", None, 0.2)],
    "one weighs nothing": [LayerSpec("coarse", None, 0.0), LayerSpec("fine", None, 1.0)],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("geometry", list(Geometry))
@pytest.mark.parametrize("factor", [1, 2])
def test_it_equals_the_plain_version(layers: list[LayerSpec], geometry: Geometry, factor: int) -> None:
    maps, pairs = smooth_maps(5, seed=1), some_pairs(5, seed=2)
    settings = MatchSettings(SIZE, geometry, factor, geometry)
    fast = evaluate(pairs, maps, layers, ON_CELLS, settings, CPU)
    plain = evaluate_plainly(pairs, maps, layers, ON_CELLS, settings, CPU)
    assert [(match.pair.source, match.pair.target) for match in fast] == [(pair.source, pair.target) for pair in pairs]
    for readout in ON_CELLS:
        ours = np.concatenate([match.predictions[readout] for match in fast])
        theirs = np.concatenate([match.predictions[readout] for match in plain])
        same = np.abs(ours - theirs).max(axis=1) < 1e-2
        if readout in ("nn", "bilinear"):
            assert same.mean() >= 0.99  # two cells may be equally good to the last bit
        else:
            assert same.all()


def test_the_geometries_of_points_and_of_upsampling_are_apart() -> None:
    maps, pairs = smooth_maps(3, seed=3), some_pairs(3, seed=4)
    settings = MatchSettings(SIZE, Geometry.HALF_PIXEL, 2, Geometry.CORNERS)
    fast = evaluate(pairs, maps, LAYERS["two"], ["softmax"], settings, CPU)
    plain = evaluate_plainly(pairs, maps, LAYERS["two"], ["softmax"], settings, CPU)
    for ours, theirs in zip(fast, plain, strict=True):
        np.testing.assert_allclose(ours.predictions["softmax"], theirs.predictions["softmax"], atol=1e-2)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, pairs = smooth_maps(4, seed=5), some_pairs(4, seed=6)
    settings = MatchSettings(SIZE)
    whole = evaluate(pairs, maps, LAYERS["two"], ON_CELLS, settings, CPU)
    monkeypatch.setattr("matcher.correlate.BLOCK_CELLS", 5 * 4 * 2 * 12 * 12)
    monkeypatch.setattr("matcher.correlate.CHUNK_CELLS", 2 * 4 * 12 * 12)
    blocks = evaluate(pairs, maps, LAYERS["two"], ON_CELLS, settings, CPU)
    for ours, theirs in zip(whole, blocks, strict=True):
        for readout in ON_CELLS:
            np.testing.assert_allclose(ours.predictions[readout], theirs.predictions[readout], atol=1e-3)


def test_an_images_maps_are_asked_for_twice_at_most() -> None:
    maps, pairs = smooth_maps(5, seed=1), [pair for pair in some_pairs(5, seed=2) if pair.category == "a"]
    asked: dict[tuple[str, str], int] = {}

    class Counting:
        def load(self, image: str, layer: LayerSpec) -> torch.Tensor:
            asked[image, layer.layer] = asked.get((image, layer.layer), 0) + 1
            return maps.load(image, layer)

    evaluate(pairs, Counting(), LAYERS["two"], ["nn"], MatchSettings(SIZE), CPU)
    assert max(asked.values()) <= 2


@pytest.mark.parametrize("align", list(Geometry))
@pytest.mark.parametrize(
    ("size", "target"), [((6, 6), (12, 12)), ((5, 7), (13, 7)), ((3, 3), (12, 12)), ((4, 4), (4, 4))]
)
def test_upsampling_in_parts_is_torchs_of_the_whole(
    align: Geometry, size: tuple[int, int], target: tuple[int, int]
) -> None:
    features = torch.randn(70, *size, generator=torch.Generator().manual_seed(0))
    whole = upsample(features, target, align)
    up = upsampling(size, target, align, CPU)
    torch.testing.assert_close(up.scalars(features), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(squared_norms(features, up).sqrt(), whole.norm(dim=0), atol=1e-4, rtol=1e-5)
    y, x = torch.meshgrid(torch.arange(target[0]), torch.arange(target[1]), indexing="ij")
    cells = torch.stack([x.flatten(), y.flatten()], dim=1)
    torch.testing.assert_close(up.cells(features, cells), whole.flatten(1).T, atol=1e-5, rtol=1e-5)
