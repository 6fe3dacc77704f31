"""What the page is shown, as JSON has it: extractors in words, the setting that it begins with, sizes, heat maps."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featstore.backbones.registry import profile_of
from featstore.parsing import to_json
from featstore.pipeline.live import KeptExtractor, LiveLayer, LiveMatch, LiveSetting
from featstore.pipeline.live_data import CommonKeypoint
from featstore.store.keys import AdaptedExtractor, AnyExtractor, Extractor
from featstore.store.schema import StoreHeader

NEAR = 0.51
"""Pixels within which a point that the page asks for is a keypoint."""


def size_of(size: Sequence[int]) -> dict[str, int]:
    return {"width": int(size[0]), "height": int(size[1])}


def kind_of(extractor: AnyExtractor) -> str:
    """What makes an extractor's maps what they are: a text (or zeros in its place), learned prompts, an adapter, or the
    picture alone."""
    if isinstance(extractor, AdaptedExtractor):
        return "adapted"
    if not isinstance(extractor, Extractor):
        return "pixels"
    return "text" if extractor.prompt.get("kind") in ("text", "zeros") else "learned"


def details_of(extractor: AnyExtractor) -> str:
    ensemble = [f"ensemble {extractor.ensemble}"] if isinstance(extractor, Extractor) else []
    dtype = [] if isinstance(extractor, AdaptedExtractor) else [extractor.dtype]
    return ", ".join([*ensemble, *dtype, extractor.encoding, extractor.key[:6]])


def defaults_of(extractors: Mapping[str, KeptExtractor], header: StoreHeader) -> LiveSetting | None:
    """What the page begins with: the model's recommended layers and timesteps, where they are cached, by the extractor
    that has most of them; None of a store without maps."""
    profile = profile_of(header.model_id, header.model_structure)

    def images_of(own: KeptExtractor, layer: str, step: int | None) -> int:
        return int(own.layers[layer][step].sum())

    def best(own: KeptExtractor) -> list[tuple[str, int | None]]:
        """Of the recommended layers, or any two, the recommended timesteps, or those of most images."""
        names = [layer for layer in profile.layers if layer in own.layers] or [*own.layers][:2]
        usual = profile.text_timesteps
        return [
            (
                layer,
                usual.get(layer)
                if usual.get(layer) in own.layers[layer]
                else max(own.layers[layer], key=lambda step: images_of(own, layer, step)),
            )
            for layer in names
        ]

    def rank(own: KeptExtractor) -> tuple[int, int, bool]:
        chosen = best(own)
        recommended = sum(layer in profile.layers for layer, _ in chosen)
        return recommended, min(images_of(own, *one) for one in chosen), kind_of(own.extractor) == "text"

    for key, own in sorted(extractors.items(), key=lambda one: rank(one[1]), reverse=True)[:1]:
        chosen = best(own)
        names = [layer for layer, _ in chosen]
        usual = profile.weights_of(names) if {*names} <= {*profile.layers} else None
        weights = (1.0,) * len(names) if usual is None else usual
        return LiveSetting(tuple(LiveLayer(layer, step, key) for layer, step in chosen), weights)
    return None


def setting_to_json(setting: LiveSetting | None) -> dict[str, Any] | None:
    return None if setting is None else to_json(setting)


def keypoint_at(known: Sequence[CommonKeypoint], point: Sequence[float]) -> CommonKeypoint | None:
    """The keypoint that a point of the source is."""
    away = [(max(abs(own.source[0] - point[0]), abs(own.source[1] - point[1])), own) for own in known]
    nearest = min(away, key=lambda one: one[0], default=None)
    return None if nearest is None or nearest[0] > NEAR else nearest[1]


def heat_of(done: LiveMatch) -> dict[str, Any]:
    """Correlations as bytes, each point's from its lowest to its highest."""
    low, high = (own(axis=(1, 2), keepdims=True) for own in (done.correlations.min, done.correlations.max))
    shares = (done.correlations - low) / np.maximum(high - low, 1e-9)
    return {
        "width": done.correlations.shape[2],
        "height": done.correlations.shape[1],
        "box": [*done.box],
        "low": low.ravel().tolist(),
        "high": high.ravel().tolist(),
        "data": [base64.b64encode(own.tobytes()).decode() for own in np.rint(255 * shares).astype(np.uint8)],
    }
