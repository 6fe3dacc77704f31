"""DINOv2's patch tokens as those who ask by image id get them."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from featstore.errors import StoreError
from featstore.store.rows import RowArray
from featstore.store.store import Store

KEPT = 256
"""Images whose tokens are kept in memory: 200 MB."""

PatchTokens = Callable[[str], Tensor]
"""The patch tokens of an image, (patches, width), float32 on the CPU."""


def patch_tokens_of(store: Store, tokens: RowArray) -> PatchTokens:
    """Reads a store's tokens, which have the class token first."""

    @lru_cache(maxsize=KEPT)
    def of(image: str) -> Tensor:
        return torch.from_numpy(tokens.read((store.images.row(image),)).astype(np.float32)[1:])

    return of


def no_patches(image: str) -> Tensor:
    """For prompts that are made from none."""
    raise StoreError(f"No DINOv2 tokens were made of image {image!r}.")
