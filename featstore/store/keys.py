"""Names inside the store: where noisy latents and maps lie, and the hash that names an extractor."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LATENTS = "latents"
IMAGES = "images"
NOISY = "noisy"
MAPS = "maps"
CONDITIONING = "cond"
PATCH_TOKENS = f"{CONDITIONING}/dinov2"


@dataclass(frozen=True, slots=True)
class Extractor:
    """All that shapes a feature map beyond the image and (layer, timestep).

    prompt: what `describe()` of the prompts gives (its content, not its file). ensemble: noise draws averaged.
    dtype: the precision it was computed in. model_fingerprint, seed: as in the store's header.
    """

    model_fingerprint: str
    prompt: Mapping[str, Any]
    ensemble: int
    dtype: str
    seed: int

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return {
            "model_fingerprint": self.model_fingerprint,
            "prompt": dict(self.prompt),
            "ensemble": self.ensemble,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group."""
        text = json.dumps(self.describe(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def noisy_path(timestep: int) -> str:
    """Of the array of noisy latents at a timestep: `noisy/t0261`."""
    return f"{NOISY}/t{timestep:04d}"


def map_path(extractor: Extractor, layer: int, timestep: int) -> str:
    """Of the array of an extractor's maps: `maps/<hash>/layer2/t0261`."""
    return f"{MAPS}/{extractor.key}/layer{layer}/t{timestep:04d}"
