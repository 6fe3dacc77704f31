"""Settings as a reader finds them: a name in words, a value as text, in groups."""

from collections.abc import Mapping, Sequence
from typing import Any

from cli.html_report.page import Fact, FactGroup
from matcher.configuration import MatchSettings

_FEATURES = {
    "prompt": "Prompt",
    "ensemble": "Ensemble (noise draws averaged)",
    "model": "Model",
    "model_revision": "Model revision",
    "model_fingerprint": "Model fingerprint",
    "dtype": "Precision of the networks",
    "latents": "Latents of the posterior",
    "seed": "Seed of latents and noise",
    "extractor": "Maps in the store",
    "dino": "DINOv2",
    "dino_fingerprint": "DINOv2 fingerprint",
    "dino_size": "DINOv2 image size",
    "dino_extractor": "DINOv2 maps in the store",
    "features": "File of features",
}
_EMPTY = {"model_revision": "none named", "extractor": "not kept, they belong to pairs"}


def feature_group(features: Mapping[str, Any]) -> FactGroup:
    """Where maps came from, all that is recorded of it."""
    facts: list[Fact] = []
    for name, value in features.items():
        if isinstance(value, Mapping):
            facts += [Fact(f"Prompts: {part}", _shown(own)) for part, own in _flat(value)]
        else:
            facts.append(Fact(_FEATURES.get(name, name), _EMPTY.get(name, "none") if value is None else str(value)))
    return FactGroup("Features", tuple(facts))


def matching_group(tried: Sequence[MatchSettings], readouts: Sequence[str]) -> FactGroup:
    """How maps become matches, in all the ways that were tried; what belongs to a readout only where it was used."""
    first = tried[0]
    geometries, factors, aligned = (
        dict.fromkeys(parts)
        for parts in zip(
            *((one.geometry.value, f"{one.upsample}x", one.upsample_align.value) for one in tried), strict=True
        )
    )
    facts = [
        Fact("Image size", f"{first.image_size} x {first.image_size} pixels, aspect ratio not kept"),
        Fact("Geometry", ", ".join(geometries)),
        Fact("Upsampling of the finest map", ", ".join(factors)),
        Fact("Alignment of upsampling", ", ".join(aligned)),
        Fact("Readouts", ", ".join(readout for readout in readouts)),
    ]
    if {"softmax", "kernelsoftmax"} & set(readouts):
        facts.append(Fact("Softmax temperature beta", f"{first.beta:g}"))
    if "kernelsoftmax" in readouts:
        facts.append(Fact("Kernel width sigma", f"{first.sigma:g} cells"))
    if "window" in readouts:
        facts.append(Fact("Window", f"{first.window} cells, temperature {first.window_beta:g}"))
    return FactGroup("Matching", tuple(facts))


def origin_group(description: Mapping[str, Any]) -> FactGroup:
    """What was typed, when, where, and with which versions. description: of a run's folder."""
    named = {"command": "Command line", "store": "Store", "root": "Dataset's folder"}
    facts = [Fact(name, str(description[key])) for key, name in named.items() if isinstance(description.get(key), str)]
    if "created" in description:
        facts.append(Fact("Made", when(description["created"])))
    facts.append(Fact("dualsd", str(description.get("creator", "unknown"))))
    versions = description.get("versions")
    if isinstance(versions, Mapping):
        facts += [Fact(str(library), str(found)) for library, found in versions.items()]
    return FactGroup("Origin and versions", tuple(facts))


def when(created: object) -> str:
    """`2026-11-24 19:10 UTC`, of a time as run folders have it."""
    text = str(created or "")
    return f"{text[:16].replace('T', ' ')} UTC" if len(text) >= 16 else text


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name} ")
        else:
            found.append((f"{before}{name}", value))
    return found


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)
