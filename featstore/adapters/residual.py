"""The residual adapter: to each map what a small bottleneck block makes of it is added, nothing at first."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from featstore.adapters.base import Adapter, AdapterSpec, spell_keys
from featstore.backbones.base import MapKey
from featstore.backbones.noise import generator
from featstore.errors import AdapterError
from matcher.configuration import NORM_EPSILON


class Block(nn.Module):
    """1x1, ReLU, 3x3, ReLU, 1x1 convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, width, 1)
        self.look = nn.Conv2d(width, width, 3, padding=1)
        self.widen = nn.Conv2d(width, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(b, C, h, w) to the same."""
        widened: Tensor = self.widen(functional.relu(self.look(functional.relu(self.narrow(features)))))
        return widened


class Residual(Adapter):
    """y = x + |x| g(x / |x|), per cell, of each map: the last convolution of g is zero at first, so that the maps are
    then as they were, bit for bit."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList(Block(channels, spec.width) for channels in spec.channels)

    def forward(self, maps: Mapping[MapKey, Tensor]) -> dict[MapKey, Tensor]:
        """See `Adapter`."""
        found = {}
        for key, own, block in zip(self.spec.inputs, self.taken(maps), self.blocks, strict=True):
            norms = own.norm(dim=1, keepdim=True)  # (b, 1, h, w)
            found[key] = own + norms * block(own / (norms + NORM_EPSILON))
        return found

    def only(self, key: MapKey) -> "Residual":
        """The block of a map alone; that of its layer where it was trained at another timestep. Raises `AdapterError`
        for a layer that it was not trained on, or at several other timesteps."""
        inputs = self.spec.inputs
        own = [place for place, known in enumerate(inputs) if known == key]
        own = own or [place for place, (layer, _) in enumerate(inputs) if layer == key[0]]
        if len(own) != 1:
            raise AdapterError(f"The adapter was trained on {spell_keys(inputs)}, not on {spell_keys([key])}.")
        (place,) = own
        spec = replace(self.spec, inputs=(key,), channels=(self.spec.channels[place],), weights=(1.0,))
        with torch.device("meta"):  # whose block is replaced
            alone = Residual(spec)
        alone.blocks = self.blocks[place : place + 1]
        return alone


def make(spec: AdapterSpec, seed: int) -> Residual:
    """One that changes nothing yet. seed: of all but the last convolution of each block, He normal."""
    adapter = Residual(spec)
    with torch.no_grad():
        for name, own in adapter.named_parameters():
            if own.ndim == 4 and ".widen." not in name:
                drawn = generator(f"adapter|{seed}|{name}").standard_normal(tuple(own.shape), dtype="float32")
                own.copy_(torch.from_numpy(drawn) * (2 / own[0].numel()) ** 0.5)
            else:
                own.zero_()
    return adapter
