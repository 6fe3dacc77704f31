import numpy as np
import pytest
import torch

from matcher.configuration import Geometry
from matcher.errors import MatchError
from matcher.match import fuse, normalise, sample


def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, 4, generator=generator), 30 * torch.randn(3, 8, 8, generator=generator)


def test_one_layer_is_the_raw_map() -> None:
    coarse, _ = maps()
    assert torch.equal(fuse([coarse], [0.3], 1, Geometry.CORNERS), coarse)


def test_cells_of_the_fused_map_have_unit_norm_and_the_layers_their_weights() -> None:
    coarse, fine = maps()
    fused = fuse([coarse, fine], [0.8, 0.6], 1, Geometry.CORNERS)
    assert fused.shape == (8, 8, 8)
    # 1e-5: the epsilon in the norm
    assert torch.allclose(fused.norm(dim=0), torch.ones(8, 8), atol=1e-5)
    assert torch.allclose(fused[:5].norm(dim=0), torch.full((8, 8), 0.8), atol=1e-5)
    # the finest layer is not resampled: its cells are its own, scaled
    expected = 0.6 * fine.numpy() / (np.linalg.norm(fine.numpy(), axis=0) + 1e-6)
    np.testing.assert_allclose(fused[5:].numpy(), expected, rtol=1e-5, atol=1e-7)


def test_upsampling_doubles_the_finest_map_and_brings_the_others_to_its_size() -> None:
    coarse, fine = maps()
    assert fuse([coarse, fine], [1, 1], 2, Geometry.HALF_PIXEL).shape == (8, 16, 16)
    assert fuse([coarse], [1], 2, Geometry.HALF_PIXEL).shape == (5, 8, 8)


def test_align_corners_keeps_the_corner_cells() -> None:
    coarse, _ = maps()
    fused = fuse([coarse], [1], 2, Geometry.CORNERS)
    assert torch.allclose(fused[:, 0, 0], coarse[:, 0, 0], atol=1e-6)
    assert torch.allclose(fused[:, -1, -1], coarse[:, -1, -1], atol=1e-6)


def test_sampling_blends_four_cells_by_hand() -> None:
    _, fine = maps()
    found = sample(fine, torch.tensor([[2.25, 5.5], [7.0, 7.0], [9.0, -3.0]]))
    by_hand = 0.5 * (0.75 * fine[:, 5, 2] + 0.25 * fine[:, 5, 3]) + 0.5 * (0.75 * fine[:, 6, 2] + 0.25 * fine[:, 6, 3])
    assert torch.allclose(found[0], by_hand, atol=1e-4)
    assert torch.allclose(found[1], fine[:, 7, 7], atol=1e-4)
    assert torch.allclose(found[2], fine[:, 0, 7], atol=1e-4)  # beyond the border: the border


def test_half_precision_maps_are_computed_in_single() -> None:
    coarse, fine = maps()
    assert fuse([coarse.half(), fine.half()], [0.8, 0.6], 1, Geometry.CORNERS).dtype == torch.float32


def test_normalise_leaves_zeros_zero() -> None:
    assert torch.equal(normalise(torch.zeros(3, 2), dim=0), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("weights", "word"), [([1.0], "one weight a layer"), ([0, 0], "positive"), ([-1, 2], "negative")]
)
def test_weights_that_cannot_be(weights: list[float], word: str) -> None:
    coarse, fine = maps()
    with pytest.raises(MatchError, match=word):
        fuse([coarse, fine], weights, 1, Geometry.CORNERS)
