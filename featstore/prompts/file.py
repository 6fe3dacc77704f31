"""Learned prompts on disk: safetensors with a description in its metadata, never a pickle."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from featstore.backbone.dino_name import DinoName
from featstore.errors import PromptError
from featstore.prompts.learned import LearnedPrompts, Mode
from featstore.store.schema import creator_version
from featstore.whole_file import write_whole

FORMAT = "dualsd prompts"
VERSION = 1
FILE = "prompts.safetensors"
"""The name of a run's prompts in its folder."""


def save_prompts(prompts: LearnedPrompts, file: Path) -> None:
    """Write prompts; the file appears whole or not at all. Raises what `write_whole` raises."""
    write_whole(file, prompts_bytes(prompts))


def prompts_bytes(prompts: LearnedPrompts) -> bytes:
    """What a file of prompts holds."""
    tensors = {
        f"layer{layer}|{name}": tensor.detach().float().cpu().contiguous()
        for layer, own in prompts.tensors.items()
        for name, tensor in own.items()
    }
    description = {
        "format": FORMAT,
        "version": VERSION,
        "creator": creator_version(),
        "mode": prompts.mode.value,
        "layers": list(prompts.layers),
        "timesteps": list(prompts.timesteps),
        "length": prompts.length,
        "categories": list(prompts.categories),
        "model": {"id": prompts.model_id, "fingerprint": prompts.model_fingerprint},
        "dino": None if prompts.dino is None else asdict(prompts.dino),
        "training": dict(prompts.training),
    }
    return bytes(save(tensors, metadata={"dualsd": json.dumps(description)}))


def file_of(path: Path) -> Path:
    """Where the prompts of a run's folder, or of a file, lie."""
    return path / FILE if path.is_dir() else path


def load_prompts(path: Path) -> LearnedPrompts:
    """Read prompts from a file, or from a run's folder. Raises `PromptError` for what is no file of ours."""
    file = file_of(path)
    if not file.is_file():
        raise PromptError(f"There are no prompts at {file}: name a run's folder or a .safetensors file of prompts.")
    try:
        with safe_open(file, framework="pt") as opened:
            description = json.loads((opened.metadata() or {}).get("dualsd", "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise PromptError(
            f"{file} is no safetensors file of prompts ({error}); prompts of SD4Match are read by "
            "`dualsd prompts import`."
        ) from error
    return _parse(description, tensors, file)


def _parse(description: Any, tensors: dict[str, Tensor], file: Path) -> LearnedPrompts:
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise PromptError(f"{file} holds no prompts of dualsd: its metadata do not name the format {FORMAT!r}.")
    if not isinstance(description.get("version"), int) or description["version"] > VERSION:
        raise PromptError(
            f"{file} has version {description.get('version')}, written by dualsd {description.get('creator')}; this "
            f"dualsd {creator_version()} reads up to version {VERSION}: upgrade it."
        )
    by_layer: dict[int, dict[str, Tensor]] = defaultdict(dict)
    try:
        for name, tensor in tensors.items():
            layer, _, own = name.partition("|")
            by_layer[int(layer.removeprefix("layer"))][own] = tensor
        prompts = LearnedPrompts(
            mode=Mode(description["mode"]),
            layers=tuple(map(int, description["layers"])),
            timesteps=tuple(map(int, description["timesteps"])),
            length=int(description["length"]),
            tensors=dict(by_layer),
            model_id=str(description["model"]["id"]),
            model_fingerprint=str(description["model"]["fingerprint"]),
            dino=None if description["dino"] is None else DinoName(**description["dino"]),
            training=dict(description["training"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PromptError(f"{file} has a damaged description: {error!r}.") from error
    if set(prompts.layers) != set(by_layer) or len(prompts.timesteps) != len(prompts.layers):
        raise PromptError(f"{file} is damaged: it holds prompts of other layers than it says.")
    names = {frozenset(own) for own in by_layer.values()}
    if len(names) != 1 or (prompts.mode is Mode.SINGLE and names != {frozenset({""})}):
        raise PromptError(
            f"{file} is damaged: it holds other prompts than mode {prompts.mode.value} has, one set a layer."
        )
    return prompts
