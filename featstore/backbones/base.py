"""What every backbone offers, whatever its networks are, and where and how they are run.

Nothing here loads a library of networks: often all that is asked for is in the store.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from featstore.errors import ModelError
from matcher.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MapKey = tuple[str, int | None]
"""How a map is addressed: its layer's name and the timestep, None of networks that know no noise."""

CLEAN = "clean"
"""What is typed, shown and written in a timestep's place where latents have no noise."""


def spell_timestep(timestep: int | None) -> str:
    """`261`, or `clean`."""
    return CLEAN if timestep is None else str(timestep)


Tokenizer = Any
TextEncoder = Any
"""CLIP's, as transformers gives them."""


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """What networks are told by prompts, a batch of b.

    embeddings: (b, 77, D), for cross attention. pooled: (b, P), for what stands beside the timestep; None of networks
    that have nothing there.
    """

    embeddings: "Tensor"
    pooled: "Tensor | None" = None

    def each(self, change: "Callable[..., Tensor]", *arguments: object) -> "Condition":
        """The same with both parts changed."""
        pooled = None if self.pooled is None else change(self.pooled, *arguments)
        return Condition(change(self.embeddings, *arguments), pooled)

    def expanded(self, count: int) -> "Condition":
        """One prompt for `count` inputs."""
        return self.each(lambda own: own.expand(count, *own.shape[1:]))

    def split(self) -> "list[Condition]":
        """One by one, each a batch of 1."""
        return [self.each(getitem, slice(at, at + 1)) for at in range(len(self.embeddings))]


def joined(conditions: Sequence[Condition]) -> Condition:
    """Batches one behind another."""
    import torch

    pooled = [own.pooled for own in conditions if own.pooled is not None]
    return Condition(torch.cat([own.embeddings for own in conditions]), torch.cat(pooled) if pooled else None)


class TextEncoders(Protocol):
    """A model's text encoders and their tokenizers, as prompts need them. Prompts lie where token and position
    embeddings come out; of several encoders these stand beside one another, D wide together."""

    @property
    def positions(self) -> int:
        """Of a prompt: 77."""

    @property
    def width(self) -> int:
        """D of token embeddings."""

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""

    @property
    def device(self) -> "torch.device":
        """Where they run."""

    @property
    def dtype(self) -> "torch.dtype":
        """Their precision."""

    def embed(self, ids: "Tensor") -> "Tensor":
        """Token embeddings (b, n, D) of ids (b, n), with the position embeddings of where they stand."""

    def frame(self, length: int) -> "Tensor":
        """What stands around `length` learned vectors, see `featstore.backbones.text_encoders.frame`."""

    def length_of(self, rows: "Tensor") -> int | None:
        """How many vectors token embeddings (positions, D) have, see `featstore.backbones.text_encoders.length_of`."""

    def encode(self, rows: "Tensor", length: int) -> Condition:
        """What networks are told by token embeddings (b, positions, D), of `length` vectors each. Gradients flow."""

    def encode_texts(self, texts: Sequence[str]) -> Condition:
        """What networks are told by texts, padded or cut to the positions, as the model's own pipeline tells it."""


