"""Learned prompts: their file (safetensors with a description in its metadata, never a pickle), and single and class
ones in use, as `Prompts`."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from featstore.backbones.base import Condition, TextEncoders
from featstore.backbones.stable_diffusion import check_layers, check_timesteps
from featstore.errors import ModelError, PromptError
from featstore.files import open_whole, write_whole
from featstore.parsing import parse_known
from featstore.prompts.base import LearnedPrompts, Prompts, PromptsDescription
from featstore.prompts.text import TextPrompt, check_shape
from featstore.prompts.zeros import Zeros
from featstore.sealed import check_tensors_seal, check_version, read_tensors, seal_tensors
from featstore.store.schema import creator_version

FORMAT = "dualsd prompts"
VERSION = 1
FILE = "prompts.safetensors"
"""The name of a run's prompts in its folder."""


def save_prompts(prompts: LearnedPrompts, file: Path) -> None:
    """Write prompts; the file appears whole or not at all. Raises what `write_whole` raises."""
    tensors = {
        f"layer{layer}|{name}": tensor.detach().float().cpu().contiguous()
        for layer, own in prompts.tensors.items()
        for name, tensor in own.items()
    }
    description = {"format": FORMAT, "version": VERSION, "creator": creator_version(), **prompts.to_json()}
    write_whole(file, seal_tensors(description, lambda metadata: save(tensors, metadata=metadata)))


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
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise PromptError(f"{file} holds no prompts of dualsd: its metadata do not name the format {FORMAT!r}.")
    check_version(description, VERSION, str(file), PromptError)
    try:
        prompts = _parse(description, tensors)
        check_tensors_seal(content, description)
    except (ValueError, ModelError) as error:
        raise PromptError(
            f"{file} is damaged: {error}; copy it again from where it is whole, or train again."
        ) from error
    return prompts


def _parse(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LearnedPrompts:
    """Raises ValueError or `ModelError` for what no prompts are."""
    by_layer: dict[int, dict[str, Tensor]] = defaultdict(dict)
    try:
        for name, tensor in tensors.items():
            layer, _, own = name.partition("|")
            by_layer[int(layer.removeprefix("layer"))][own] = tensor
        said = parse_known(PromptsDescription, description)
    except ValueError as error:
        raise ValueError(f"it has a damaged description, {error}") from error
    named = {field.name: getattr(said, field.name) for field in fields(said)}
    prompts = LearnedPrompts(**named, tensors=dict(by_layer))
    if set(prompts.layers) != set(by_layer) or len(prompts.timesteps) != len(prompts.layers):
        raise ValueError("it holds prompts of other layers than it says")
    if len({frozenset(own) for own in by_layer.values()}) != 1:
        raise ValueError(f"it holds other prompts than mode {prompts.mode.value} has, one set per layer")
    check_layers(prompts.layers)
    check_timesteps([step for step in prompts.timesteps if step is not None])
    _check_numbers(prompts)
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


@dataclass(frozen=True, slots=True)
class SavedPrompts:
    """`Prompts` of a run of mode single or class. fallback: for categories that it has no prompt for: a text, or
    another run's single prompt; None where there is no such way out."""

    learned: LearnedPrompts
    fallback: Prompts | None = None

    @property
    def differ_by_layer(self) -> bool:
        """See `Prompts.differ_by_layer`."""
        return len(self.learned.layers) > 1

    def describe(self) -> dict[str, Any]:
        """See `Prompts.describe`."""
        described = self.learned.describe()
        return described if self.fallback is None else {**described, "fallback": self.fallback.describe()}

    @torch.no_grad()
    def embeddings(self, layer: int, categories: Collection[str], text: TextEncoders) -> dict[str, Condition]:
        """See `Prompts.embeddings`."""
        self.check_categories(categories)
        own = {category: name for category in categories if (name := self._name(category)) is not None}
        names = sorted(set(own.values()))
        found: dict[str, Condition] = {}
        if names:
            rows = [self.learned.tensors[layer][name] for name in names]
            check_shape(rows[0].shape, text, "These prompts are")
            encoded = text.encode(torch.stack(rows).to(text.device), self.learned.length).split()
            found = {category: encoded[names.index(name)] for category, name in own.items()}
        others = [category for category in categories if category not in own]
        if self.fallback is not None and others:
            found |= self.fallback.embeddings(layer, others, text)
        return found

    def _name(self, category: str) -> str | None:
        """Under which name a category's prompt is kept."""
        return self.learned.mode.rules.name_of(self.learned.tensors[self.learned.layers[0]], category)

    def check_categories(self, categories: Collection[str]) -> None:
        """Raise `PromptError` for categories that have no prompt and nothing to fall back on."""
        missing = sorted(category for category in categories if self._name(category) is None)
        if missing and self.fallback is None:
            raise PromptError(
                f"No prompt was learned for {', '.join(map(repr, missing))} (there are "
                f"{', '.join(self.learned.categories)}): --fallback text takes the text prompt there, --fallback "
                "single a run of mode single."
            )


def check_usable(learned: LearnedPrompts, fingerprint: str, model_id: str, layers: Sequence[int]) -> None:
    """Raise `PromptError` where prompts are for another model than the one at hand, or have none for a layer."""
    if learned.model.fingerprint != fingerprint:
        raise PromptError(
            f"These prompts were made for the model {learned.model.id} (fingerprint {learned.model.fingerprint[:8]}), "
            f"not for {model_id} (fingerprint {fingerprint[:8]}): prompts do not carry over from model to model."
        )
    missing = [layer for layer in layers if layer not in learned.layers]
    if missing:
        raise PromptError(
            f"These prompts are for layer(s) {', '.join(map(str, learned.layers))}, not for layer {missing[0]}: name "
            "those with --layers, or other prompts."
        )


def prompts_of(description: Mapping[str, Any], learned: Sequence[LearnedPrompts]) -> Prompts | None:
    """The prompts whose `describe()` gives `description`: a text or zeros, which are all there, or one of those
    `learned`; None where it is none of them."""
    if description == Zeros().describe():
        return Zeros()
    if description.get("kind") == "text":
        try:
            return TextPrompt(str(description.get("template")))
        except ModelError:
            return None
    fallback = description.get("fallback")
    beside = prompts_of(fallback, learned) if isinstance(fallback, Mapping) else None
    # no map of prompts of pairs is kept
    candidates = (SavedPrompts(prompts, beside) for prompts in learned if not prompts.mode.rules.of_pairs)
    return next((own for own in candidates if own.describe() == description), None)
