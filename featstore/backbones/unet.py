"""The UNet, run only as far as the layers that are asked for."""

import copy
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from featstore.backbones.layers import check_layers
from featstore.backbones.memory import saying_batch_size


class CutUNet:
    """A UNet whose decoder ends after the last layer asked for.

    Blocks beyond `last_layer` are freed; a pass for earlier layers runs no further than they need. A UNet whose
    up blocks are cut after n, with no final norm and no final convolution, returns exactly layer n.
    """

    def __init__(self, unet: UNet2DConditionModel, last_layer: int) -> None:
        check_layers([last_layer])
        self._blocks = list(unet.up_blocks)[:last_layer]
        unet.up_blocks = nn.ModuleList(self._blocks)
        unet.conv_norm_out = None
        unet.conv_out = nn.Identity()
        self.unet = unet

    def until(self, layer: int) -> UNet2DConditionModel:
        """A UNet whose output is that layer, of the same weights: a module of its own, fit for gradient checkpointing
        and `torch.compile`."""
        check_layers([layer])
        cut = copy.copy(self.unet)
        cut._modules = {**self.unet._modules, "up_blocks": nn.ModuleList(self._blocks[:layer])}
        return cut

    @property
    def weights(self) -> Tensor:
        """Any of the UNet's weights, to take its device and dtype from."""
        return next(self.unet.parameters())

    def tap(self, noisy: Tensor, timestep: int, prompts: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Maps (b, C_n, h_n, w_n) of each layer n in `layers`, all from one pass, in the UNet's dtype.

        noisy: (b, 4, h, w), h and w multiples of 8. timestep: 0..999. prompts: (b, 77, D) prompt embeddings.
        Gradients flow where the inputs ask for them.
        """
        check_layers(layers)
        last = max(layers)
        maps: dict[int, Tensor] = {}

        def keep(layer: int) -> torch.utils.hooks.RemovableHandle:
            # layer n is diffusers' up_blocks[n - 1]
            return self._blocks[layer - 1].register_forward_hook(
                lambda _block, _inputs, output: maps.__setitem__(layer, output)
            )

        self.unet.up_blocks = nn.ModuleList(self._blocks[:last])
        handles = [keep(layer) for layer in layers]
        try:
            with saying_batch_size(len(noisy)):
                self.unet(noisy.to(self.weights), timestep, prompts.to(self.weights), return_dict=False)
        finally:
            for handle in handles:
                handle.remove()
        return {layer: maps[layer] for layer in layers}
