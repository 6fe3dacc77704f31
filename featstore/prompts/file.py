"""Learned prompts on disk: safetensors with a description in its metadata, never a pickle."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from featstore.backbones.base import NetworkName
from featstore.backbones.stable_diffusion import check_layers, check_timesteps
from featstore.errors import ModelError, PromptError
from featstore.files import open_whole, write_whole
from featstore.parsing import parse_known
from featstore.prompts.base import LearnedPrompts, Mode
from featstore.sealed import check_tensors_seal, read_tensors, seal_tensors
from featstore.store.schema import creator_version

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
    description = {"format": FORMAT, "version": VERSION, "creator": creator_version(), **prompts.to_json()}
    return seal_tensors(description, lambda metadata: save(tensors, metadata=metadata))


def file_of(path: Path) -> Path:
    """Where the prompts of a run's folder, or of a file, lie."""
    return path / FILE if path.is_dir() else path


def load_prompts(path: Path) -> LearnedPrompts:
    """Read prompts from a file, or from a run's folder. Raises `PromptError` for what is no file of ours."""
    file = file_of(path)
    if not file.is_file():
        raise PromptError(f"There are no prompts at {file}: name a run's folder or a .safetensors file of prompts.")
    try:
        content, description = read_tensors(file)
        tensors = load(content)
    except (SafetensorError, OSError, ValueError, KeyError) as error:  # KeyError: of a type torch lacks
        raise PromptError(
            f"{file} is no safetensors file of prompts ({error}); prompts of SD4Match are read by "
            "`dualsd prompts import`."
        ) from error
    prompts = _parse(description, tensors, file)
    try:
        check_tensors_seal(content, description)
    except ValueError as error:
        raise PromptError(
            f"{file} is damaged: {error}; copy it again from where it is whole, or train again."
        ) from error
    return prompts


@dataclass(frozen=True, slots=True)
class _Described:
    """What a file says of its prompts, and is read again."""

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int, ...]
    length: int
    model: NetworkName
    dino: NetworkName | None
    training: Mapping[str, Any]


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
        said = parse_known(_Described, description)
    except ValueError as error:
        raise PromptError(f"{file} has a damaged description: {error}.") from error
    prompts = LearnedPrompts(
        said.mode,
        said.layers,
        said.timesteps,
        said.length,
        dict(by_layer),
        said.model.id,
        said.model.fingerprint,
        said.dino,
        said.training,
    )
    if set(prompts.layers) != set(by_layer) or len(prompts.timesteps) != len(prompts.layers):
        raise PromptError(f"{file} is damaged: it holds prompts of other layers than it says.")
    names = {frozenset(own) for own in by_layer.values()}
    if len(names) != 1:
        raise PromptError(
            f"{file} is damaged: it holds other prompts than mode {prompts.mode.value} has, one set per layer."
        )
    try:
        check_layers(prompts.layers)
        check_timesteps(prompts.timesteps)
        _check_numbers(prompts)
    except (ValueError, ModelError) as error:
        raise PromptError(
            f"{file} cannot be used: {error}; copy it again from where it is whole, or train again."
        ) from error
    return prompts


def _check_numbers(prompts: LearnedPrompts) -> None:
    """Raise ValueError unless all are finite float32 and of one shape, with room for the vectors that they say."""
    shapes: dict[tuple[int, ...], str] = {}
    for layer, own in prompts.tensors.items():
        for name, tensor in own.items():
            if tensor.dtype is not torch.float32 or not tensor.isfinite().all():
                kind = "not all finite" if tensor.dtype is torch.float32 else str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"layer{layer}|{name} is {kind}, where prompts are finite float32")
        found, lengths = prompts.mode.rules.shapes(own)
        for name, shape in found.items():
            shapes.setdefault(shape, f"layer{layer}|{name}")
    if len(shapes) > 1 or not lengths:
        spelled = " and ".join(f"{where} {'x'.join(map(str, shape))}" for shape, where in shapes.items())
        raise ValueError(f"its prompts are not of one shape (positions, width): {spelled}")
    if prompts.length not in lengths:
        raise ValueError(f"it says prompts of {prompts.length} vectors, and has room for {lengths[-1]}")


def save_torch(tensors: Tensor | Mapping[str, Tensor], file: Path) -> None:
    """Write what `torch.load` reads; the file appears whole or not at all. Raises what `open_whole` raises."""
    with open_whole(file) as stream:
        try:
            torch.save(tensors, stream)
        except RuntimeError as error:
            # of a disk that refuses a write: torch then ends the file all the same, and what it says is of that
            refused = error.__context__
            raise refused if isinstance(refused, OSError) else error from None
