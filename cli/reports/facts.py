"""Settings as a reader finds them: a name in words, a value as text, in groups."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cli.reports.page import FactGroup, Facts
from featstore.pipeline.pairs import list_hash
from matcher.configuration import MatchSettings
from matcher.pairs import MatchingPair

DEMO_NOTE = (
    "The model is the demo's: drawn pictures are all it knows, and its figures say nothing of Stable Diffusion's."
)
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


def as_text(values: Mapping[str, object]) -> Facts:
    """Values as text, without those that are None; the parts of a list are joined by commas."""
    return {name: _shown(value) for name, value in values.items() if value is not None}


def named_features(features: Mapping[str, Any], names: Mapping[str, str]) -> Facts:
    """What is recorded of where maps came from, as far as `names` gives it a name."""
    return as_text({label: features.get(name) for name, label in names.items()})


def list_facts(dataset: str, split: str, pairs: Sequence[MatchingPair]) -> Facts:
    """What was scored."""
    return as_text(
        {
            "Dataset": dataset,
            "Split": split,
            "Categories": sorted({pair.category for pair in pairs}),
            "Pairs": len(pairs),
            "Keypoints": count_points(pairs),
            "Hash of the list": list_hash(split, pairs),
        }
    )


def list_line(dataset: str, split: str, pairs: Sequence[MatchingPair]) -> str:
    """The same in short."""
    return f"{dataset} {split}: {len(pairs)} pairs, {count_points(pairs)} keypoints"


def count_points(pairs: Sequence[MatchingPair]) -> int:
    """Over all pairs."""
    return sum(len(pair.target_points) for pair in pairs)


def feature_group(features: Mapping[str, Any]) -> FactGroup:
    """Where maps came from, all that is recorded of it."""
    found: dict[str, object] = {}
    for name, value in features.items():
        if isinstance(value, Mapping):
            found |= {f"Prompts: {part}": "none" if own is None else own for part, own in _flat(value)}
        else:
            found[_FEATURES.get(name, name)] = _EMPTY.get(name, "none") if value is None else str(value)
    return FactGroup("Features", as_text(found))


def matching_group(tried: Sequence[MatchSettings], readouts: Sequence[str]) -> FactGroup:
    """How maps become matches, in all the ways that were tried; what belongs to a readout only where it was used."""
    first, used = tried[0], set(readouts)
    softmax = used & {"softmax", "kernelsoftmax"}
    found = {
        "Image size": f"{first.image_size} x {first.image_size} pixels, aspect ratio not kept",
        "Geometry": unique(one.geometry.value for one in tried),
        "Upsampling of the finest map": unique(f"{one.upsample}x" for one in tried),
        "Alignment of upsampling": unique(one.upsample_align.value for one in tried),
        "Readouts": list(readouts),
        "Softmax temperature beta": f"{first.beta:g}" if softmax else None,
        "Kernel width sigma": f"{first.sigma:g} cells" if "kernelsoftmax" in used else None,
        "Window": f"{first.window} cells, temperature {first.window_beta:g}" if "window" in used else None,
    }
    return FactGroup("Matching", as_text(found))


def origin_group(description: Mapping[str, Any]) -> FactGroup:
    """What was typed, when, where, and with which versions. description: of a run's folder."""
    versions = description.get("versions")
    found = {
        "Command line": description.get("command"),
        "Store": description.get("store"),
        "Dataset's folder": description.get("root"),
        "Made": when(description["created"]) if "created" in description else None,
        "dualsd": description.get("creator", "unknown"),
        **(versions if isinstance(versions, Mapping) else {}),
    }
    return FactGroup("Origin and versions", as_text(found))


def when(created: object) -> str:
    """`2026-11-24 19:10 UTC`, of a time as run folders have it."""
    text = str(created or "")
    return f"{text[:16].replace('T', ' ')} UTC" if len(text) >= 16 else text


def in_words(noun: str, names: Sequence[str]) -> str:
    """`Layers 2, 3 and 4`."""
    *before, last = names
    return f"{noun}s {', '.join(before)} and {last}" if before else f"{noun} {last}"


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(values))


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)
