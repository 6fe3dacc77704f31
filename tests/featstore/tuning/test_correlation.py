"""Correlations through which gradients flow, against the plain ones on materialised fused maps."""

import itertools

import pytest
import torch

from featstore.tuning.loss import correlations, describe_points, layered
from matcher.configuration import Geometry, MatchSettings
from matcher.geometry import pixels_to_cells
from matcher.match import correlate, fuse

SHAPES = {"one": [(12, 9, 9)], "two": [(20, 6, 6), (12, 12, 12)], "three": [(7, 5, 5), (12, 12, 12), (9, 6, 6)]}
WEIGHTS = {"one": [1.0], "two": [0.8, 0.6], "three": [0.5, 1.5, 0.2]}


@pytest.mark.parametrize(("layers", "geometry", "factor"), list(itertools.product(SHAPES, Geometry, [1, 2])))
def test_values_and_gradients_are_those_of_the_fused_map(layers: str, geometry: Geometry, factor: int) -> None:
    random = torch.Generator().manual_seed(0)
    settings = MatchSettings(96, geometry, factor, geometry)
    source, target = (
        [torch.randn(shape, generator=random).requires_grad_() for shape in SHAPES[layers]] for _ in range(2)
    )
    points = 95 * torch.rand(9, 2, generator=random)
    ends = [layered(maps, WEIGHTS[layers], settings) for maps in (source, target)]
    ours = correlations(describe_points(ends[0], points, settings), ends[1])
    fused = [fuse(maps, WEIGHTS[layers], factor, geometry) for maps in (source, target)]
    plain = correlate(fused[0], pixels_to_cells(points, 96, ends[0].size, geometry), fused[1])
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    direction = torch.randn(ours.shape, generator=random)
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), source + target),
        torch.autograd.grad((plain * direction).sum(), source + target),
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_cells_that_are_zero_have_finite_gradients() -> None:
    features = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(1))
    features[:, :3] = 0
    features.requires_grad_()
    settings = MatchSettings(48)
    for maps, weights in (([features], [1.0]), ([features, features], [0.8, 0.6])):
        image = layered(maps, weights, settings)
        found = correlations(describe_points(image, torch.tensor([[3.0, 3.0], [40.0, 40.0]]), settings), image)
        (gradient,) = torch.autograd.grad(found.sum(), features)
        assert found.isfinite().all()
        assert gradient.isfinite().all()
