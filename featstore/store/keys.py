"""Names inside the store: where noisy latents and maps lie, and the hash that names an extractor."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from featstore.backbone.dino_name import DINO, DinoName
from featstore.store.stored import Stored

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
    dtype: the precision it was computed in. model_fingerprint, seed: as in the store's header. stored: the precision it
    is kept in.
    """

    model_fingerprint: str
    prompt: Mapping[str, Any]
    ensemble: int
    dtype: str
    seed: int
    stored: Stored = Stored.FLOAT16

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return {
            "model_fingerprint": self.model_fingerprint,
            "prompt": dict(self.prompt),
            "ensemble": self.ensemble,
            "dtype": self.dtype,
            "seed": self.seed,
            **_describe_stored(self.stored),
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
                stored=_stored_of(attributes),
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

    size: side in pixels of the square that images are resized to. dtype: the precision it was computed in. stored: the
    one it is kept in.
    """

    dino: DinoName
    size: int
    dtype: str
    stored: Stored = Stored.FLOAT16

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return {"dino": asdict(self.dino), "size": self.size, "dtype": self.dtype, **_describe_stored(self.stored)}

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        try:
            dino = DinoName(str(attributes["dino"]["id"]), str(attributes["dino"]["fingerprint"]))
            return cls(dino, int(attributes["size"]), str(attributes["dtype"]), _stored_of(attributes))
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


def _describe_stored(stored: Stored) -> dict[str, str]:
    """Nothing for float16: the names of maps that are kept so are those of versions that knew nothing else."""
    return {} if stored is Stored.FLOAT16 else {"stored": stored.value}


def _stored_of(attributes: Mapping[str, Any]) -> Stored:
    return Stored(attributes.get("stored", Stored.FLOAT16.value))


def _key(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
