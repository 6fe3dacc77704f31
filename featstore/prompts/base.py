"""What prompts are: texts, learned ones, how they are described, and the registry of modes that they are learned in."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol, Self

from featstore.backbones.base import Condition, NetworkName, TextEncoders
from featstore.errors import TuningError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from featstore.store.store import PatchTokens
    from matcher.pairs import MatchingPair


class Prompts(Protocol):
    """A prompt for each layer and category."""

    @property
    def differ_by_layer(self) -> bool:
        """Whether each layer has prompts of its own, so that layers cannot share a pass of the UNet."""

    def describe(self) -> dict[str, Any]:
        """What shapes the embeddings (content, not file names), for an extractor's key."""

    def embeddings(self, layer: int, categories: Collection[str], text: TextEncoders) -> dict[str, Condition]:
        """What networks are told, one prompt each, by category; each distinct prompt is encoded once."""


class PromptSet(Protocol):
    """The prompts of one layer while they are being learned."""

    def vectors(self, pairs: "Sequence[MatchingPair]") -> "tuple[Tensor, tuple[int, ...]]":
        """The distinct prompts of some pairs, (u, N, D), and for each pair which of them is its."""

    def parameters(self) -> "list[nn.Parameter]":
        """What is learned, in a fixed order, at the rate of vectors."""

    def network_parameters(self) -> "list[nn.Parameter]":
        """What is learned at the rate of networks."""

    def tensors(self, framed: "Tensor") -> "Mapping[str, Tensor]":
        """As `LearnedPrompts.tensors` has them. framed: see `TextEncoders.frame`."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a layer's prompts start from.

    Args:
        pairs: The training pairs.
        length: N, learned vectors per prompt.
        text: The model's text encoders.
        patches: Reads the DINOv2 patch tokens of an image; None where the mode is of no pairs.
    """

    pairs: "Sequence[MatchingPair]"
    length: int
    text: TextEncoders
    patches: "PatchTokens | None"


class PromptMode(Protocol):
    """What a mode of learned prompts is: all that training, evaluation and files ask of it."""

    of_pairs: bool = False
    """Whether a prompt is made from both images of a pair, from their DINOv2 patch tokens: its maps then belong to
    pairs, and are not kept."""
    epochs: int
    """The published length of a training on SPair-71k."""

    def check_length(self, length: int) -> None:
        """Raise `TuningError` for prompts of a length that cannot be learned, whatever fits the text encoder."""

    def start(self, start: Start, key: str) -> PromptSet:
        """One layer's prompts before the first step. key: decides all that is random."""

    def name_of(self, names: Collection[str], category: str) -> str | None:  # noqa: ARG002
        """Under which of a layer's names the prompt of a category is kept; None where there is none."""
        return None

    def categories(self, names: Collection[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Those with a prompt of their own, sorted."""
        return ()

    def shapes(self, tensors: "Mapping[str, Tensor]") -> tuple[dict[str, tuple[int, ...]], range]:
        """Of one layer's tensors those shapes, by name, that all layers share, and how long prompts of these may be.
        Raises ValueError for tensors that are no prompts of this mode."""


class Mode(Enum):
    """The modes, by the name that users type."""

    SINGLE = "single"
    CLASS = "class"
    CPM = "cpm"

    @property
    def rules(self) -> PromptMode:
        """What the mode is; its file is loaded when it is first asked for."""
        found: PromptMode = resolve_name(f"featstore.prompts.{_RULES[self]}")()
        return found

    @classmethod
    def named(cls, name: str) -> Self:
        """The mode of a name. Raises `TuningError` for another one."""
        try:
            return cls(name)
        except ValueError:
            two = " Two layers, each with prompts of its own, are --layers 2,3." if name == "dual" else ""
            raise TuningError(f"--mode is {', '.join(known.value for known in cls)}, not {name!r}.{two}") from None


_RULES = {Mode.SINGLE: "text:OneForAll", Mode.CLASS: "text:OnePerCategory", Mode.CPM: "cpm:OnePerPair"}
"""The registry: where in this package each mode's `PromptMode` is."""


@dataclass(frozen=True, slots=True)
class PromptsDescription:
    """What is said of learned prompts, in memory and in their file.

    Args:
        mode: In which they were learned.
        layers: Decoder layers, each with prompts of its own.
        timesteps: One per layer, at which its prompts were learned; None without noise.
        length: N, learned vectors per prompt.
        model: The diffusion model that they are for.
        dino: Whose patch tokens a cpm is made from.
        training: How they were learned.
    """

    mode: Mode
    layers: tuple[int, ...]
    timesteps: tuple[int | None, ...]
    length: int
    model: NetworkName
    dino: NetworkName | None
    training: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class LearnedPrompts(PromptsDescription):
    """Learned prompts, in memory.

    Args:
        tensors: For each layer, by name: `SINGLE`: "" to token embeddings (77, D), all rows of what goes into CLIP's
            transformer; `CLASS`: each category to the same; `CPM`: parameter names of `ConditionalModule`.
    """

    tensors: "Mapping[int, Mapping[str, Tensor]]"

    @property
    def categories(self) -> tuple[str, ...]:
        """Those with a prompt of their own, sorted."""
        return self.mode.rules.categories(self.tensors[self.layers[0]])

    def describe(self) -> dict[str, Any]:
        """What shapes the embeddings, for the record and for an extractor's key."""
        content = {str(layer): self.content(layer) for layer in self.layers}
        found: dict[str, Any] = {"kind": self.mode.value, "content": content}
        if self.mode.rules.of_pairs:
            found["dino"] = None if self.dino is None else self.dino.fingerprint
        return found

    def to_json(self) -> dict[str, Any]:
        """All that they say but what they hold, as their file has it."""
        return {
            "mode": self.mode.value,
            "layers": list(self.layers),
            "timesteps": list(self.timesteps),
            "length": self.length,
            "categories": list(self.categories),
            "model": asdict(self.model),
            "dino": None if self.dino is None else asdict(self.dino),
            "training": dict(self.training),
        }

    def content(self, layer: int) -> str:
        """16 hex digits of all that one layer's prompts hold."""
        digest = hashlib.blake2b(self.mode.value.encode(), digest_size=8)
        for name, tensor in sorted(self.tensors[layer].items()):
            values = tensor.detach().float().cpu().contiguous()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()
