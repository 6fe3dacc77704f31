"""What a pass and a training step cost on SD 2-1's own configuration, counted with torch's FlopCounterMode on the meta
device (no weights are needed; multiply and add = 2). Run: `python -m benchmarks.flops`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from featstore.backbones.base import Compute
from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.text_encoders import ClipText
from featstore.prompts.base import Mode, PromptSet, Start
from featstore.tuning.settings import Noise, TuningSettings
from featstore.tuning.step import Learner, Networks, batch_maps
from matcher.configuration import MatchSettings
from matcher.pairs import MatchingPair
from tools.published import SD21

UNET, VAE, TEXT_ENCODER = (
    {key: value for key, value in SD21[name].items() if key not in ("_class_name", "model_type")}
    for name in ("unet", "vae", "text_encoder")
)

SIZE, LATENT_SHAPE = 768, (4, 96, 96)
BATCH = 9
KEYPOINTS = 10
DINO_PATCHES, DINO_WIDTH = 256, 768
START, END = 49406, 49407

SETTINGS = TuningSettings(
    mode=Mode.CLASS,
    layers=(2, 3),
    timesteps=(261, 350),
    weights=(0.8, 0.6),
    length=75,
    steps=1,
    batch=BATCH,
    accumulate=1,
    noise=Noise.CACHED,
    draws=1,
    rate=0.01,
    network_rate=0.001,
    kernel=7,
    matching=MatchSettings(SIZE),
    validate_every=1,
    validation_pairs=1,
    validation_timesteps=(261, 350),
    checkpoint_every=1,
    seed=0,
    dtype="float32",
)


def whole_unet() -> UNet2DConditionModel:
    """SD 2-1's UNet on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNET).eval().requires_grad_(False)


def some_pairs(count: int, image_size: int = SIZE) -> list[MatchingPair]:
    """Pairs that share no image and no category: the dearest batch there is."""
    points = np.random.default_rng(0).uniform(1, image_size - 2, (count, 2, KEYPOINTS, 2)).astype(np.float32)
    return [
        MatchingPair(f"{index}a", f"{index}b", str(index), source, target, image_size / 2)
        for index, (source, target) in enumerate(points)
    ]


def prompt_sets(settings: TuningSettings, pairs: Sequence[MatchingPair], networks: Networks) -> list[PromptSet]:
    """The first prompts of each layer, on the networks' device."""
    patches = torch.empty(DINO_PATCHES, DINO_WIDTH, device=networks.text.device)
    start = Start(pairs, settings.length, networks.text, lambda _: patches)
    return [settings.mode.rules.start(start, f"prompts|0|{layer}") for layer in settings.layers]


class Tokens:
    """What training asks of a tokenizer."""

    bos_token_id, eos_token_id = START, END

    def __len__(self) -> int:
        return int(TEXT_ENCODER["vocab_size"])


def teraflop_an_image(mode: Mode) -> float:
    """Of a dual step's forward pass through text encoder, cpm and UNets, over its 18 images."""
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)).eval().requires_grad_(False)
        cut = CutUNet(whole_unet(), max(SETTINGS.layers))
    pairs, settings = some_pairs(BATCH), replace(SETTINGS, mode=mode)
    text = ClipText(Tokens(), encoder)
    unets: list[nn.Module] = [cut.until(layer) for layer in SETTINGS.layers]
    compute = Compute(torch.device("meta"), torch.float32, 1)
    networks = Networks(text, text.frame(SETTINGS.length), unets, compute)
    latents = np.zeros(LATENT_SHAPE, dtype=np.float16)
    learner = Learner(settings, networks, prompt_sets(settings, pairs, networks), lambda *_: latents)
    with FlopCounterMode(display=False) as counter:
        maps, _ = batch_maps(learner, pairs, 0)
    assert len(maps[0]) == 2 * BATCH
    return float(counter.get_total_flops()) / 1e12 / (2 * BATCH)


def main() -> None:
    """Print two tables: TFLOP of the VAE encoder, of the UNet up to each layer, of the whole UNet; and of a step."""
    table = Table(title="SD 2-1 at 768x768, latents 4x96x96, one image", title_justify="left")
    for name in ("pass", "TFLOP", "map"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    noisy, prompt = torch.empty(1, 4, 96, 96, device="meta"), torch.empty(1, 77, 1024, device="meta")
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(torch.empty(1, 3, SIZE, SIZE, device="meta"))
    encoding = counter.get_total_flops() / 1e12
    table.add_row("VAE encoder", f"{encoding:.2f}", "4x96x96")
    for layer in (1, 2, 3, 4):
        cut = CutUNet(whole_unet(), layer)
        with FlopCounterMode(display=False) as counter:
            maps = cut.tap(noisy, 261, prompt, [layer])
        shape = "x".join(map(str, maps[layer].shape[1:]))
        table.add_row(f"UNet up to layer {layer}", f"{counter.get_total_flops() / 1e12:.2f}", shape)
    unet = whole_unet()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(noisy, 261, prompt)
    whole = counter.get_total_flops() / 1e12
    table.add_row("whole UNet", f"{whole:.2f}", "4x96x96")
    step = Table("forward pass of a training step of two layers, one image", "TFLOP")
    for mode in Mode:
        step.add_row(f"dualsd, {mode.value}", f"{teraflop_an_image(mode):.3f}")
    step.add_row("published: VAE, and the whole UNet at two timesteps", f"{encoding + 2 * whole:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(step)


if __name__ == "__main__":
    main()
