"""GeoAware-SC's aggregation network, and DIY-SC's, which is the same with options: bottleneck blocks for each map,
whose sum, by learned shares, is one map. Parameters have the published names, so that weights carry over."""

from collections.abc import Mapping
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from featstore.adapters.base import ADAPTED, Adapter, AdapterSpec
from featstore.backbones.base import MapKey
from featstore.backbones.noise import generator

LOGIT_SCALE, SELF_LOGIT_SCALE = log(1 / 0.07), log(10)


class _Convolution(nn.Conv2d):
    """A convolution without bias, and a group norm behind it, named as published."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        normed: Tensor = self.norm(super().forward(features))
        return normed


class _Bottleneck(nn.Module):
    """relu(conv3(relu(conv2(relu(conv1(x))))) + shortcut), the shortcut the input itself where channels stay."""

    def __init__(self, inputs: int, outputs: int, width: int, groups: int) -> None:
        super().__init__()
        self.shortcut = None if inputs == outputs else _Convolution(inputs, outputs, 1, groups)
        self.conv1 = _Convolution(inputs, width, 1, groups)
        self.conv2 = _Convolution(width, width, 3, groups)
        self.conv3 = _Convolution(width, outputs, 1, groups)

    def forward(self, features: Tensor) -> Tensor:
        """(b, inputs, h, w) to (b, outputs, h, w)."""
        inner = self.conv3(functional.relu(self.conv2(functional.relu(self.conv1(features)))))
        return functional.relu(inner + (features if self.shortcut is None else self.shortcut(features)))


class Aggregate(Adapter):
    """The network. logit_scale: of its contrastive loss; self_logit_scale: of none, but published weights have it."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__(spec)
        self.bottleneck_layers = nn.ModuleList(
            nn.Sequential(
                *(
                    _Bottleneck(spec.projection if later else channels, spec.projection, spec.width, spec.groups)
                    for later in range(spec.blocks)
                )
            )
            for channels in spec.channels
        )
        self.mixing_weights = nn.Parameter(torch.ones(len(spec.channels)))
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        self.self_logit_scale = nn.Parameter(torch.tensor(SELF_LOGIT_SCALE))

    def forward(self, maps: Mapping[MapKey, Tensor]) -> dict[MapKey, Tensor]:
        """See `Adapter`. Maps of other sizes are brought to that of the finest first, or that of the spec,
        bilinearly."""
        taken, side = self.taken(maps), self.spec.cells
        size = max(own.shape[2] for own in taken), max(own.shape[3] for own in taken)
        size = (side, side) if side else size
        total = torch.zeros(())
        for own, share, blocks in zip(taken, self.mixing_weights.softmax(0), self.bottleneck_layers, strict=True):
            fine = own if own.shape[2:] == size else functional.interpolate(own, size, mode="bilinear")
            total = total + share * blocks(fine)
        return {ADAPTED: total}


def make(spec: AdapterSpec, seed: int) -> Aggregate:
    """One with fresh parameters as published: convolutions He normal by what goes out."""
    adapter = Aggregate(spec)
    with torch.no_grad():
        for name, own in adapter.named_parameters():
            if own.ndim == 4:
                drawn = generator(f"adapter|{seed}|{name}").standard_normal(tuple(own.shape), dtype="float32")
                own.copy_(torch.from_numpy(drawn) * (2 / (own.shape[0] * own[0, 0].numel())) ** 0.5)
    return adapter
