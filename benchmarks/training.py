"""What a training step costs, and what the published way costs: TFLOP on SD 2-1's own configuration (meta device, no
weights), and wall-clock time on a model of its shape with all channels divided by 8.

The published way (SD4Match's) encodes both images with the VAE at every step and runs the whole UNet at each timestep;
prompts, matching, loss and backward pass are the same here, so that the ratio is that of the forward work alone.

Run: `python -m benchmarks.training [--repeats 5] [--threads 2]`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.flops import TEXT_ENCODER, UNET, VAE
from featstore.backbones.base import Compute
from featstore.backbones.diffusion_networks import CutUNet, encode
from featstore.backbones.noise import generator, noise
from featstore.prompts.base import Mode, PromptSet, Start
from featstore.prompts.text import frame
from featstore.tuning.settings import Noise, TuningSettings
from featstore.tuning.step import Learner, LoadNoisy, Networks, batch_loss, batch_maps
from matcher.configuration import MatchSettings
from matcher.pairs import MatchingPair
from tools.demo_model.small_model import small_scheduler

SIZE, LATENT_SIDE = 768, 96
BATCH = 9
KEYPOINTS = 10
DINO_PATCHES, DINO_WIDTH = 256, 768
START, END = 49406, 49407
GROUPS = 8
"""Of the narrow model's normalisation: its channels are no multiples of 32."""

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


def some_pairs(count: int) -> list[MatchingPair]:
    """Pairs that share no image and no category: the dearest batch there is."""
    random = np.random.default_rng(0)
    return [
        MatchingPair(
            f"{index}a", f"{index}b", str(index), *random.uniform(1, 766, (2, KEYPOINTS, 2)).astype(np.float32), 500.0
        )
        for index in range(count)
    ]


class CachedLatents:
    """Noisy latents as the store hands them out: made before."""

    def __init__(self, pairs: list[MatchingPair]) -> None:
        ends = sorted({image for pair in pairs for image in (pair.source, pair.target)})
        self._latents = {
            (image, timestep): noise(0, image, timestep, 0, (4, LATENT_SIDE, LATENT_SIDE)).astype(np.float16)
            for image in ends
            for timestep in SETTINGS.timesteps
        }

    def __call__(self, image: str, timestep: int, step: int) -> NDArray[np.float16]:  # noqa: ARG002
        """See `LoadNoisy`."""
        return self._latents[image, timestep]


class EncodedEachStep:
    """The published way: each image of a step goes through the VAE; its latents serve both timesteps."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae, self._scheduler = vae, small_scheduler()
        self._step, self._latents = -1, dict[str, Tensor]()

    def __call__(self, image: str, timestep: int, step: int) -> NDArray[np.float32]:
        """See `LoadNoisy`."""
        if step != self._step:
            self._step, self._latents = step, {}
        if image not in self._latents:
            pixels = torch.from_numpy(generator(image).uniform(-1, 1, (1, 3, SIZE, SIZE)).astype(np.float32))
            self._latents[image] = encode(self._vae, pixels, torch.zeros(1, 4, LATENT_SIDE, LATENT_SIDE))
        drawn = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE)
        noisy: Tensor = self._scheduler.add_noise(self._latents[image], drawn, torch.tensor([timestep]))
        return noisy[0].numpy()


class Whole(nn.Module):
    """A UNet that always runs to its end, of which one layer's map is taken."""

    def __init__(self, unet: UNet2DConditionModel, layer: int) -> None:
        super().__init__()
        self.unet = unet
        self._layer = layer

    def forward(self, *arguments: Any, **options: Any) -> tuple[Tensor]:
        """As a cut UNet's."""
        taken: list[Tensor] = []
        handle = self.unet.up_blocks[self._layer - 1].register_forward_hook(lambda *of: taken.append(of[2]))
        try:
            self.unet(*arguments, **options)
        finally:
            handle.remove()
        return (taken[0],)


def prompt_sets(mode: Mode, pairs: list[MatchingPair], encoder: CLIPTextModel) -> list[PromptSet]:
    """Prompts of SD 2-1's length for each layer, on the encoder's device."""
    patches = torch.empty(DINO_PATCHES, DINO_WIDTH, device=encoder.device)
    start = Start(pairs, SETTINGS.length, encoder, encoder.config.vocab_size, lambda _: patches)
    return [mode.rules.start(start, f"prompts|0|{layer}") for layer in SETTINGS.layers]


def networks_of(encoder: CLIPTextModel, unets: tuple[nn.Module, ...]) -> Networks:
    """Frozen networks, where the encoder lies."""
    framed = frame(encoder, START, END, SETTINGS.length)
    return Networks(encoder, encoder.config.vocab_size, framed, unets, Compute(encoder.device, torch.float32, 1))  # type: ignore[arg-type]


