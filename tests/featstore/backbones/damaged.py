"""Copies of a model with one thing wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "dinov2": "dinov2/model.safetensors",
}
A_TENSOR = {
    "vae": "encoder.conv_in.weight",
    "unet": "up_blocks.1.resnets.0.conv1.weight",
    "text_encoder": "encoder.layers.1.mlp.fc1.weight",
    "dinov2": "encoder.layer.1.norm1.weight",
}


def copied(model: Path, folder: Path) -> Path:
    """A copy of the model's folder."""
    shutil.copytree(model, folder)
    return folder


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Write a safetensors file anew after `change` did what it does to its tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    """Set values of a JSON file's object."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def drop(tensors: dict[str, Tensor], name: str) -> None:
    """One tensor is missing."""
    del tensors[name]


def rename(tensors: dict[str, Tensor], name: str) -> None:
    """One tensor has another name."""
    tensors[f"{name}_old"] = tensors.pop(name)


def reshape(tensors: dict[str, Tensor], name: str) -> None:
    """One tensor has another shape."""
    tensors[name] = torch.cat([tensors[name], tensors[name]])


DAMAGES = {"drop": drop, "rename": rename, "reshape": reshape}
