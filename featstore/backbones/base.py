"""What every backbone offers, whatever its networks are, and where and how they are run.

Nothing here loads a library of networks: often all that is asked for is in the store.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from featstore.errors import ModelError


@dataclass(frozen=True, slots=True)
class Compute:
    """device and dtype of the networks; batch_size: images or noisy latents a pass."""

    device: torch.device
    dtype: torch.dtype
    batch_size: int

    @property
    def dtype_name(self) -> str:
        """`float32`, `float16` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


@contextlib.contextmanager
def saying_batch_size(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error of the enclosed pass into a `ModelError` that names the batch size to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On the CPU torch raises a bare RuntimeError whose text names its allocator.
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        advice = (
            f"try --batch-size {batch_size // 2}"
            if batch_size > 1
            else "it does not fit at all: try --dtype float16, a smaller --size or another device"
        )
        raise ModelError(f"Memory ran out at batch size {batch_size}: {advice}.") from error


DINO = "dino"
"""The name of the layer that a DINOv2's patch map is, beside the UNet's 1 to 4."""


@dataclass(frozen=True, slots=True)
class DinoName:
    """id: hub name or folder. fingerprint: of its files."""

    id: str
    fingerprint: str
