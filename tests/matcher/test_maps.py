"""Maps of one's own are looked at before they are matched, and no match that is none is scored."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from matcher.configuration import MODULES, Geometry, LayerSpec, MatchSettings, check_weights, one_layer_each
from matcher.errors import MapError, MatchError
from matcher.grid import score_grid
from matcher.maps import MapsInMemory, check_map
from matcher.match import fuse, match_points
from matcher.pairs import MatchingPair, OriginalFrame
from matcher.sweep import evaluate
from tests.matcher.unchecked import Unchecked

CPU = torch.device("cpu")
POINT = np.array([[30.0, 30.0]], dtype=np.float32)


def plain(channels: int = 6, side: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(channels, side, side, generator=torch.Generator().manual_seed(seed))


def one_cell(value: float) -> Callable[[Tensor], Tensor]:
    def change(features: Tensor) -> Tensor:
        features[2, 1, 1] = value
        return features

    return change


BAD: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (
        lambda it: it.permute(1, 2, 0),
        r"shape \(5, 5, 6\).* it is \(h, w, C\), it seems: move the channels to the front",
    ),
    (lambda it: it[:, :4], r"4 x 5 cells where images are square"),
    (lambda it: it[0], r"is float32 of shape \(5, 5\)"),
    (lambda it: it[None], r"is float32 of shape \(1, 6, 5, 5\)"),
    (lambda it: it[:, :0, :0], r"none of them 0"),
    (lambda it: (100 * it).int(), "is int32 of shape"),
    (lambda it: (100 * it).to(torch.uint8), "is uint8 of shape"),
    (lambda it: 0 * it, "every cell is zero"),
    (lambda it: 0 * it + 1, "all its 25 cells point the same way"),
    (lambda it: 0 * it + torch.arange(6.0)[:, None, None] + 1, "all its 25 cells point the same way"),
    (lambda it: it[:, :1, :1].expand(6, 5, 5) * torch.rand(5, 5).add(1), "all its 25 cells point the same way"),
    (lambda it: it[:, :1, :1], "all its 1 cells point the same way"),
    (lambda it: it[:1].abs() + 1, "all its 25 cells point the same way"),
    (lambda it: 1e-8 * it, "every cell is too small"),
    (lambda it: (1e-5 * it).half(), "every cell is too small"),
    (lambda it: 1e30 * it, "not finite, or larger than 1e"),
    (lambda it: 1e60 * it.double(), "not finite, or larger than 1e"),
    (one_cell(torch.nan), "not finite"),
    (one_cell(-torch.inf), "not finite"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_map_that_cannot_be_matched_is_named(change: Callable[[Tensor], Tensor], words: str) -> None:
    maps = {("cat/0", "s8", None): plain(), ("cat/1~mirrored", "s8", None): change(plain())}
    with pytest.raises(MapError, match=words) as error:
        MapsInMemory(maps)
    assert "The map of 'cat/1~mirrored', layer 's8' " in str(error.value)


def test_denormal_halves_are_refused_whatever_their_norm() -> None:
    features = (3e-5 * torch.randn(4096, 2, 2).sign()).half()  # norms of 0.002
    with pytest.raises(MapError, match="every cell is too small"):
        check_map(features, "it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0, 10])
def test_maps_that_can_be_matched(dtype: torch.dtype, scale: float, offset: float) -> None:
    check_map((scale * (plain() + offset)).to(dtype), "it")
    check_map((scale * (plain(5, 5) + offset)).to(dtype), "as many channels as cells")


def test_cells_that_were_masked_are_no_fault() -> None:
    """Nor what a ReLU makes: descriptors of zeros are like nothing, by definition."""
    features = plain()
    features[:, 1:, :] = 0
    check_map(features, "it")
    features[:, 0, 1:] = 0
    check_map(features, "one cell is left")


def test_maps_of_one_layer_are_alike() -> None:
    first = {("a", "x", 1): plain()}
    MapsInMemory({**first, ("a", "x", 2): plain(7), ("b", "x", 1): plain(side=9)})
    for other, words in ((plain(7), "7 channels in float32, but .*'a'"), (plain().half(), "6 channels in float16")):
        with pytest.raises(MapError, match=words):
            MapsInMemory({**first, ("b", "x", 1): other})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["a", "b"])
@pytest.mark.parametrize("readout", list(MODULES))
def test_no_nan_is_scored(bad: float, place: str, readout: str) -> None:
    """Of a source that hands out what it should not: evaluate and grid name the pair and the readout."""
    maps = {(image, "x", None): plain(seed=seed) for seed, image in enumerate("ab")}
    maps[place, "x", None][:, 2:, 2:] = bad
    original = OriginalFrame((64, 64), (64, 64), POINT, POINT, 1.0)
    pair = MatchingPair("a", "b", "c", POINT, POINT, 10.0, original)
    settings = MatchSettings(61)
    with pytest.raises(MatchError, match=rf"The points of a -> b have no match by {readout}"):
        evaluate([pair], Unchecked(maps), [LayerSpec("x", None)], [readout], settings, CPU)
    with pytest.raises(MatchError, match="a -> b"):
        score_grid([pair], Unchecked(maps), one_layer_each({"x": (None,)}, settings), [readout], [0.1], CPU)
    if readout != "pixel":
        with pytest.raises(MatchError, match=f"no match by {readout}"):
            match_points(maps["a", "x", None], maps["b", "x", None], torch.from_numpy(POINT), [readout], settings)


@pytest.mark.parametrize(
    "weights", [(1e30, 1e30), (1e300, 1.0), (1e-30, 1e-30), (torch.nan, 1), (torch.inf, 1), (0, 0)]
)
def test_weights_that_cannot_be_used(weights: tuple[float, float]) -> None:
    with pytest.raises(MatchError, match="cannot be used"):
        check_weights(2, weights)
    with pytest.raises(MatchError, match="cannot be used"):
        fuse([plain(), plain()], weights, 1, Geometry.CORNERS)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e15])
def test_only_ratios_of_weights_count(scale: float) -> None:
    maps = MapsInMemory({(image, layer, None): plain(seed=ord(image) + ord(layer)) for image in "ab" for layer in "xy"})
    points = np.array([[11.0, 47.0], [30.0, 30.0]], dtype=np.float32)
    pair = MatchingPair("a", "b", "c", points, points, 10.0)
    ours, theirs = (
        evaluate(
            [pair],
            maps,
            [LayerSpec("x", None, 0.8 * factor), LayerSpec("y", None, 0.6 * factor)],
            ["nn", "softmax"],
            MatchSettings(61),
            CPU,
        )[0].predictions
        for factor in (scale, 1.0)
    )
    for readout, found in ours.items():
        np.testing.assert_allclose(found, theirs[readout], atol=0.01)


@pytest.mark.parametrize(
    "change", [{"beta": 0.0}, {"beta": torch.nan}, {"sigma": -1.0}, {"window_beta": torch.inf}, {"window": -1}]
)
def test_settings_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(MatchError, match=next(iter(change)).split("_")[0]):
        MatchSettings(64, **change)  # type: ignore[arg-type]


def test_points_and_theta_are_finite() -> None:
    absent = np.array([[np.nan, 1.0]], dtype=np.float32)
    for arguments in ((absent, POINT, 1.0), (POINT, absent, 1.0), (POINT, POINT, np.nan)):
        with pytest.raises(MatchError, match="a -> b has a point or a theta that is not finite"):
            MatchingPair("a", "b", "c", *arguments)
    with pytest.raises(MatchError, match="not finite"):
        match_points(plain(), plain(), torch.from_numpy(absent), ["nn"], MatchSettings(61))
