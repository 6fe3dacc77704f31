"""The target's side of a correlation in the original frame, at every pixel of the target image, as DIFT matches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from matcher.configuration import Configuration
from matcher.correlate import Blend, Family, Samples, TargetMap, block_of, target_upsamplings, weighted_sum
from matcher.fusion import NORM_EPSILON, Upsampling, bilinear_upsampling, inner_products, squared_norms
from matcher.maps import LayerSpec
from matcher.readout import Correlations, nearest

CHUNK_PIXELS = 2**22
"""Correlations at pixels that are held at once: 17 MB."""

TIMES = {(0, 0): 1, (0, 1): 2, (1, 0): 2, (1, 1): 2, (1, -1): 2}
"""How often the square of a bilinear blend has the inner product of a cell and the one (down, right) of it."""


def match_pixels_of_target(
    family: Family,
    configurations: Sequence[Configuration],
    samples: Samples,
    rows: Tensor,
    maps: Mapping[LayerSpec, Tensor],
    original_size: tuple[int, int],
) -> Tensor:
    """Where `samples` at `rows` (n,) lie in the target whose maps are given, float32 (C, h, w), and whose original has
    `original_size` = (width, height): (members of the family, its readouts, n, 2), pixels of the original frame."""
    ups = target_upsamplings(family, maps)
    size = next(iter(ups.values())).size
    to_pixels = bilinear_upsampling(size, (original_size[1], original_size[0]), rows.device)
    targets = {}
    for key, up in ups.items():
        # a layer that is alone is normalised at the pixels only, of several each cell before they are fused
        divisor = None if len(family.layers) == 1 else squared_norms(maps[key[1]], up).sqrt() + NORM_EPSILON
        targets[key] = TargetMap(maps[key[1]], up, divisor)
    squares = {key: squared_norms_at_pixels(target, to_pixels) for key, target in targets.items()}
    found = torch.empty(len(family.members), len(family.readouts), len(rows), 2, device=rows.device)
    block = block_of(family, size)
    buffer = torch.empty(min(block, len(rows)), *size, device=rows.device)
    chunk = max(CHUNK_PIXELS // (original_size[0] * original_size[1]), 1)
    for start in range(0, len(rows), block):
        chosen = rows[start : start + block]
        products = {key: target.correlate(samples.vectors[key][chosen])[:, 0] for key, target in targets.items()}
        for member, index in enumerate(family.members):
            keys = [(position, layer.map) for position, layer in enumerate(configurations[index].layers)]
            # one layer's weight does not matter
            weights = [layer.weight for layer in configurations[index].layers] if len(keys) > 1 else [1.0]
            total = weighted_sum([products[key] for key in keys], weights, buffer[: len(chosen)])
            norms = torch.stack([weight**2 * squares[key] for key, weight in zip(keys, weights, strict=True)])
            length = norms.sum(dim=0).sqrt() + NORM_EPSILON  # (H_pixels, W_pixels)
            own = [samples.squares[key][chosen] for key in keys]
            scale = Blend(tuple(keys), tuple(weights), None, 1.0).scale(own)
            for first in range(0, len(chosen), chunk):
                part = slice(first, first + chunk)
                sums = to_pixels.scalars(total[part]) / length
                shares = samples.shares[chosen][part]
                read = Correlations(family.settings, sums, scale[part], nearest(sums), sums[:, None], shares)
                for column, known in enumerate(family.readouts):
                    found[member, column, start + first : start + first + len(sums)] = known.read(read)
    return found


def squared_norms_at_pixels(target: TargetMap, to_pixels: Upsampling) -> Tensor:
    """Squared norms, (H_pixels, W_pixels), of a map whose cells were brought to the final size, divided by its divisor
    if it has one, and upsampled by `to_pixels`; >= 0."""
    rows, columns = to_pixels.rows, to_pixels.columns
    total = torch.zeros(to_pixels.size, dtype=rows.dtype, device=rows.device)
    # a map of one row or one column has no neighbours there
    offsets = [(down, right) for down, right in TIMES if down < rows.shape[1] and abs(right) < columns.shape[1]]
    for (down, right), products in zip(offsets, inner_products(target.features, target.up, offsets), strict=True):
        if target.divisor is not None:
            above, below = target.divisor[: len(rows[0]) - down], target.divisor[down:]
            products = products / (_without(above, -right) * _without(below, right))
        row_pairs = rows[:, : rows.shape[1] - down] * rows[:, down:]
        column_pairs = _without(columns, -right) * _without(columns, right)
        total += TIMES[down, right] * (row_pairs @ products @ column_pairs.T)
    return total.clamp(min=0)


def _without(values: Tensor, columns: int) -> Tensor:
    """(n, W) without its first `columns` columns or, where that is negative, its last ones."""
    return values[:, max(0, columns) : values.shape[1] - max(0, -columns)]
