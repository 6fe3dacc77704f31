"""What a network is told that takes no text here: nothing."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from featstore.backbones.base import Condition, TextEncoders


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros in place of all text encoders' embeddings, which the network makes itself (`Prompts`)."""

    differ_by_layer: ClassVar[bool] = False

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        return {"kind": "zeros"}

    def embeddings(
        self,
        layer: int,  # noqa: ARG002  (the same for all)
        categories: Collection[str],
        text: TextEncoders,  # noqa: ARG002
    ) -> dict[str, Condition]:
        """A place holder per category."""
        return {category: Condition(torch.zeros(1, 1, 1)) for category in sorted(categories)}