def teraflop_an_image(mode: Mode) -> float:
    """Of a dual step's forward pass through text encoder, cpm and UNets, on SD 2-1, over its 18 images."""
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER)).eval().requires_grad_(False)
        cut = CutUNet(UNet2DConditionModel(**UNET).eval().requires_grad_(False), max(SETTINGS.layers))
    pairs = some_pairs(BATCH)
    networks = networks_of(encoder, tuple(cut.until(layer) for layer in SETTINGS.layers))
    prompts = prompt_sets(mode, pairs, encoder)
    with FlopCounterMode(display=False) as counter:
        maps, _ = batch_maps(Learner(replace(SETTINGS, mode=mode), networks, prompts, CachedLatents(pairs)), pairs, 0)
    assert len(maps[0]) == 2 * BATCH
    return float(counter.get_total_flops()) / 1e12 / (2 * BATCH)


def published_teraflop_an_image() -> float:
    """Of the published way: the VAE once, the whole UNet at two timesteps."""
    with torch.device("meta"):
        vae, unet = AutoencoderKL(**VAE).eval(), UNet2DConditionModel(**UNET).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.encode(torch.empty(1, 3, SIZE, SIZE, device="meta"))
        for timestep in SETTINGS.timesteps:
            unet(
                torch.empty(1, 4, LATENT_SIDE, LATENT_SIDE, device="meta"),
                timestep,
                torch.empty(1, 77, 1024, device="meta"),
            )
    return float(counter.get_total_flops()) / 1e12


def narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet's or VAE's configuration with an eighth of the channels; depths, heads and sides stay."""
    found = {**config, "block_out_channels": [channels // 8 for channels in config["block_out_channels"]]}
    if "cross_attention_dim" in config:
        found["cross_attention_dim"] = config["cross_attention_dim"] // 8
    return {**found, "norm_num_groups": GROUPS}


def measured_ways() -> dict[str, Callable[[int], float]]:
    """Both ways as functions from a step's number to its seconds, forward and backward, of one pair."""
    torch.manual_seed(0)
    widths = {name: TEXT_ENCODER[name] // 8 for name in ("hidden_size", "intermediate_size")}
    encoder = CLIPTextModel(CLIPTextConfig(**{**TEXT_ENCODER, **widths})).eval().requires_grad_(False)
    whole = UNet2DConditionModel(**narrow(UNET)).eval().requires_grad_(False)
    cut_from = UNet2DConditionModel.from_config(whole.config).eval().requires_grad_(False)
    cut_from.load_state_dict(whole.state_dict())
    vae = AutoencoderKL(**narrow(VAE)).eval().requires_grad_(False)
    cut = CutUNet(cut_from, max(SETTINGS.layers))
    pairs = some_pairs(1)
    prompts = prompt_sets(Mode.CLASS, pairs, encoder)
    parameters = [own for one in prompts for own in one.parameters()]

    def way(unets: tuple[nn.Module, ...], noisy: LoadNoisy) -> Callable[[int], float]:
        learner = Learner(SETTINGS, networks_of(encoder, unets), prompts, noisy)

        def step(number: int) -> float:
            for own in parameters:
                own.grad = None
            started = time.perf_counter()
            loss, _ = batch_loss(learner, pairs, len(pairs), number)
            loss.backward()  # type: ignore[no-untyped-call]
            return time.perf_counter() - started

        return step

    return {
        "dualsd": way(tuple(cut.until(layer) for layer in SETTINGS.layers), CachedLatents(pairs)),
        "published": way(tuple(Whole(whole, layer) for layer in SETTINGS.layers), EncodedEachStep(vae)),
    }


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Steps timed of each way, in turn.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Print both tables."""
    torch.set_num_threads(threads)
    console = Console(width=100)
    flops = Table("forward pass of a dual step on SD 2-1, an image", "TFLOP")
    for mode in Mode:
        flops.add_row(f"dualsd, {mode.value}", f"{teraflop_an_image(mode):.3f}")
    flops.add_row("published: VAE and the whole UNet at two timesteps", f"{published_teraflop_an_image():.2f}")
    console.print(flops)
    ways = measured_ways()
    for step in ways.values():
        step(0)  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, repeats + 1):
        for name, step in ways.items():
            seconds[name].append(step(number))
    clock = Table("a step of one pair, channels / 8, forward and backward", "median, s", "minimum, s")
    for name, own in seconds.items():
        clock.add_row(name, f"{median(own):.2f}", f"{min(own):.2f}")
    console.print(clock)
    ratios = [theirs / ours for ours, theirs in zip(seconds["dualsd"], seconds["published"], strict=True)]
    console.print(f"published / dualsd: median {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    typer.run(main)
