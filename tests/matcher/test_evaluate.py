import numpy as np
import pytest
import torch

from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.errors import MapError, MatchError
from matcher.maps import MapsInMemory
from matcher.match import match_points
from matcher.pairs import MatchingPair
from matcher.sweep import evaluate
from tests.matcher.unchecked import Unchecked

CPU = torch.device("cpu")


def spots(cells: list[tuple[int, int]], side: int) -> torch.Tensor:
    """A map on which cell i of `cells` holds the one-hot vector i and all others a vector of their own."""
    features = torch.zeros(len(cells) + 1, side, side)
    features[-1] = 1
    for channel, (x, y) in enumerate(cells):
        features[:, y, x] = 0
        features[channel, y, x] = 1
    return features


@pytest.mark.parametrize("geometry", [Geometry.CORNERS, Geometry.HALF_PIXEL])
def test_planted_matches_are_found(geometry: Geometry) -> None:
    source, target = spots([(1, 1), (6, 2)], 8), spots([(5, 4), (0, 7)], 8)
    settings = MatchSettings(64, geometry)
    cell = 63 / 7 if geometry is Geometry.CORNERS else 8
    offset = 0 if geometry is Geometry.CORNERS else 3.5
    points = torch.tensor([[1.0, 1.0], [6.0, 2.0]]) * cell + offset
    found = match_points(source, target, points, ["nn", "bilinear", "kernelsoftmax"], settings)
    expected = torch.tensor([[5.0, 4.0], [0.0, 7.0]]) * cell + offset
    assert torch.allclose(found["nn"], expected, atol=1e-4)
    assert torch.allclose(found["bilinear"], expected, atol=1e-2)


def test_pairs_come_back_in_order_and_layers_are_weighed() -> None:
    # the coarse layer says cell (0, 0), the fine one says (7, 7): the weights decide
    right, wrong = spots([(7, 7)], 8), spots([(0, 0)], 8)
    maps = MapsInMemory(
        {
            ("a", "good", None): spots([(3, 3)], 8),
            ("a", "bad", None): spots([(3, 3)], 8),
            ("b", "good", None): right,
            ("b", "bad", None): wrong,
        }
    )
    point = np.array([[3 * 9.0, 3 * 9.0]], dtype=np.float32)
    pairs = [MatchingPair("a", "b", "x", point, point, 10.0), MatchingPair("a", "a", "x", point, point, 10.0)]
    for weights, cell in (((0.8, 0.6), 7), ((0.6, 0.8), 0)):
        layers = [LayerSpec("good", None, weights[0]), LayerSpec("bad", None, weights[1])]
        matched = evaluate(pairs, maps, layers, ["nn"], MatchSettings(64), CPU)
        np.testing.assert_allclose(matched[0].predictions["nn"], [[cell * 9, cell * 9]], atol=1e-4)
        np.testing.assert_allclose(matched[1].predictions["nn"], point, atol=1e-4)


def test_what_does_not_fit_together() -> None:
    maps = Unchecked({("a", "x", None): torch.zeros(3, 4, 4), ("b", "x", None): torch.zeros(5, 4, 4)})
    point = np.ones((1, 2), dtype=np.float32)
    pair = MatchingPair("a", "b", "c", point, point, 1.0)
    with pytest.raises(MatchError, match="3 channels and the target map 5"):
        evaluate([pair], maps, [LayerSpec("x", None, 1)], ["nn"], MatchSettings(64), CPU)
    with pytest.raises(MapError, match="'y'"):
        evaluate([pair], maps, [LayerSpec("y", None, 1)], ["nn"], MatchSettings(64), CPU)
    with pytest.raises(MatchError, match="layer"):
        evaluate([pair], maps, [], ["nn"], MatchSettings(64), CPU)
    with pytest.raises(MatchError):
        MatchSettings(1)
    with pytest.raises(MatchError):
        MatchSettings(64, upsample=0)


@pytest.mark.parametrize("image", ["a", "b", "c"])
def test_an_image_whose_maps_have_other_channels(image: str) -> None:
    """As source among other sources, or as target."""
    maps = {(name, "f", None): torch.ones(3, 4, 4) for name in "abc"} | {(image, "f", None): torch.ones(5, 4, 4)}
    point = np.array([[30.0, 30.0]], dtype=np.float32)
    pairs = [MatchingPair(source, "c", "cat", point, point, 10.0) for source in "ab"]
    with pytest.raises(MatchError, match="channels"):
        evaluate(pairs, Unchecked(maps), [LayerSpec("f", None)], ["nn"], MatchSettings(64, Geometry.CORNERS), CPU)
