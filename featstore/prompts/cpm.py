"""A cpm: a prompt made of both images of a pair (SD4Match's conditional prompting module)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featstore.backbones.base import Condition, NetworkName, TextEncoders
from featstore.backbones.noise import generator
from featstore.backbones.text_encoders import fill
from featstore.errors import PromptError, TuningError
from featstore.prompts.base import LearnedPrompts, PromptMode, Start
from featstore.prompts.text import check_shape, wide
from featstore.store.store import PatchTokens
from matcher.pairs import MatchingPair

LENGTHS = 25, 50
"""Vectors that are a module's own, and that it makes of a pair."""

_LINEAR = "linear_C.weight", "linear_C.bias", "linear_N.weight", "linear_N.bias"
PARAMETERS = "global_embeds", "positional_embedding", "alpha_cond", *_LINEAR
"""Names of a module's parameters, SD4Match's and ours."""


class ConditionalModule(nn.Module):
    """25 vectors of its own and 50 made from a pair (docs/method.md, Prompts). Its parameters have SD4Match's names.

    dino_width: channels of a patch token. patches: of an image. width: of the text encoder. lengths: as `LENGTHS`.
    Vectors are drawn uniformly from [0, 1), the linear maps as torch does, all from torch's global generator.
    """

    def __init__(self, dino_width: int, patches: int, width: int, lengths: tuple[int, int] = LENGTHS) -> None:
        super().__init__()
        self.global_embeds = nn.Parameter(torch.rand(1, lengths[0], width))
        self.positional_embedding = nn.Parameter(torch.rand(1, lengths[1], width))
        self.alpha_cond = nn.Parameter(torch.rand(1, lengths[1], width))
        self.linear_C = nn.Linear(2 * dino_width, width)
        self.linear_N = nn.Linear(patches, patches)
        self.pool = nn.AdaptiveMaxPool1d(lengths[1])

    @property
    def tokens_shape(self) -> tuple[int, int]:
        """(patches, dino_width) that it takes of an image."""
        return self.linear_N.in_features, self.linear_C.in_features // 2

    @property
    def length(self) -> int:
        """Vectors of a prompt."""
        return self.global_embeds.shape[1] + self.alpha_cond.shape[1]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Patch tokens of source and target, (b, patches, dino_width) each, to vectors (b, length, width)."""
        both = self.linear_C(torch.cat([source, target], dim=2))  # (b, patches, width)
        mixed = self.linear_N(both.transpose(1, 2))  # (b, width, patches)
        pooled = self.pool(mixed).transpose(1, 2)  # (b, conditional length, width)
        conditional = torch.tanh(self.alpha_cond) * (self.positional_embedding + pooled)
        return torch.cat([self.global_embeds.expand(len(source), -1, -1), conditional], dim=1)


def module_of(tensors: dict[str, Tensor]) -> ConditionalModule:
    """The module whose parameters are given, of the shapes that they have. Raises `ValueError` saying which is missing
    or does not fit."""
    missing = [name for name in PARAMETERS if name not in tensors]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing")
    try:
        width, both = tensors["linear_C.weight"].shape
        with torch.random.fork_rng(devices=[]):
            lengths = tensors["global_embeds"].shape[1], tensors["alpha_cond"].shape[1]
            module = ConditionalModule(both // 2, tensors["linear_N.weight"].shape[0], width, lengths)
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (IndexError, RuntimeError, ValueError) as error:
        shapes = ", ".join(f"{name} {'x'.join(map(str, own.shape))}" for name, own in sorted(tensors.items()))
        raise ValueError(f"the parameters do not fit together ({shapes})") from error
    return module


class OnePerPair(PromptMode):
    """Mode cpm: one prompt per pair, made from both images. Its tensors are the parameters of a `ConditionalModule`."""

    of_pairs = True
    epochs = 2

    def check_length(self, length: int) -> None:
        """See `PromptMode`."""
        if length != sum(LENGTHS):
            made = " + ".join(map(str, LENGTHS))
            raise TuningError(
                f"A cpm makes prompts of {made} vectors, not of {length}: --length goes with single and class."
            )

    def start(self, start: Start, key: str) -> "LearnedModule":
        """See `PromptMode`; torch's global generator is left as it was."""
        assert start.patches is not None, "read where a mode is of pairs"
        patches, dino_width = start.patches(start.pairs[0].source).shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator(key).integers(2**31)))
            module = ConditionalModule(dino_width, patches, start.text.width)
        return LearnedModule(module.to(start.text.device, wide(start.text.dtype)), start.patches)

    def shapes(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], range]:
        """See `PromptMode`."""
        module = module_of(dict(tensors))
        return {"global_embeds": tuple(module.global_embeds.shape)}, range(module.length, module.length + 1)


