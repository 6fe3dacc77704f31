"""What is recommended for a model where nobody says otherwise: layers, timesteps, weights, kernel, each with its source
(`profiles/*.toml`)."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from featstore.backbones.registry import is_other

USUAL = "sd2-1"
"""The profile of models that have none of their own."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A model's recommended settings.

    models: ids that it is for. layers: names. text_timesteps, learned_timesteps, training_timesteps: by layer, for
    inference with a text and with learned prompts, and for training. weights: by layer. weights_with_other: of two
    layers, one of which is another backbone's. kernel: k of the loss, in cells. sources: where each comes from, by the
    name of the field.
    """

    models: tuple[str, ...]
    layers: tuple[str, ...]
    text_timesteps: Mapping[str, int]
    learned_timesteps: Mapping[str, int]
    training_timesteps: Mapping[str, int]
    weights: Mapping[str, float]
    weights_with_other: tuple[float, float]
    kernel: int
    sources: Mapping[str, str]

    def weights_of(self, layers: Sequence[str]) -> tuple[float, ...] | None:
        """One weight per layer: 1 of a single one; None where nothing is recommended for these layers together."""
        if len(layers) == 1:
            return (1.0,)
        if all(layer in self.weights for layer in layers):
            return tuple(self.weights[layer] for layer in layers)
        if len(layers) == 2 and any(map(is_other, layers)):
            return self.weights_with_other
        return None


def profile_of(model_id: str) -> Profile:
    """The profile of a model by its id (`Model.location.id`): its own, else that of SD 2-1."""
    known = _profiles()
    return next((own for own in known.values() if model_id in own.models), known[USUAL])


@cache
def _profiles() -> dict[str, Profile]:
    """Every profile by its file's name."""
    folder = Path(__file__).parent / "profiles"
    return {file.stem: read_profile(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.toml"))}


def read_profile(text: str) -> Profile:
    """A profile's file. Raises `KeyError` for a field that is missing."""
    stated = tomllib.loads(text)
    settings = [field.name for field in fields(Profile) if field.name not in ("models", "sources")]
    values: dict[str, Any] = {name: stated[name]["value"] for name in settings}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    sources = {name: stated[name]["source"] for name in settings}
    return Profile(models=tuple(stated["models"]), sources=sources, **values)
