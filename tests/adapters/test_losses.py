"""The losses of adapters against GeoAware-SC's own code, and that a batch's is the mean of its pairs'."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from featstore.adapters.losses import PointPair, batch_loss, contrastive, cosines, dense_losses
from featstore.tuning.loss import correlations, default_kernel, describe_points, keypoint_losses, layered
from matcher.configuration import Geometry, MatchSettings
from matcher.geometry import pixels_to_cells

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "adapter" / "loss.safetensors")
SETTINGS = MatchSettings(840, Geometry.FLOOR)
SCALE = torch.tensor(1 / 0.07).log()
# rows of a cat's keypoints after mirroring: ears, eyes, nostrils' sides, mouth's sides, paws
PERMUTATION = (1, 0, 3, 2, 5, 4, 7, 6, 8, 10, 9, 12, 11, 13, 14)


class Case:
    """The maps, through which gradients flow, and the points that both images show."""

    def __init__(self) -> None:
        self.maps = {name: GOLDEN[f"map_{name}"][0].clone().requires_grad_() for name in ("a", "b", "a_flip", "b_flip")}
        self.points = {name: GOLDEN[f"kps_{name}"] for name in ("a", "b")}
        for name in ("a", "b"):
            turned = self.points[name].clone()
            turned[:, 0] = 840 - turned[:, 0]
            turned[turned[:, 2] == 0] = torch.tensor([840.0, 0, 0])
            turned[: len(PERMUTATION)] = turned[: len(PERMUTATION)][torch.tensor(PERMUTATION)]
            self.points[f"{name}_flip"] = turned
        self.scale = SCALE.clone().requires_grad_()

    def term(self, source: str, target: str, dense: bool, noise: Tensor | None = None, **more: float) -> Tensor:
        """clip or dense of one pair of maps."""
        visible = self.points[source][:, 2] * self.points[target][:, 2] != 0
        one, other = (self.points[name][visible, :2] for name in (source, target))
        images = [layered([self.maps[name]], (1.0,), SETTINGS) for name in (source, target)]
        described = [describe_points(*own, SETTINGS) for own in zip(images, (one, other), strict=True)]
        if not dense:
            return contrastive(cosines(*described, (1.0,)), self.scale)
        # they compare displacements, of the source's whole cell and of the points as they are
        cells = pixels_to_cells(one, 840, (60, 60), Geometry.FLOOR)
        wanted = cells + (60 / 840) * other - (60 / 840) * one
        if noise is not None:
            wanted = wanted + noise * 0.1 * GOLDEN["theta_b"] * 60 / 840 / 2
        return dense_losses(correlations(described[0], images[1]), wanted, **more).mean()  # type: ignore[arg-type]


def total(case: Case, run: str) -> Tensor:
    """As GeoAware-SC sums it."""
    clip, wide = (case.term("a", "b", dense) for dense in (False, True))
    if run == "clip":
        return clip
    if run in ("dense", "dense_noise"):
        noise = GOLDEN["dense_noise.noise0"] if run == "dense_noise" else None
        return clip + case.term("a", "b", True, noise)
    if run == "dense_window7":
        return clip + case.term("a", "b", True, window=7)
    if run == "dense_gauss5":
        return clip + case.term("a", "b", True, sigma=5.0)
    dense = run == "augmented"
    terms = [
        (1.0, clip + wide if dense else clip),
        *([] if dense else [(1.0, case.term("a_flip", "b", dense))]),
        (1.0, case.term("a_flip", "b_flip", dense)),
        (0.25, case.term("a_flip", "a", dense)),
    ]
    return sum(weight * own for weight, own in terms) / sum(weight for weight, _ in terms)  # type: ignore[return-value]


RUNS = ("clip", "dense", "dense_noise", "dense_window7", "dense_gauss5", "augmented", "augmented_all_clip")


@pytest.mark.parametrize("run", RUNS)
def test_it_is_geoaware_scs(run: str) -> None:
    case = Case()
    found = total(case, run)
    found.backward()
    torch.testing.assert_close(found, GOLDEN[f"{run}.loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(case.scale.grad, GOLDEN[f"{run}.grad_logit_scale"], rtol=1e-4, atol=1e-6)
    for name in ("a", "b"):
        key = f"{run}.grad_{name}"
        if key in GOLDEN:
            truth, own = GOLDEN[key][0], case.maps[name].grad
            torch.testing.assert_close(own, truth, rtol=0, atol=1e-4 * truth.abs().max().item())


def some_pairs() -> tuple[list[PointPair], dict[tuple[str, bool], list[Tensor]]]:
    """Three images of two layers; pairs of 2 to 4 points, two of them into one target."""
    random = torch.Generator().manual_seed(3)
    maps = {
        (name, False): [torch.randn(c, s, s, generator=random) for c, s in ((6, 4), (5, 8))] for name in ("x", "y", "z")
    }
    ends = [("x", "y"), ("z", "y"), ("y", "x")]
    pairs = [
        PointPair((a, False), (b, False), *(62 * torch.rand(2, 2 + index, 2, generator=random)).unbind())
        for index, (a, b) in enumerate(ends)
    ]
    return pairs, maps


@pytest.mark.parametrize("loss", ["prompt", "contrastive", "dense", "contrastive+dense"])
def test_a_batchs_loss_is_the_mean_of_its_pairs(loss: str) -> None:
    """Of the losses of each point, one pair at a time."""
    pairs, maps = some_pairs()
    settings, weights, kernel = MatchSettings(64), (0.8, 0.6), default_kernel(8)
    images = {side: layered(own, weights, settings) for side, own in maps.items()}
    found = batch_loss(pairs, images, loss, settings, kernel)  # type: ignore[arg-type]
    alone = []
    for pair in pairs:
        source, target = images[pair.source], images[pair.target]
        one = describe_points(source, pair.source_points, settings)
        there = correlations(one, target)
        cells = pixels_to_cells(pair.target_points, 64, target.size, settings.geometry)
        parts = {
            "prompt": keypoint_losses(there, cells, kernel, settings.beta).mean(),
            "contrastive": contrastive(cosines(one, describe_points(target, pair.target_points, settings), weights)),
            "dense": dense_losses(there, cells).mean(),
        }
        alone.append(sum(parts[name] for name in loss.split("+")))
    torch.testing.assert_close(found, torch.stack(alone).mean())  # type: ignore[arg-type]
