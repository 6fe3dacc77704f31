"""What every adapter is: a small network, or nothing but weights, on top of an image's cached maps; and its file.

An adapter takes the maps of one image, or of several, at the (layer, timestep) keys that it was trained on, and gives
maps at its own `outputs`. Pairs play no part, so adapted maps belong to images and can be cached as others are.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from featstore.backbones.base import MapKey, spell_timestep
from featstore.errors import AdapterError
from featstore.files import write_whole
from featstore.parsing import parse, to_json
from featstore.sealed import check_tensors_seal, check_version, read_tensors, seal_tensors
from featstore.store.schema import creator_version
from matcher.configuration import LayerSpec, check_weights
from matcher.errors import MatchError

Kind = Literal["residual", "aggregate", "weights"]

MODULES: Mapping[Kind, str] = {
    "residual": "featstore.adapters.residual",
    "aggregate": "featstore.adapters.aggregate",
    "weights": "featstore.adapters.weights",
}
"""Where each kind lies; each module has a `make(spec, seed)`."""

ADAPTED: MapKey = ("adapted", None)
"""The one map that a network gives which takes several together."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """All that says which network an adapter is, but for its parameters.

    Args:
        kind: residual: each map and what a bottleneck block adds to it. aggregate: GeoAware-SC's and DIY-SC's network,
            one map of all. weights: no network; how much each map weighs.
        inputs: (layer, timestep) of the maps that it takes, in order; each once.
        channels: Of each input.
        width: Channels of the bottleneck; 0 for weights.
        weights: One per output, by which matching fuses them.
        projection: Channels of aggregate's map; 0 for others.
        blocks: Of aggregate, in a row per input.
        groups: Of aggregate's group norms.
        cells: Side to which aggregate brings all maps; 0 for that of the finest.
        about: For the card: `maps`, what the maps came from, as `Opened.describe()` has it without the device, or
            {"features": "own"}; `size`, S of the images; `training`, how it was trained.
    """

    kind: Kind
    inputs: tuple[MapKey, ...]
    channels: tuple[int, ...]
    width: int
    weights: tuple[float, ...]
    projection: int = 0
    blocks: int = 1
    groups: int = 32
    cells: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise AdapterError(f"An adapter of {spell_keys(self.inputs)}: it takes at least one map, and each once.")
        if len(self.channels) != len(self.inputs) or min(self.channels) < 1:
            raise AdapterError(f"{len(self.inputs)} map(s) but channels {list(self.channels)}: give one number each.")
        if self.kind != "weights" and self.width < 1:
            raise AdapterError(f"The width of an adapter's bottleneck is {self.width}: it must be at least 1.")
        if self.kind == "aggregate":
            sides = {"width": self.width, "projection": self.projection}
            for name, own in sides.items():
                if self.groups < 1 or own < 1 or own % self.groups:
                    raise AdapterError(f"{name} is {own}: it must be a multiple of the {self.groups} groups.")
            if self.blocks < 1:
                raise AdapterError(f"blocks is {self.blocks}: it must be at least 1.")
        try:
            check_weights(len(self.outputs), self.weights)
        except MatchError as error:
            raise AdapterError(str(error)) from error

    @property
    def outputs(self) -> tuple[MapKey, ...]:
        """(layer, timestep) of the maps that it gives: those of the inputs, or one of all."""
        return (ADAPTED,) if self.kind == "aggregate" else self.inputs

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """What matching takes: the outputs with their weights."""
        return tuple(LayerSpec(*key, weight) for key, weight in zip(self.outputs, self.weights, strict=True))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `featstore.parsing.to_json`. Raises ValueError naming the field, or `AdapterError`."""
        found: Self = parse(cls, values, "adapter")
        return found


class Adapter(nn.Module):
    """An adapter with its parameters. Called with maps (b, C, h, w) by key, of at least its inputs, finite, of any
    floating type and on its device, it gives its outputs (b, C, H, W) by key in float32, through which gradients
    flow."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self._spec = spec

    @property
    def spec(self) -> AdapterSpec:
        """Which it is; with the weights as they are now."""
        return self._spec

    @property
    def outputs(self) -> tuple[MapKey, ...]:
        """(layer, timestep) of what it gives."""
        return self._spec.outputs

    @property
    def shares(self) -> tuple[float | Tensor, ...]:
        """The spec's weights, through which gradients flow where they are learned."""
        return self._spec.weights

    @abstractmethod
    def forward(self, maps: Mapping[MapKey, Tensor]) -> dict[MapKey, Tensor]:
        """See the class."""

    def taken(self, maps: Mapping[MapKey, Tensor]) -> list[Tensor]:
        """The inputs in order, float32. Raises `AdapterError` for one that lacks or has other channels."""
        found = []
        for key, channels in zip(self._spec.inputs, self._spec.channels, strict=True):
            own = maps.get(key)
            if own is None:
                raise AdapterError(
                    f"The adapter takes {spell_keys(self._spec.inputs)}, and is given {spell_keys(tuple(maps))}."
                )
            if own.shape[1] != channels:
                raise AdapterError(
                    f"The adapter takes {channels} channels of {spell_keys([key])}, not {own.shape[1]}: it was trained "
                    "on maps of another network."
                )
            found.append(own.float())
        return found


def make_adapter(spec: AdapterSpec, seed: int = 0) -> Adapter:
    """A fresh adapter. seed: of its first parameters; no random state of torch's moves."""
    with torch.random.fork_rng(devices=[]):  # torch's layers draw when they are made
        found: Adapter = import_module(MODULES[spec.kind]).make(spec, seed)
    return found


def spell_keys(keys: Sequence[MapKey]) -> str:
    """`layer 2 at t = 261 and layer 3 at t = 200`."""
    names = [
        f"layer {layer}" + ("" if timestep is None else f" at t = {spell_timestep(timestep)}")
        for layer, timestep in keys
    ]
    return " and ".join(names) or "no map"


FORMAT = "dualsd adapter"
VERSION = 1
FILE = "adapter.safetensors"
"""The name of a run's adapter in its folder."""


def save_adapter(path: Path, adapter: Adapter) -> None:
    """Write an adapter; the file appears whole or not at all. Raises what `write_whole` raises."""
    tensors = {name: own.detach().cpu().contiguous() for name, own in adapter.state_dict().items()}
    card = {"format": FORMAT, "version": VERSION, "creator": creator_version(), "spec": to_json(adapter.spec)}
    write_whole(path, seal_tensors(card, lambda metadata: save(tensors, metadata=metadata)))


def load_adapter(path: Path) -> Adapter:
    """Read an adapter from a file, or from a run's folder. Raises `AdapterError` for what is no file of ours."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise AdapterError(f"There is no adapter at {file}: name a run's folder or a .safetensors file of an adapter.")
    try:
        content, card = read_tensors(file)
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise ValueError("its metadata do not say that it is one")
        check_version(card, VERSION, str(file), AdapterError)
        check_tensors_seal(content, card)
        adapter = make_adapter(AdapterSpec.from_json(card["spec"]))
        adapter.load_state_dict(load(content))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{file} cannot be used as an adapter ({error}).") from error
    return adapter
