"""Names inside the store: where noisy latents and maps lie, and the hash that names an extractor."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from featstore.backbone.dino_name import DINO, DinoName

LATENTS = "latents"
IMAGES = "images"
NOISY = "noisy"
MAPS = "maps"
CONDITIONING = "cond"
PATCH_TOKENS = f"{CONDITIONING}/dinov2"


@dataclass(frozen=True, slots=True)
class Extractor:
    """All that shapes a map of the UNet beyond the image and (layer, timestep).

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

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        try:
            return cls(
                model_fingerprint=str(attributes["model_fingerprint"]),
                prompt=dict(attributes["prompt"]),
                ensemble=int(attributes["ensemble"]),
                dtype=str(attributes["dtype"]),
                seed=int(attributes["seed"]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group."""
        return _key(self.describe())


@dataclass(frozen=True, slots=True)
class DinoExtractor:
    """All that shapes a DINOv2's patch map beyond the image.

    size: side in pixels of the square that images are resized to. dtype: the precision it was computed in.
    """

    dino: DinoName
    size: int
    dtype: str

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return {"dino": asdict(self.dino), "size": self.size, "dtype": self.dtype}

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        try:
            dino = DinoName(str(attributes["dino"]["id"]), str(attributes["dino"]["fingerprint"]))
            return cls(dino, int(attributes["size"]), str(attributes["dtype"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group; where the DINOv2 lies is no part of them."""
        return _key({**self.describe(), "dino": self.dino.fingerprint})


def noisy_path(timestep: int) -> str:
    """Of the array of noisy latents at a timestep: `noisy/t0261`."""
    return f"{NOISY}/t{timestep:04d}"


def map_path(extractor: Extractor, layer: int, timestep: int) -> str:
    """Of the array of an extractor's maps: `maps/<hash>/layer2/t0261`."""
    return f"{MAPS}/{extractor.key}/layer{layer}/t{timestep:04d}"


def dino_path(extractor: DinoExtractor) -> str:
    """Of the array of a DINOv2's patch maps: `maps/<hash>/dino/patches`."""
    return f"{MAPS}/{extractor.key}/{DINO}/patches"


def _key(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
