"""Where and how networks are run."""

from dataclasses import dataclass

import torch


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
