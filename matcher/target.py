"""The target's side of a correlation: its maps as they meet queries, and sums over layers.

<q, up(F)> = up(<q, F>): the correlation with a fused map is a weighted sum of the layers' correlations, each computed
at its own resolution and upsampled as a scalar map (docs/method.md, Correlation). No fused map is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from matcher.configuration import Layout
from matcher.errors import MatchError
from matcher.maps import LayerSpec
from matcher.queries import MapKey, Samples, final_size
from matcher.upsampling import Upsampling, upsampling

BLOCK_CELLS = 2**25
"""Correlations held at once, all maps of a target together: 134 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetMap:
    """features: (C, h, w), float32. up: to the final size (H, W). divisor: (H, W), what its correlations are divided
    by; None where they are not."""

    features: Tensor
    up: Upsampling
    divisor: Tensor | None

    def correlate(self, vectors: Tensor) -> Tensor:
        """Query vectors (n, rows, C) to correlations (n, rows, H, W)."""
        products = vectors.flatten(0, 1) @ self.features.flatten(1)  # (n * rows, h * w)
        maps = self.up.scalars(products.unflatten(1, self.features.shape[1:]))
        if self.divisor is not None:
            maps = maps.div_(self.divisor)
        return maps.unflatten(0, vectors.shape[:2])


def target_upsamplings(layout: Layout, maps: Mapping[LayerSpec, Tensor]) -> dict[MapKey, Upsampling]:
    """How each map of a layout reaches the final size."""
    size = final_size([maps[specs[0]] for specs in layout.maps], layout.settings.upsample)
    return {
        (position, spec): upsampling(
            (maps[spec].shape[-2], maps[spec].shape[-1]), size, layout.settings.upsample_align, maps[spec].device
        )
        for position, specs in enumerate(layout.maps)
        for spec in specs
    }


def check_channels(samples: Samples, maps: Mapping[LayerSpec, Tensor]) -> None:
    """Raise `MatchError` where the source's maps have other channels than the target's."""
    for (_, spec), vectors in samples.vectors.items():
        if vectors.shape[2] != maps[spec].shape[0]:
            raise MatchError(
                f"The source map has {vectors.shape[2]} channels and the target map {maps[spec].shape[0]}: both must "
                "come from the same layers of the same model."
            )


def block_of(layout: Layout, size: tuple[int, int]) -> int:
    """How many points are correlated at once with all maps of a layout."""
    count = sum(len(specs) for specs in layout.maps)
    return max(BLOCK_CELLS // (size[0] * size[1] * layout.rows * count), 1)


def weighted_sum(products: Sequence[Tensor], weights: Sequence[float], buffer: Tensor) -> Tensor:
    """Correlations (n, ...), a layer each, summed by squared weight over the largest squared weight. The sum lies in
    `buffer`, (at least n, ...), or, where one layer counts alone, is that layer's: it must not be changed."""
    base = max(weights)
    first = list(weights).index(base)
    total = products[first]
    for position, (product, weight) in enumerate(zip(products, weights, strict=True)):
        if position != first and weight > 0:
            total = torch.add(total, product, alpha=(weight / base) ** 2, out=buffer[: len(product)])
    return total
