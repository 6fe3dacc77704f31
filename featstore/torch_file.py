"""Files of `torch.save` that appear whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from featstore.files import open_whole


def save_torch(tensors: Tensor | Mapping[str, Tensor], file: Path) -> None:
    """Write what `torch.load` reads. Raises what `open_whole` raises."""
    with open_whole(file) as stream:
        try:
            torch.save(tensors, stream)
        except RuntimeError as error:
            # of a disk that refuses a write: torch then ends the file all the same, and what it says is of that
            refused = error.__context__
            raise refused if isinstance(refused, OSError) else error from None
