"""The loss: SD4Match's value and gradients, hand-computed cases, and stability."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from featstore.errors import TuningError
from featstore.tuning.loss import correlations, default_kernel, describe_points, gaussian, keypoint_losses, layered
from matcher.configuration import MatchSettings
from matcher.geometry import pixels_to_cells

GOLDEN = Path(__file__).parents[2] / "golden" / "loss.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_sd4matchs(dtype: torch.dtype) -> None:
    golden = load_file(GOLDEN)
    settings = MatchSettings(96)
    source, target = (golden[name].to(dtype).requires_grad_() for name in ("src", "trg"))
    total = torch.zeros((), dtype=dtype)
    for index, count in enumerate(golden["n_pts"].tolist()):
        points, truths = (golden[name][index, :count].to(dtype) for name in ("src_kps", "trg_kps"))
        ends = [layered([maps[index]], [1.0], settings) for maps in (source, target)]
        correlation = correlations(describe_points(ends[0], points, settings), ends[1])
        cells = pixels_to_cells(truths, 96, ends[1].size, settings.geometry)
        total = total + keypoint_losses(correlation, cells, kernel=7, beta=settings.beta).mean() / 3
    total.backward()
    torch.testing.assert_close(total.float(), golden["loss"][0], rtol=1e-5, atol=0)
    for maps, name in ((source, "grad_src"), (target, "grad_trg")):
        assert maps.grad is not None
        assert (maps.grad - golden[name]).norm() <= 1e-5 * golden[name].norm()


def test_a_hand_computed_case() -> None:
    """On a map of equal correlations P is 1 / 25 everywhere; at the centre no offset of a 3 x 3 kernel is masked."""
    _, density = gaussian(3)
    assert density[4].item() == pytest.approx(1 / (2 * math.pi * 0.25))
    losses = keypoint_losses(torch.zeros(1, 5, 5), torch.tensor([[2.0, 2.0]]), kernel=3, beta=0.04)
    assert losses.item() == pytest.approx(density.sum().item() * math.log(25), rel=1e-6)


@pytest.mark.parametrize(
    ("target", "inside"),
    [((0.0, 2.0), 3), ((0.5, 2.0), 6), ((3.9, 2.0), 6), ((3.99, 0.2), 4), ((2.0, 2.0), 9), ((-3.0, 2.0), 0)],
)
def test_samples_not_strictly_inside_do_not_count(target: tuple[float, float], inside: int) -> None:
    """A kernel of equal weights counts them: those at 0 < x < 4 and 0 < y < 4."""
    offsets, density = gaussian(3)
    sampled = torch.tensor(target, dtype=torch.float64) + offsets
    counted = ((sampled > 0) & (sampled < 4)).all(dim=1)
    assert counted.sum() == inside
    losses = keypoint_losses(torch.zeros(1, 5, 5), torch.tensor([target]), kernel=3, beta=0.04)
    assert losses.item() == pytest.approx(density[counted].sum().item() * math.log(25), rel=1e-5, abs=1e-6)


def test_a_blend_of_probabilities_not_of_their_logarithms() -> None:
    correlation = torch.tensor([[[0.0, 0.1, 0.0], [0.3, 0.2, 0.0], [0.0, 0.0, 0.0]]])
    beta = 0.1
    shares = torch.softmax(correlation.flatten() / beta, dim=0).view(3, 3)
    blended = 0.75 * 0.5 * (shares[0, 1] + shares[1, 1]) + 0.25 * 0.5 * (shares[0, 2] + shares[1, 2])
    losses = keypoint_losses(correlation, torch.tensor([[1.25, 0.5]]), kernel=1, beta=beta)
    assert losses.item() == pytest.approx(-math.log(blended.item()), rel=1e-5)


def test_sharp_correlations_stay_finite() -> None:
    """A cell away from the best by 2 at beta = 0.01 has probability exp(-200): 0 in float32, its logarithm is not."""
    correlation = torch.full((1, 9, 9), -1.0)
    correlation[0, 0, 0] = 1.0
    correlation.requires_grad_()
    losses = keypoint_losses(correlation, torch.tensor([[6.0, 6.0]]), kernel=3, beta=0.01)
    losses.sum().backward()
    assert losses.item() == pytest.approx(gaussian(3)[1].sum().item() * 200, rel=1e-3)
    assert correlation.grad is not None
    assert correlation.grad.isfinite().all()


def test_half_precision_maps_give_nearly_the_same() -> None:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(16, 12, 12, generator=random) for _ in range(2)]
    points = 95 * torch.rand(6, 2, generator=random)
    settings = MatchSettings(96)

    def loss(dtype: torch.dtype) -> torch.Tensor:
        source, target = (layered([features.to(dtype)], [1.0], settings) for features in maps)
        correlation = correlations(describe_points(source, points, settings), target)
        return keypoint_losses(correlation, points / 8, kernel=7, beta=0.04).mean()

    exact = loss(torch.float32)
    assert loss(torch.float16) == pytest.approx(exact.item(), rel=1e-3)
    assert loss(torch.bfloat16) == pytest.approx(exact.item(), rel=1e-2)


def test_the_usual_kernel_depends_on_the_map() -> None:
    assert [default_kernel(side) for side in (16, 32, 47, 48, 96)] == [3, 3, 3, 7, 7]
    assert [default_kernel(side, 5) for side in (32, 48)] == [3, 5]  # of a model whose profile says so


@pytest.mark.parametrize("kernel", [0, 4, -3])
def test_a_kernel_needs_a_centre(kernel: int) -> None:
    with pytest.raises(TuningError, match="no centre"):
        gaussian(kernel)
