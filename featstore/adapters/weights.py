"""Weights alone (Diffusion Hyperfeatures' idea, as its smallest case): maps stay as they are, and matching fuses them
by learned shares. Correlations are linear in them, so that training needs correlation maps and no maps."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from featstore.adapters.base import Adapter, AdapterSpec
from featstore.backbones.base import MapKey


class Weights(Adapter):
    """Each weight is that of the start times exp of what is learned, 0 at first: it stays positive, or 0."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__(spec)
        self.register_buffer("start", torch.tensor(spec.weights, dtype=torch.float64))
        self.logs = nn.Parameter(torch.zeros(len(spec.weights), dtype=torch.float64))

    @property
    def weights(self) -> Tensor:
        """(inputs,), float64, through which gradients flow."""
        start: Tensor = self.start  # type: ignore[assignment]
        return start * self.logs.exp()

    @property
    def shares(self) -> tuple[float | Tensor, ...]:
        """See `Adapter.shares`."""
        return self.weights.float().unbind()

    @property
    def spec(self) -> AdapterSpec:
        """See `Adapter.spec`."""
        return replace(self._spec, weights=tuple(self.weights.tolist()))

    def forward(self, maps: Mapping[MapKey, Tensor]) -> dict[MapKey, Tensor]:
        """The maps as they are, float32."""
        return dict(zip(self.outputs, self.taken(maps), strict=True))


def make(spec: AdapterSpec, seed: int) -> Weights:  # noqa: ARG001  (nothing is drawn)
    """One with the weights of its spec."""
    return Weights(spec)
