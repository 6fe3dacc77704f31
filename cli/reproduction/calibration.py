"""How fast this machine is: a few passes of each network and a few matches, on noise."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cli.reproduction.work import MatchKind, Pace, Work
from featstore.backbone.load import load_unet, load_vae_encoder
from featstore.backbone.model import Model
from featstore.backbone.unet import CutUNet
from featstore.backbone.vae import encode
from featstore.stages.compute import Compute
from matcher.evaluate import evaluate
from matcher.maps import LayerSpec, MapsInMemory
from matcher.match import MatchSettings
from matcher.pairs import MatchingPair, OriginalFrame
from matcher.readout import Readout

ENOUGH_SECONDS = 2.0
BACKWARD_BATCH = 2
TIMESTEP = 261
TARGETS, SOURCES, POINTS = 2, 8, 10
"""Of the pairs that are matched: a target's maps are read once for all its sources."""


def calibrate(model: Model, work: Work, compute: Compute) -> Pace:
    """The pace of everything that occurs in `work`; a minute or so on a slow machine. Raises `ModelError` where a batch
    does not fit into memory."""
    return Pace(
        encode=_encode(model, compute) if work.latents else 0.0,
        forward={layer: _forward(model, layer, compute) for layer in sorted(work.passes)},
        backward={layer: _backward(model, layer, compute) for layer in sorted(work.backward)},
        match={kind: _match(model, kind, compute.device) for kind in sorted(work.matched, key=repr)},
    )


def _encode(model: Model, compute: Compute) -> float:
    vae, size = load_vae_encoder(model.location, compute.device, compute.dtype), model.image_size

    def run(batch: int) -> None:
        encode(vae, torch.zeros(batch, 3, size, size, device=compute.device), None)

    return _seconds_an_image(run, compute.batch_size, compute.device)


def _forward(model: Model, layer: int, compute: Compute) -> float:
    unet = CutUNet(load_unet(model.location, compute.device, compute.dtype), layer)

    @torch.no_grad()
    def run(batch: int) -> None:
        latents, prompts = _inputs(model, compute, batch)
        unet.tap(latents, TIMESTEP, prompts, [layer])

    return _seconds_an_image(run, compute.batch_size, compute.device)


def _backward(model: Model, layer: int, compute: Compute) -> float:
    unet = CutUNet(load_unet(model.location, compute.device, compute.dtype), layer)

    def run(batch: int) -> None:
        latents, prompts = _inputs(model, compute, batch)
        unet.tap(latents, TIMESTEP, prompts.requires_grad_(True), [layer])[layer].float().sum().backward()

    return _seconds_an_image(run, BACKWARD_BATCH, compute.device)


def _inputs(model: Model, compute: Compute, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents (b, 4, h, w) and prompt embeddings (b, 77, D)."""
    side = model.latent_side(model.image_size)
    width = int(model.unet_config["cross_attention_dim"])
    where: dict[str, Any] = {"device": compute.device, "dtype": compute.dtype}
    return torch.randn(batch, model.latent_channels, side, side, **where), torch.randn(batch, 77, width, **where)


def _match(model: Model, kind: MatchKind, device: torch.device) -> float:
    """Of a pair. DINOv2's map is taken to be like that of layer 2."""
    random = np.random.default_rng(0)
    size = model.image_size
    images = [f"image {number}" for number in range(SOURCES + TARGETS)]
    specs = tuple(LayerSpec(layer, None) for layer in kind.layers)
    shapes = {layer: model.shape(2 if layer == "dino" else int(layer), size) for layer in kind.layers}
    maps = MapsInMemory(
        {
            (image, layer, None): torch.randn(shape.channels, shape.side, shape.side)
            for image in images
            for layer, shape in shapes.items()
        }
    )
    points = random.uniform(0, size - 1, (POINTS, 2)).astype(np.float32)
    original = OriginalFrame((size, size), (size, size), points, points, float(size))
    pairs = [
        MatchingPair(source, target, "", points, points, float(size), original)
        for target in images[:TARGETS]
        for source in images[TARGETS:]
    ]
    settings, readout = MatchSettings(size, upsample=kind.upsample), Readout(kind.readout)

    def run() -> None:
        evaluate(pairs, maps, specs, [readout], settings, device)

    _timed(run, device)  # what is made once, such as upsampling's weights
    return _timed(run, device) / len(pairs)


def _seconds_an_image(run: Callable[[int], None], batch: int, device: torch.device) -> float:
    """Of a batch of that size; of one image alone where that takes long: its start is then no great part of it."""
    alone = _timed(lambda: run(1), device)
    if alone > ENOUGH_SECONDS:
        return alone
    return min(_timed(lambda: run(batch), device) for _ in range(2)) / batch


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