class LearnedModule:
    """A `PromptSet`: the conditional module of one layer, whose linear maps are learned at a rate of their own."""

    def __init__(self, module: ConditionalModule, patches: PatchTokens) -> None:
        self._module = module
        self._patches = patches

    def vectors(self, pairs: Sequence[MatchingPair]) -> tuple[Tensor, tuple[int, ...]]:
        """See `PromptSet`."""
        weights = self._module.global_embeds
        source = torch.stack([self._patches(pair.source) for pair in pairs]).to(weights)
        target = torch.stack([self._patches(pair.target) for pair in pairs]).to(weights)
        found: Tensor = self._module(source, target)
        return found, tuple(range(len(pairs)))

    def parameters(self) -> list[nn.Parameter]:
        """See `PromptSet`."""
        return [own for name, own in self._module.named_parameters() if name not in _LINEAR]

    def network_parameters(self) -> list[nn.Parameter]:
        """See `PromptSet`."""
        return [own for name, own in self._module.named_parameters() if name in _LINEAR]

    def tensors(self, framed: Tensor) -> Mapping[str, Tensor]:  # noqa: ARG002
        """See `PromptSet`; a module has no rows to be framed."""
        return {name: own.detach().clone() for name, own in self._module.named_parameters()}


def check_dino(learned: LearnedPrompts, dino: NetworkName) -> None:
    """Raise `PromptError` where prompts are made from another DINOv2's tokens than the one at hand; one whose
    fingerprint nobody wrote down (SD4Match's) is taken on trust."""
    if learned.dino is not None and learned.dino.fingerprint not in ("", dino.fingerprint):
        raise PromptError(
            f"These cpm prompts are made from tokens of the DINOv2 {learned.dino.id} (fingerprint "
            f"{learned.dino.fingerprint[:8]}), not of {dino.id} (fingerprint {dino.fingerprint[:8]}): name theirs with "
            "--dino."
        )


@dataclass(frozen=True, slots=True)
class PairPrompts:
    """The prompts that conditional modules, one a layer, make of pairs. framed: token embeddings (77, D) around the
    vectors."""

    modules: Mapping[int, ConditionalModule]
    framed: Tensor
    text: TextEncoders
    patches: PatchTokens

    @torch.no_grad()
    def of(self, layer: int, pairs: Sequence[tuple[str, str]]) -> Condition:
        """What networks are told of (source, target) images, one prompt per pair; both images share it. Raises
        `PromptError` where the patch tokens are not what the module takes."""
        device = self.text.device
        source, target = (
            torch.stack([self.patches(images[end]) for images in pairs]).float().to(device) for end in (0, 1)
        )
        module = self.modules[layer]
        if source.shape[1:] != module.tokens_shape:
            (patches, width), (ours, our_width) = module.tokens_shape, source.shape[1:]
            raise PromptError(
                f"These cpm prompts are made from {patches} patch tokens of width {width}, and the DINOv2 at hand "
                f"gives {ours} of width {our_width}: name theirs with --dino."
            )
        return self.text.encode(fill(self.framed, module(source, target)), module.length)


def open_pair_prompts(learned: LearnedPrompts, text: TextEncoders, patches: PatchTokens) -> PairPrompts:
    """Raises `PromptError` where the modules do not fit the text encoders."""
    try:
        modules = {
            layer: module_of(dict(own)).to(text.device).eval().requires_grad_(False)
            for layer, own in learned.tensors.items()
        }
    except ValueError as error:
        raise PromptError(f"These cpm prompts are damaged: {error}.") from error
    for module in modules.values():
        check_shape(module.global_embeds.shape, text, "These cpm prompts are")
    return PairPrompts(modules, text.frame(learned.length), text, patches)
