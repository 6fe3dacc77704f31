"""The losses that adapters learn by: that of prompts (`featstore.tuning.loss`), GeoAware-SC's contrastive one, its
dense one, or both of the latter. All take the factorised correlations, so that no fused map is built."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from featstore.config import AdapterLoss
from featstore.tuning.loss import Descriptors, LayeredMaps, correlations, describe_points, keypoint_losses
from matcher.configuration import WINDOW_BETA, MatchSettings
from matcher.geometry import pixels_to_cells
from matcher.readout import cells_of

LOG_SCALE = math.log(1 / 0.07)
"""Of the contrastive loss's cosines, where an adapter does not learn it: GeoAware-SC's at first."""


Image = tuple[str, bool]
"""An image's id, and whether its maps are mirrored."""


@dataclass(frozen=True, slots=True, eq=False)
class PointPair:
    """Points to be matched. source, target: which maps they lie in. source_points, target_points: (n, 2), pixels of the
    resized frame."""

    source: Image
    target: Image
    source_points: Tensor
    target_points: Tensor


def batch_loss(
    pairs: Sequence[PointPair],
    images: Mapping[Image, LayeredMaps],
    loss: AdapterLoss,
    settings: MatchSettings,
    kernel: int,
    log_scale: Tensor | float = LOG_SCALE,
) -> Tensor:
    """The mean over pairs of the mean over their points, a scalar. All queries into a target share one product per
    layer.

    Args:
        pairs: Of a batch.
        images: Their maps, through which gradients flow.
        loss: Which.
        settings: How maps become matches.
        kernel: Of the prompts' loss, in cells.
        log_scale: Of the contrastive loss.
    """
    sources = _described(images, settings, [(pair.source, pair.source_points) for pair in pairs])
    total = torch.zeros(())
    if "contrastive" in loss:
        targets = _described(images, settings, [(pair.target, pair.target_points) for pair in pairs])
        for pair, one, other in zip(pairs, sources, targets, strict=True):
            total = total + contrastive(cosines(one, other, images[pair.target].weights), log_scale)
    if loss != "contrastive":
        for target, members in _grouped([pair.target for pair in pairs]).items():
            counts = torch.tensor([len(pairs[index].source_points) for index in members])
            found = correlations(_joined([sources[index] for index in members]), images[target])
            wanted = torch.cat([pairs[index].target_points for index in members]).to(found.device)
            size, side = images[target].size, settings.image_size
            cells = pixels_to_cells(wanted, side, size, settings.geometry)
            if loss == "prompt":
                own = keypoint_losses(found, cells, kernel, settings.beta)
            else:
                own = dense_losses(found, cells)
            shares = (1 / counts).repeat_interleave(counts).to(own)
            total = total + (own * shares).sum()
    return total / len(pairs)


def cosines(one: Descriptors, other: Descriptors, weights: Sequence[float | Tensor]) -> Tensor:
    """(n, m), of fused descriptors of n points with m others."""
    products = (weight**2 * a @ b.T for weight, a, b in zip(weights, one.layers, other.layers, strict=True))
    return sum(products, torch.zeros(())) / (one.lengths[:, None] * other.lengths)


def contrastive(found: Tensor, log_scale: Tensor | float = LOG_SCALE) -> Tensor:
    """GeoAware-SC's contrastive loss, as CLIP's: the mean of both cross entropies of cosines (n, n), in which point i
    of the source belongs to point i of the target, times exp(log_scale)."""
    logits = found * torch.as_tensor(log_scale).exp()
    truth = torch.arange(len(found), device=found.device)
    return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2


def dense_losses(
    correlation: Tensor,
    wanted: Tensor,
    window: int | None = None,
    sigma: float | None = None,
    beta: float = WINDOW_BETA,
) -> Tensor:
    """GeoAware-SC's dense loss of each point, (n,): how far, in cells, the soft-argmax lies from where it should.

    Args:
        correlation: (n, H, W), cosines.
        wanted: (n, 2), (x, y) in cells.
        window: Cells more than that many rows or columns from the largest cosine count as 0; None for all as they are.
        sigma: Of a Gaussian around it that multiplies the cosines; None for none. Published training has neither.
        beta: Temperature of the softmax.
    """
    height, width = correlation.shape[1:]
    rows, columns = (torch.arange(side, device=correlation.device).to(correlation) for side in (height, width))
    if window is not None or sigma is not None:
        nearest = cells_of(correlation.detach().flatten(1).argmax(dim=1), (height, width)).to(correlation)  # (n, 2)
        across, down = columns - nearest[:, :1], rows - nearest[:, 1:]  # (n, W), (n, H)
        if window is not None:
            inside = (down.abs() <= window)[:, :, None] & (across.abs() <= window)[:, None, :]
            correlation = correlation * inside
        if sigma is not None:
            squares = down.square()[:, :, None] + across.square()[:, None, :]
            correlation = correlation * torch.exp(-squares / (2 * sigma**2))
    shares = torch.softmax(correlation.flatten(1) / beta, dim=1).view_as(correlation)
    found = torch.stack([(shares.sum(dim=1) * columns).sum(dim=1), (shares.sum(dim=2) * rows).sum(dim=1)], dim=1)
    return (found - wanted.to(found)).norm(dim=1)


def _described(
    images: Mapping[Image, LayeredMaps], settings: MatchSettings, points: Sequence[tuple[Image, Tensor]]
) -> list[Descriptors]:
    """Those of each entry's points, sampled an image at a time."""
    found: dict[int, Descriptors] = {}
    for image, members in _grouped([image for image, _ in points]).items():
        there = torch.cat([points[index][1] for index in members]).to(images[image].norms[0].device)
        own = describe_points(images[image], there, settings)
        counts = [len(points[index][1]) for index in members]
        split = zip(*(part.split(counts) for part in (*own.layers, own.lengths)), strict=True)
        found |= {index: Descriptors(parts[:-1], parts[-1]) for index, parts in zip(members, split, strict=True)}
    return [found[index] for index in range(len(points))]


def _joined(parts: Sequence[Descriptors]) -> Descriptors:
    layers = tuple(torch.cat(own) for own in zip(*(part.layers for part in parts), strict=True))
    return Descriptors(layers, torch.cat([part.lengths for part in parts]))


def _grouped(keys: Sequence[Image]) -> dict[Image, list[int]]:
    """The places of each key, in order."""
    groups: dict[Image, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups
