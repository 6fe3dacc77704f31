"""Norms of upsampled maps, and inner products of their neighbouring cells, without keeping an upsampled map.

An upsampled cell is a fixed combination of a 4 x 4 neighbourhood of cells: once one direction is upsampled, its norm
and inner products follow from those of cells along the other (docs/method.md, Correlation)."""

from collections.abc import Sequence

from torch import Tensor

from matcher.upsampling import Upsampling

Offset = tuple[int, int]
"""From a cell to its neighbour: rows down (>= 0), columns right (negative: left)."""

BLOCK_CHANNELS = 128
"""Channels that are looked at at once, so that what is made of them stays in the cache."""


def squared_norms(features: Tensor, up: Upsampling) -> Tensor:
    """The squared norm of every cell, (H, W), of a map (C, h, w) upsampled by `up`; >= 0.

    With rows upsampled, each row's cells have a Gram matrix, of which columns take what they are blends of: all of it
    matrix products, though most of a Gram matrix goes unused, as those are faster by far than sums over channels.
    """
    if up.is_identity:
        return features.square().sum(dim=0)
    gram: Tensor | None = None
    for block in features.split(BLOCK_CHANNELS):
        tall = up.rows @ block  # (c, H, w)
        part = tall.permute(1, 2, 0) @ tall.transpose(0, 1)  # (H, w, w)
        gram = part if gram is None else gram + part
    assert gram is not None, "a map has channels"
    return ((up.columns @ gram) * up.columns).sum(dim=2).clamp(min=0)


def inner_products(features: Tensor, up: Upsampling, offsets: Sequence[Offset]) -> list[Tensor]:
    """For each offset (down, right) the inner products of every upsampled cell with its neighbour there, where it has
    one: (H - down, W - |right|)."""
    products: dict[tuple[Offset, int], Tensor] = {}
    for block in features.split(BLOCK_CHANNELS):
        wide = block if _is_identity(up.columns) else block @ up.columns.T  # (c, h, W)
        for offset in offsets:
            for apart in _distances(up, offset):
                product = _products_in_columns(wide, offset[1], apart)
                key = offset, apart
                products[key] = products[key] + product if key in products else product
    return [
        _blend_rows(up, offset, {apart: products[offset, apart] for apart in _distances(up, offset)})
        for offset in offsets
    ]


def _products_in_columns(wide: Tensor, right: int, apart: int) -> Tensor:
    """Inner products of each cell (i, X) of (c, h, W) with (i + apart, X + right): (h - |apart|, W - |right|)."""
    height, width = wide.shape[1:]
    own = wide[:, max(0, -apart) : height - max(0, apart), max(0, -right) : width - max(0, right)]
    other = wide[:, max(0, apart) : height - max(0, -apart), max(0, right) : width - max(0, -right)]
    return (own * other).sum(dim=0)


def _blend_rows(up: Upsampling, offset: Offset, products: dict[int, Tensor]) -> Tensor:
    """From inner products in columns, by how far their rows are apart, to those of upsampled rows."""
    down = offset[0]
    upper, lower = up.rows[: len(up.rows) - down], up.rows[down:]  # (H - down, h)
    height = up.rows.shape[1]
    total: Tensor | None = None
    for apart, product in products.items():
        own = upper[:, max(0, -apart) : height - max(0, apart)]
        other = lower[:, max(0, apart) : height - max(0, -apart)]
        # of a cell with itself, rows i and j give the same as rows j and i
        part = (2 if offset == (0, 0) and apart > 0 else 1) * (own * other) @ product
        total = part if total is None else total + part
    assert total is not None, "rows are at least 0 apart"
    return total


def _distances(up: Upsampling, offset: Offset) -> range:
    """How far apart the rows may lie that an upsampled cell and its neighbour are made of."""
    furthest = up.rows.shape[1] - 1
    reach = min(up.reach, furthest)
    return range(0 if offset == (0, 0) else -reach, min(reach + offset[0], furthest) + 1)


def _is_identity(weights: Tensor) -> bool:
    return weights.shape[0] == weights.shape[1]
