"""Prompts made up for tests."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from featstore.backbones.base import NetworkName
from featstore.backbones.diffusion_networks import load_text_encoder, load_tokenizer
from featstore.backbones.locate import locate
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.prompts.cpm import ConditionalModule
from tools.demo_model.small_model import TEXT_WIDTH

DINO_WIDTH, PATCHES = 96, 256
"""Of the small model's own DINOv2."""


def text_rows(model: Path, text: str) -> Tensor:
    """Token embeddings (77, D) of a text: as prompts they are that text."""
    location = locate(str(model))
    tokens = load_tokenizer(location)(text, padding="max_length", max_length=77, return_tensors="pt")
    rows: Tensor = load_text_encoder(location, torch.device("cpu"), torch.float32).embeddings(tokens.input_ids)[0]
    return rows.detach()


def module_tensors(seed: int) -> dict[str, Tensor]:
    """A cpm for the small model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ConditionalModule(DINO_WIDTH, PATCHES, TEXT_WIDTH)
    return {name: own.detach().clone() for name, own in module.named_parameters()}


def layer_tensors(mode: Mode, seed: int) -> dict[str, Tensor]:
    """One layer's prompts for the small model, of noise."""
    random = torch.Generator().manual_seed(seed)
    match mode:
        case Mode.SINGLE:
            return {"": torch.randn(77, TEXT_WIDTH, generator=random)}
        case Mode.CLASS:
            return {name: torch.randn(77, TEXT_WIDTH, generator=random) for name in ("cat", "dog")}
        case Mode.CPM:
            return module_tensors(seed)


def made(mode: Mode, layers: Sequence[int] = (2, 3), fingerprint: str = "f" * 32) -> LearnedPrompts:
    """Prompts of noise."""
    return LearnedPrompts(
        mode=mode,
        layers=tuple(layers),
        timesteps=tuple(100 * layer for layer in layers),
        length=75,
        tensors={layer: layer_tensors(mode, layer) for layer in layers},
        model=NetworkName("small", fingerprint),
        dino=NetworkName("small/dinov2", "d" * 32) if mode is Mode.CPM else None,
        training={"dataset": "spair", "image_size": 64, "settings": {"steps": 7, "rate": 0.01}},
    )
