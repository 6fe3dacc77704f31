import math

import torch

from matcher.readout import blend_nearest, integer_neighbours, kernel_soft_argmax, nearest, soft_argmax


def peak(x: int, y: int, value: float = 1.0) -> torch.Tensor:
    correlation = torch.zeros(1, 5, 7)
    correlation[0, y, x] = value
    return correlation


def test_nearest_is_x_then_y() -> None:
    assert nearest(peak(6, 2)).tolist() == [[6.0, 2.0]]


def test_nearest_takes_the_first_of_equals() -> None:
    assert nearest(peak(3, 4) + peak(5, 1)).tolist() == [[5.0, 1.0]]


def test_soft_argmax_of_a_flat_map_is_its_middle() -> None:
    assert torch.allclose(soft_argmax(torch.zeros(1, 5, 7), 0.04), torch.tensor([[3.0, 2.0]]))


def test_soft_argmax_by_hand() -> None:
    # two cells at (1, 0) and (4, 0) whose correlations differ by beta * ln 3 share 3 : 1; the rest is out of reach
    correlation = torch.full((1, 5, 7), -10.0)
    correlation[0, 0, 1], correlation[0, 0, 4] = 0.0, -0.04 * math.log(3)
    assert torch.allclose(soft_argmax(correlation, 0.04), torch.tensor([[1.75, 0.0]]), atol=1e-5)


def test_the_kernel_multiplies_correlations_and_pulls_towards_the_peak() -> None:
    correlation = peak(1, 1, 0.9) + peak(6, 4, 0.89)
    plain, kernel = soft_argmax(correlation, 0.04), kernel_soft_argmax(correlation, 0.04, 1.0)
    assert plain[0, 0] > 3
    assert torch.allclose(kernel, torch.tensor([[1.0, 1.0]]), atol=0.01)


def test_neighbours_and_weights_by_hand() -> None:
    cells, weights = integer_neighbours(torch.tensor([[2.25, 1.5]]), (5, 7))
    assert cells[0].tolist() == [[2, 1], [3, 1], [2, 2], [3, 2]]
    assert torch.allclose(weights, torch.tensor([[0.375, 0.125, 0.375, 0.125]]))


def test_neighbours_at_the_border_stay_inside() -> None:
    cells, weights = integer_neighbours(torch.tensor([[6.0, 4.0], [-1.0, 9.0]]), (5, 7))
    assert cells.min() >= 0
    assert cells[..., 0].max() == 6
    assert cells[..., 1].max() == 4
    assert torch.allclose(weights.sum(dim=1), torch.ones(2))


def test_blend_weighs_the_matched_cells() -> None:
    neighbours = torch.cat([peak(0, 0), peak(4, 0), peak(0, 4), peak(4, 4)])[None]  # (1, 4, 5, 7)
    assert blend_nearest(neighbours, torch.tensor([[0.375, 0.125, 0.375, 0.125]])).tolist() == [[1.0, 2.0]]
