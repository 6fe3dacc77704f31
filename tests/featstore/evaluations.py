"""Evaluations without maps: pairs with keypoints by hand, and what readouts are to have predicted."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.records import AnnotatedPairs, Pair, ThetaRule, to_resized_frame
from featstore.pipeline.results import Evaluation, Scoring
from matcher.configuration import Geometry, LayerSpec, MatchSettings
from matcher.pairs import MatchingPair
from matcher.pck import MatchedPair, Matches

SIZE = 100
ALPHAS = (0.05, 0.1)


def annotated(**changes: Any) -> Pair:
    """Two keypoints of a source of 200 x 100 and a target of 50 x 400 pixels."""
    fields: dict[str, Any] = {
        "source": "cat/a",
        "target": "cat/b",
        "category": "cat",
        "source_points": np.array([[20.0, 10.0], [100.0, 50.0]]),
        "target_points": np.array([[5.0, 40.0], [30.0, 240.0]]),
        "names": ("eye", "nose"),
        "target_box": (5.0, 20.0, 45.0, 220.0),
    }
    return Pair(**{**fields, **changes})


def framed(pair: Pair, rule: ThetaRule = ThetaRule.BOX, size: int = SIZE) -> MatchingPair:
    sizes = {pair.source: (200, 100), pair.target: (50, 400)}
    return to_resized_frame(AnnotatedPairs.of([pair]), rule, sizes.__getitem__, size)[0]


def result_of(
    pairs: Sequence[MatchingPair],
    predictions: Mapping[str, Sequence[NDArray[Any]]],
    alphas: Sequence[float] = ALPHAS,
    layers: Sequence[str] = ("2", "3"),
    size: int = SIZE,
) -> Evaluation:
    """Predictions are (n, 2) a pair, in the readout's frame."""
    matched = [
        MatchedPair(pair, {readout: np.asarray(own[row], dtype=np.float32) for readout, own in predictions.items()})
        for row, pair in enumerate(pairs)
    ]
    settings = MatchSettings(size, Geometry.HALF_PIXEL, 2, Geometry.CORNERS, 0.0401, 6.9, 5, 1 / 3)
    specs = tuple(LayerSpec(layer, 261 if layer.isdigit() else None, 1 / 7) for layer in layers)
    features = {"prompt": "a [red] “{category}”", "ensemble": 8, "extractor": None}
    scoring = Scoring(specs, tuple(predictions), tuple(alphas), settings)
    return Evaluation("demo", "test", scoring, features, Matches.of(matched))


def many_pairs(images: int = 6, categories: Sequence[str] = ("cat", "dog"), size: int = SIZE) -> list[MatchingPair]:
    """All ordered pairs of each category, of 2 to 4 keypoints."""
    random = np.random.default_rng(0)
    found = []
    for category in categories:
        for a, b in itertools.permutations(range(images), 2):
            count = 2 + (a + b) % 3
            pair = annotated(
                source=f"{category}/{a}",
                target=f"{category}/{b}",
                category=category,
                source_points=random.uniform((1, 1), (190, 90), (count, 2)),
                target_points=random.uniform((1, 1), (45, 390), (count, 2)),
                names=tuple(f"k{place}" for place in range(count)),
            )
            found.append(framed(pair, size=size))
    return found


def guessed(pairs: Sequence[MatchingPair], spread: float, seed: int) -> list[NDArray[np.float32]]:
    """The targets' points, off by so much of theta."""
    random = np.random.default_rng(seed)
    return [
        (pair.target_points + random.normal(0, spread * pair.theta, pair.target_points.shape)).astype(np.float32)
        for pair in pairs
    ]
