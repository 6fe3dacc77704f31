"""GeoAware-SC's and DIY-SC's published adapters, made ours: tensors alone are read, and nothing in a pickle is
executed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from featstore.adapters.base import Adapter, AdapterSpec, make_adapter
from featstore.backbones.base import MapKey
from featstore.backbones.layers import check_names, timesteps_for
from featstore.backbones.registry import LAYERS, stem_of
from featstore.errors import AdapterError
from featstore.prompts.sd4match import load_tensors
from matcher.errors import InputError

PART = "bottleneck_layers.{}.{}.{}.weight"
"""The name of a convolution: part, block, which."""

PRECISIONS = (torch.float16, torch.bfloat16, torch.float32)


PUBLISHED_CELLS = 60
"""The side to which GeoAware-SC brings its maps."""


def import_adapter(
    file: Path,
    layers: Sequence[str],
    timesteps: Sequence[int | None] | None,
    groups: int,
    cells: int | None = None,
) -> Adapter:
    """An adapter of a published file.

    Args:
        file: Of `torch.save`, or safetensors: names and shapes are those of GeoAware-SC's network, all of them.
        layers: Whose maps the file's parts take, in their order; names that are no layers are those of own features.
        timesteps: One per layer of the UNet; None where there is none.
        groups: Of its norms, which no file says.
        cells: Side to which maps are brought, 0 for that of the finest; None as published.

    Raises:
        AdapterError: For a file that is missing, damaged, or holds anything else.
        InputError: For layers that there are not, and where counts disagree.
    """
    tensors = _read(file)
    keys = _keys(layers, timesteps)
    try:
        spec = _spec(tensors, keys, groups, file)
        spec = replace(spec, cells=(PUBLISHED_CELLS if len(keys) > 1 else 0) if cells is None else cells)
        adapter = make_adapter(spec)
        _check(tensors, adapter.state_dict())
    except ValueError as error:
        raise AdapterError(f"{file} holds no adapter as GeoAware-SC and DIY-SC publish them: {error}.") from error
    adapter.load_state_dict({name: own.float() for name, own in tensors.items()})
    return adapter


def _keys(layers: Sequence[str], timesteps: Sequence[int | None] | None) -> tuple[MapKey, ...]:
    if any(stem_of(layer) not in LAYERS for layer in layers):
        if timesteps is not None:
            raise InputError(f"--t goes with layers of the UNet, and --layers {','.join(layers)} are own features.")
        return tuple((layer, None) for layer in layers)
    check_names(layers)
    return tuple(zip(layers, timesteps_for(layers, timesteps, {}), strict=True))


def _read(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name."""
    if not file.is_file():
        raise AdapterError(f"There is no file {file}.")
    try:
        if file.suffix == ".safetensors":
            return load(file.read_bytes())
        return {".".join(keys): tensor for keys, tensor in load_tensors(file).items()}
    except ValueError as error:
        raise AdapterError(f"{file} {error}.") from error
    except (SafetensorError, OSError, KeyError) as error:
        raise AdapterError(f"{file} cannot be read as safetensors ({error}).") from error


def _spec(tensors: Mapping[str, Tensor], keys: Sequence[MapKey], groups: int, file: Path) -> AdapterSpec:
    """The network whose parameters these may be, as told by their shapes. Raises ValueError where they tell none,
    `AdapterError` for another number of parts than of maps."""
    shares = tensors.get("mixing_weights")
    if shares is None or shares.ndim != 1 or not len(shares):
        raise ValueError("it has no mixing_weights, one per part")
    parts = len(shares)
    if parts != len(keys):
        raise AdapterError(
            f"{file} has {parts} part(s), and --layers names {len(keys)} layer(s): name the layer that each part "
            "takes, in their order."
        )

    def sides(part: int, convolution: str) -> tuple[int, int]:
        name = PART.format(part, 0, convolution)
        if name not in tensors or tensors[name].ndim != 4:
            raise ValueError(f"it has no {name} of four dimensions")
        return tensors[name].shape[0], tensors[name].shape[1]

    blocks = 1
    while PART.format(0, blocks, "conv1") in tensors:
        blocks += 1
    (projection, _), (width, _) = sides(0, "conv3"), sides(0, "conv1")
    channels = tuple(sides(part, "conv1")[1] for part in range(parts))
    about = {"maps": {}, "imported": file.name}
    return AdapterSpec("aggregate", tuple(keys), channels, width, (1.0,), projection, blocks, groups, about=about)


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor that lacks, is not known, or is another one than its network has."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}, which belongs to none")
    for name, tensor in found.items():
        own, theirs = (tuple(one.shape) for one in (tensor, expected[name]))
        if own != theirs:
            raise ValueError(f"{name} is of shape {own}, where {theirs} goes with its other tensors")
        if tensor.dtype not in PRECISIONS:
            raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, where weights are floats")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
