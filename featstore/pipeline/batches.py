"""Batches of equal size, so that a row does not depend on which rows a run happened to compute with it."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """`items` in order, `size` at a time; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def padded(batch: Tensor, size: int) -> Tensor:
    """A batch (b, ...) filled up with zeros to (size, ...).

    Libraries choose their algorithm by the batch's size, and results then differ in the last bits: a resumed run would
    not end in the same store as one that was never interrupted.
    """
    missing = size - len(batch)
    if missing <= 0:
        return batch
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])])
