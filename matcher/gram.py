"""Norms of upsampled maps, and inner products of their neighbouring cells, without upsampling them.

An upsampled cell is a fixed combination of a 4 x 4 neighbourhood of cells, so its norm follows from the inner products
of cells at most three rows and columns apart: a banded Gram matrix (DESIGN section 4, "It factorises")."""

from collections.abc import Sequence

import torch
from torch import Tensor

from matcher.upsampling import Upsampling

_BLOCK_CHANNELS = 64


def squared_norms(features: Tensor, up: Upsampling) -> Tensor:
    """The squared norm of every cell, (H, W), of a map (C, h, w) upsampled by `up`; >= 0."""
    if up.is_identity:
        total = torch.zeros_like(features[0])
        for block in features.split(_BLOCK_CHANNELS):  # a few at a time, so that squares stay in the cache
            total += block.square().sum(dim=0)
        return total
    return inner_products(row_grams(features, reach(up)), up, 0, 0).clamp(min=0)


def reach(up: Upsampling) -> int:
    """How many rows lie between the first and the last row that one upsampled row is made of, at most."""
    if up.rows.shape[0] == up.rows.shape[1]:
        return 0
    used = (up.rows != 0).to(torch.uint8)
    last = up.rows.shape[1] - 1 - used.flip(1).argmax(dim=1)
    return int((last - used.argmax(dim=1)).max())


def row_grams(features: Tensor, rows: int) -> tuple[Tensor, ...]:
    """For d = 0..rows the inner products of cells d rows apart: (h - d, w, w), element [i, j, k] that of cell (i, j)
    and cell (i + d, k) of a map (C, h, w)."""
    height = features.shape[1]
    by_row = features.permute(1, 0, 2)  # (h, C, w)
    return tuple(
        torch.bmm(by_row[: height - apart].transpose(1, 2), by_row[apart:])
        for apart in range(min(rows, height - 1) + 1)
    )


def inner_products(grams: Sequence[Tensor], up: Upsampling, down: int, right: int) -> Tensor:
    """Inner products of every upsampled cell with the one `down` rows below and `right` columns to its right (negative:
    left), (H - down, W - |right|). grams: `row_grams` over at least `reach(up) + down` rows."""
    height, width = up.size
    left_columns = up.columns[max(0, -right) : width - max(0, right)]  # (W', w)
    right_columns = up.columns[max(0, right) : width - max(0, -right)]
    upper, lower = up.rows[: height - down], up.rows[down:]  # (H', h)
    cells = up.rows.shape[1]
    total = torch.zeros(len(upper), len(left_columns), dtype=up.rows.dtype, device=up.rows.device)
    for apart, gram in enumerate(grams):
        first, second = slice(0, cells - apart), slice(apart, cells)
        scalars = ((left_columns @ gram) * right_columns).sum(dim=2)  # (h - apart, W')
        if down == 0 and right == 0:
            total += (1 if apart == 0 else 2) * (upper[:, first] * lower[:, second]) @ scalars
            continue
        total += (upper[:, first] * lower[:, second]) @ scalars
        if apart > 0:
            scalars = ((left_columns @ gram.transpose(1, 2)) * right_columns).sum(dim=2)
            total += (upper[:, second] * lower[:, first]) @ scalars
    return total
