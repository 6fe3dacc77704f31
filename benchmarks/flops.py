"""What a pass costs on SD 2-1's own configuration, counted with torch's FlopCounterMode on the meta device (no weights
are needed; multiply and add = 2). Run: `python benchmarks/flops.py`."""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.stable_diffusion import LAYERS

UNET = {
    "sample_size": 96,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "block_out_channels": [320, 640, 1280, 1280],
    "use_linear_projection": True,
}
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "vocab_size": 49408,
    "hidden_act": "gelu",
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}


def whole_unet() -> UNet2DConditionModel:
    """SD 2-1's UNet on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNET).eval().requires_grad_(False)


def main() -> None:
    """Print a table: TFLOP of the VAE encoder, of the UNet up to each layer, of the whole UNet."""
    table = Table(title="SD 2-1 at 768x768, latents 4x96x96, one image", title_justify="left")
    for name in ("pass", "TFLOP", "map"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    noisy, prompt = torch.empty(1, 4, 96, 96, device="meta"), torch.empty(1, 77, 1024, device="meta")
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(torch.empty(1, 3, 768, 768, device="meta"))
    table.add_row("VAE encoder", f"{counter.get_total_flops() / 1e12:.2f}", "4x96x96")
    for layer in LAYERS:
        cut = CutUNet(whole_unet(), layer)
        with FlopCounterMode(display=False) as counter:
            maps = cut.tap(noisy, 261, prompt, [layer])
        shape = "x".join(map(str, maps[layer].shape[1:]))
        table.add_row(f"UNet up to layer {layer}", f"{counter.get_total_flops() / 1e12:.2f}", shape)
    unet = whole_unet()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(noisy, 261, prompt)
    table.add_row("whole UNet", f"{counter.get_total_flops() / 1e12:.2f}", "4x96x96")
    Console().print(table)


if __name__ == "__main__":
    main()