@dataclass(frozen=True, slots=True)
class NetworkName:
    """id: hub name or folder. fingerprint: of its files."""

    id: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """A model that lies ready on disk. id: as the user named it, aliases resolved. folder: in diffusers' layout.
    family: the module of this package that opens it."""

    id: str
    revision: str | None
    folder: Path
    family: str = "stable_diffusion"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """name: as users type it. channels, side: of its map (channels, side, side). stride: pixels of the image per cell.
    about: what else is said where it is printed."""

    name: str
    channels: int
    side: int
    stride: int
    about: str = ""

    @property
    def map(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.channels, self.side, self.side


@dataclass(frozen=True, slots=True)
class Compute:
    """device and dtype of the networks; batch_size: images or noisy latents a pass."""

    device: "torch.device"
    dtype: "torch.dtype"
    batch_size: int

    @property
    def dtype_name(self) -> str:
        """`float32`, `float16` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


class Networks(Protocol):
    """A backbone's networks, loaded."""

    def features(
        self, inputs: "Tensor", timestep: int | None, condition: Condition | None, layers: Sequence[str]
    ) -> "Mapping[str, Tensor]":
        """Maps of each of `layers`, all from one pass, in the networks' dtype. Gradients flow where inputs ask.

        Args:
            inputs: (b, ...): square pictures (b, 3, S, S) in [-1, 1]; of a diffusion model noisy latents (b, 4, h, w).
            timestep: of the noise; None for networks that know none.
            condition: of b prompts; None for networks without text.
            layers: names, at least one.

        Returns:
            (b, C, h, w) by the layer's name.
        """


@runtime_checkable
class Finishing(Protocol):
    """Networks whose maps are not finished before draws of noise are averaged."""

    def finished(self, layer: str, timestep: int | None, mean: "Tensor") -> "Tensor":
        """A layer's maps.

        Args:
            layer: its name.
            timestep: of the noise.
            mean: (n, C, h, w), float32: what `features` gave, averaged over draws.

        Returns:
            (n, C, h, w), float32.
        """


class Backbone(Protocol):
    """A backbone described: its files are at hand, its networks are not loaded."""

    @property
    def name(self) -> NetworkName:
        """Which it is, and which files it has."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that it takes where nobody says otherwise."""

    def layers(self, image_size: int) -> Mapping[str, LayerShape]:
        """The shape of every layer's map. Raises `ModelError` for a size that it cannot take."""

    def load(self, compute: Compute, layers: Sequence[str]) -> Networks:
        """Its networks, as far as `layers` need them. Raises `ModelError` where they cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which backbone of a family is asked for. name: a folder or hub name, None for the usual one. size: side in pixels
    of the square that images are resized to, None for the usual one. debias: directions of its descriptors that are
    taken out, since they tell positions."""

    name: str | None = None
    size: int | None = None
    debias: int = 0


class Family(Protocol):
    """The module of a backbone that makes maps of images alone, with neither noise nor text (see
    `featstore.backbones.registry`)."""

    def open_backbone(self, asked: Asked, model: ModelLocation) -> Backbone:
        """The backbone asked for. model: the store's, which may bring one. Raises `ModelError` where it is out of
        reach."""

    def usual_ids(self, model_id: str) -> Collection[str]:
        """The ids that `open_backbone` may give where no name is asked for."""


PRECISIONS = ("float32", "float16", "bfloat16", "float64")


def compute_on(device: str = "auto", dtype: str = "auto", batch_size: int = 8) -> Compute:
    """Where to run networks.

    Args:
        device: as torch names it, e.g. `cuda:1`; `auto` takes a GPU where there is one.
        dtype: `float32`, `float16`, `bfloat16` or `float64`; `auto` is float16, and float32 on the CPU.
        batch_size: images or noisy latents a pass.

    Raises:
        InputError: where there is no such device or dtype.
    """
    import torch

    if device == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else other
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"The device {device!r} cannot be used here: {reason}") from error
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "float16"
    if dtype not in PRECISIONS:
        raise InputError(f"--dtype is auto, {', '.join(PRECISIONS)}, not {dtype!r}.")
    return Compute(chosen, getattr(torch, dtype), batch_size)


@contextlib.contextmanager
def saying_batch_size(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error of the enclosed pass into a `ModelError` that names the batch size to try."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On the CPU torch raises a bare RuntimeError whose text names its allocator.
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        advice = (
            f"try --batch-size {batch_size // 2}"
            if batch_size > 1
            else "it does not fit at all: try --dtype float16, a smaller --size or another device"
        )
        raise ModelError(f"Memory ran out at batch size {batch_size}: {advice}.") from error
