"""Which maps look as if they were another image's, told without a network.

A map follows its image, and so do the image's latents: cell by cell a linear function of the latents around a cell
predicts much of what the map holds there. It is fitted to all rows of an array, of which nearly all are right. A row
whose map another image's latents predict better than its own is suspected; whether it is wrong only making it anew can
tell. On the demo, 96 images, two rows swapped by chance, 40 times each of layer 2 and 3, were always the two that are
suspected most.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from featstore.progress import Progress

SIDE = 16
"""Cells a side to which latents and maps are averaged: enough to tell images apart, and little to keep of many."""

CHANNELS = 16
"""Random mixtures of a map's channels that are predicted."""

RIDGE = 1e-3
"""Keeps the fit finite where latents say the same twice, as a share of their mean square."""

Read = Callable[[int], NDArray[np.floating]]


def by_suspicion(rows: Sequence[int], latents: Read, maps: Read, progress: Progress) -> list[int]:
    """Image rows, those whose map fits their latents least first. latents: (c, h, w) of a row. maps: (C, h, w), or
    tokens (P, C) of square images of which the first may be the class token's."""
    if len(rows) < 3:  # nothing to fit
        return list(rows)
    progress.start("looking for rows of other images", len(rows), "rows")
    around, mixed = [], []
    mixture: Tensor | None = None
    for row in rows:
        found = _as_map(torch.from_numpy(np.asarray(maps(row), dtype=np.float32)))
        if mixture is None:
            mixture = torch.randn(CHANNELS, len(found), generator=torch.Generator().manual_seed(0)) / len(found) ** 0.5
        around.append(_around(torch.from_numpy(latents(row).astype(np.float32))))
        pooled = adaptive_avg_pool2d(found, SIDE)
        mixed.append(torch.einsum("kc,chw->khw", mixture, pooled).flatten(1).T)  # (SIDE * SIDE, CHANNELS)
        progress.advance()
    inputs, outputs = torch.cat(around), torch.cat(mixed)  # (images * SIDE * SIDE, features), (..., CHANNELS)
    outputs = (outputs - outputs.mean(0)) / (outputs.std(0) + 1e-12)
    square = inputs.T @ inputs
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square))
    predicted = inputs @ torch.linalg.solve(square + ridge, inputs.T @ outputs)
    fits = _unit(predicted.reshape(len(rows), -1)) @ _unit(outputs.reshape(len(rows), -1)).T  # (latents of, maps of)
    own = fits.diagonal().clone()
    fits.fill_diagonal_(-torch.inf)
    # another image's latents that predict this map, or another image's map that these latents predict
    margin = own - torch.maximum(fits.max(0).values, fits.max(1).values)
    return [rows[index] for index in margin.argsort().tolist()]


def _as_map(values: Tensor) -> Tensor:
    """(C, h, w) of a map or of tokens."""
    if values.ndim == 3:
        return values
    side = int(len(values) ** 0.5)
    return values[len(values) - side * side :].T.unflatten(1, (side, side))


def _around(latents: Tensor) -> Tensor:
    """Of each cell its latents and its neighbours', their squares and a one: (SIDE * SIDE, features)."""
    cells = pad(adaptive_avg_pool2d(latents, SIDE)[None], (1, 1, 1, 1), mode="replicate")[0]
    near = torch.cat([cells[:, y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]).flatten(1).T
    return torch.cat([near, near**2, torch.ones(len(near), 1)], dim=1)


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(0)
    return centred / (centred.norm(dim=1, keepdim=True) + 1e-12)
