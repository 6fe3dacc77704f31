"""What passes cost, counted with torch's FlopCounterMode on the meta device: no weights are read; multiply and add are
two operations."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.model_file import read_config
from featstore.backbones.models import Model
from featstore.backbones.stable_diffusion import StableDiffusion


def encode_flops(model: Model, image_size: int) -> int:
    """FLOPs of the VAE's encoder for an image of `image_size` pixels."""
    config = read_config(model.location, "vae")
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(config).eval().requires_grad_(False)
        image = torch.empty(1, 3, image_size, image_size)
    return _counted(lambda: vae.encode(image))


def pass_flops(model: Model, layer: int, image_size: int) -> int:
    """FLOPs of a UNet pass that ends at a layer, for one noise draw of one image."""
    unet, noisy, prompt = _inputs(model, layer, image_size)
    return _counted(lambda: unet.tap(noisy, 0, prompt, [layer]))


def gradient_flops(model: Model, layer: int, image_size: int) -> int:
    """FLOPs of the same with the backward pass to the prompt, for which no gradient of a weight is computed."""
    unet, noisy, prompt = _inputs(model, layer, image_size)
    prompt.requires_grad_(True)
    return _counted(lambda: unet.tap(noisy, 0, prompt, [layer])[layer].sum().backward())


def _inputs(model: Model, layer: int, image_size: int) -> tuple[CutUNet, torch.Tensor, torch.Tensor]:
    """The cut UNet, noisy latents (1, c, h, w) and prompt embeddings (1, 77, D)."""
    assert isinstance(model, StableDiffusion)
    side = model.latent_side(image_size)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(model.unet_config)).eval().requires_grad_(False)
        noisy = torch.empty(1, model.latent_channels, side, side)
        prompt = torch.empty(1, 77, int(model.unet_config["cross_attention_dim"]))
    return CutUNet(unet, layer), noisy, prompt


def _counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
