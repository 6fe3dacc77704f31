"""A backbone as a user would add one: a frozen random convolution from pixels, with neither noise nor text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featstore.backbones.base import Asked, Compute, LayerShape, ModelLocation, NetworkName

LAYER, CHANNELS, STRIDE = "toy", 8, 8
NAME = NetworkName("toy", "0" * 32)


@dataclass(frozen=True, slots=True)
class ToyNetworks:
    """(b, 3, S, S) to (b, 8, S / 8, S / 8)."""

    convolution: nn.Conv2d

    def features(
        self, inputs: Tensor, timestep: int | None, condition: Tensor | None, layers: Sequence[str]
    ) -> Mapping[str, Tensor]:
        assert timestep is None
        assert condition is None
        return dict.fromkeys(layers, self.convolution(inputs.to(self.convolution.weight)))


@dataclass(frozen=True, slots=True)
class ToyBackbone:
    name: NetworkName = NAME
    image_size: int = 64

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        return {LAYER: LayerShape(LAYER, CHANNELS, image_size // STRIDE, STRIDE)}

    def load(self, compute: Compute, layers: Sequence[str]) -> ToyNetworks:
        assert set(layers) == {LAYER}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = nn.Conv2d(3, CHANNELS, STRIDE, STRIDE)
        return ToyNetworks(made.to(compute.device, compute.dtype).requires_grad_(False))


def open_backbone(asked: Asked, model: ModelLocation) -> ToyBackbone:
    return ToyBackbone()


def usual_ids(model_id: str) -> Collection[str]:
    return ("toy",)
