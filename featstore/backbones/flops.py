"""What passes cost, counted with torch's FlopCounterMode on the meta device: no weights are read; multiply and add are
two operations."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
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
    unet, noisy, prompt, added = _inputs(model, layer, image_size)
    return _counted(lambda: unet.tap(noisy, 0, prompt, [layer], added))


def gradient_flops(model: Model, layer: int, image_size: int) -> int:
    """FLOPs of the same with the backward pass to the prompt, for which no gradient of a weight is computed."""
    unet, noisy, prompt, added = _inputs(model, layer, image_size)
    prompt.requires_grad_(True)
    return _counted(lambda: unet.tap(noisy, 0, prompt, [layer], added)[layer].sum().backward())


def _inputs(model: Model, layer: int, image_size: int) -> tuple[CutUNet, Tensor, Tensor, dict[str, Tensor] | None]:
    """The cut UNet, noisy latents (1, c, h, w), prompt embeddings (1, 77, D), and what else it is told."""
    assert isinstance(model, StableDiffusion), "only UNets are counted"
    side, config = model.latent_side(image_size), model.unet_config
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config)).eval().requires_grad_(False)
        noisy = torch.empty(1, model.latent_channels, side, side)
        prompt, added = torch.empty(1, 77, int(config["cross_attention_dim"])), None
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            added = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
    return CutUNet(unet, layer), noisy, prompt, added


def _counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
