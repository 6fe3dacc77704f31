"""What an evaluation predicted, in one safetensors file: enough to score it again, in either frame.

P pairs, N points of all pairs in turn, P_i of pair i. Points are (x, y), the frames those of docs/numbers.md.

    counts                          (P,)    int32     points of each pair
    source, target                  (P,)    int32     its images, as places in the metadata's `images`
    category                        (P,)    int32     as a place in the metadata's `categories`
    source_size, target_size        (P, 2)  int32     width and height of the original images, in pixels
    theta                           (P, 2)  float64   base threshold, in pixels of the resized and of the original frame
    thetas|<rule>                   (P, 2)  float64   the same by another rule, box or keypoints; optional
    source_points, target_points    (N, 2)  float32   annotated, in the resized frame
    original_source_points, original_target_points    the same in the original frame (where a point was clamped into its
                                                      image, the two frames clamp it to other places)
    names                           (N,)    int32     the keypoint, as a place in the metadata's `names`; optional
    unmatched|counts                (P,)    int32     keypoints that the target shows and the source does not, M in all;
                                                      with the three below, optional: an older dualsd had none
    unmatched|names                 (M,)    int32     which they are, as a place in the metadata's `names`
    unmatched|resized, unmatched|original   (M, 2)  float32   where, in either frame
    flags|<flag>                    (P,)    int32     the dataset's own mark of how hard the pair is; optional
    predictions|<readout>           (N, 2)  float32   in the readout's own frame: `pixel` original, all others resized

The metadata's `dualsd` is JSON: format, version, creator, images, categories, names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featstore.errors import EvaluationError
from featstore.sealed import check_tensors_seal, check_version, read_tensors, seal_tensors
from featstore.store.schema import creator_version
from matcher.configuration import readout
from matcher.errors import MatchError
from matcher.pairs import Pairs, PairsInFrame, Unmatched
from matcher.pck import Matches

FORMAT = "dualsd predictions"
VERSION = 1
_PREDICTIONS = "predictions|"
_FLAGS = "flags|"
_THETAS = "thetas|"
_UNMATCHED = "unmatched|"

Arrays = Mapping[str, NDArray[Any]]


def predictions_bytes(matches: Matches) -> bytes:
    """What their file holds. Raises `MatchError` for a pair that is not known in the original frame."""
    pairs = matches.pairs
    original, sizes = pairs.in_original_frame()
    images, ends = np.unique(np.stack([pairs.source, pairs.target]), return_inverse=True)
    categories, category = np.unique(pairs.category, return_inverse=True)
    arrays: dict[str, NDArray[Any]] = {
        "counts": pairs.counts.astype(np.int32),
        "source": ends.reshape(2, -1)[0].astype(np.int32),
        "target": ends.reshape(2, -1)[1].astype(np.int32),
        "category": category.astype(np.int32),
        "source_size": sizes[:, :2],
        "target_size": sizes[:, 2:],
        "theta": np.stack([pairs.resized.theta, original.theta], axis=1),
        "source_points": pairs.resized.source_points,
        "target_points": pairs.resized.target_points,
        "original_source_points": original.source_points,
        "original_target_points": original.target_points,
    }
    names: list[str] | None = None
    if pairs.keypoints is not None:
        more = pairs.keypoints[1][:0] if pairs.unmatched is None else pairs.unmatched.keypoints
        used, places = np.unique(np.concatenate([pairs.keypoints[1], more]), return_inverse=True)
        names = [pairs.keypoints[0][place] for place in used]
        arrays["names"], places_of_more = np.split(places.astype(np.int32), [len(pairs.keypoints[1])])
        if pairs.unmatched is not None:
            arrays |= {
                f"{_UNMATCHED}counts": pairs.unmatched.counts.astype(np.int32),
                f"{_UNMATCHED}names": places_of_more,
                f"{_UNMATCHED}resized": pairs.unmatched.resized,
                f"{_UNMATCHED}original": pairs.unmatched.original,
            }
    arrays |= {_FLAGS + name: values.astype(np.int32) for name, values in (pairs.flags or {}).items()}
    # that of the image follows from sizes
    arrays |= {_THETAS + rule: own for rule, own in pairs.thetas.items() if rule != "image"}
    arrays |= {_PREDICTIONS + name: found for name, found in matches.predictions.items()}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "creator": creator_version(),
        "images": [pairs.images[place] for place in images],
        "categories": [pairs.categories[place] for place in categories],
        "names": names,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return seal_tensors(description, lambda metadata: save(contiguous, metadata=metadata))


def load_predictions(file: Path) -> Matches:
    """Read them, in the order in which they were written. Raises `EvaluationError` for what is no such file."""
    try:
        content, description = read_tensors(file)
        arrays = load(content)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{file} cannot be read as predictions ({error}): evaluate again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise EvaluationError(f"{file} holds no predictions: its metadata do not name the format {FORMAT!r}.")
    check_version(description, VERSION, str(file), EvaluationError)
    try:
        _check(arrays, description)
        matched = _parse(arrays, description)
        check_tensors_seal(content, description)
        return matched
    except (KeyError, TypeError, ValueError, IndexError, MatchError) as error:
        raise EvaluationError(f"{file} is damaged ({error}): evaluate again.") from error


def _check(arrays: Arrays, description: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError for arrays that do not belong together."""
    counts = arrays["counts"]
    pairs, points = len(counts), int(counts.sum())
    readouts = [name for name in arrays if name.startswith(_PREDICTIONS)]
    flags = [name for name in arrays if name.startswith(_FLAGS)]
    thetas = ["theta", *(name for name in arrays if name.startswith(_THETAS))]
    shapes = {
        **dict.fromkeys(("counts", "source", "target", "category", *flags), (pairs,)),
        **dict.fromkeys(("source_size", "target_size", *thetas), (pairs, 2)),
        **dict.fromkeys(("source_points", "target_points"), (points, 2)),
        **dict.fromkeys(("original_source_points", "original_target_points", *readouts), (points, 2)),
        **({} if description["names"] is None else {"names": (points,)}),
    }
    listed_names = {} if description["names"] is None else {"names": "names"}
    if f"{_UNMATCHED}counts" in arrays:
        more = int(arrays[f"{_UNMATCHED}counts"].clip(min=0).sum())
        shapes |= {f"{_UNMATCHED}counts": (pairs,), f"{_UNMATCHED}names": (more,)}
        shapes |= {f"{_UNMATCHED}{frame}": (more, 2) for frame in ("resized", "original")}
        listed_names |= {f"{_UNMATCHED}names": "names"} if more else {}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    if not pairs or not readouts or counts.min() < 1 or arrays.get(f"{_UNMATCHED}counts", counts).min() < 0:
        raise ValueError("it lacks pairs, points or readouts")
    if min(arrays[name].min() for name in thetas) <= 0:
        raise ValueError("a theta is not positive")
    of = {"source": "images", "target": "images", "category": "categories"}
    for name, listed in (of | listed_names).items():
        if arrays[name].min() < 0 or arrays[name].max() >= len(description[listed]):
            raise ValueError(f"{name} points outside the list of {listed}")


def _parse(arrays: Arrays, description: Mapping[str, Any]) -> Matches:
    theta = np.ascontiguousarray(arrays["theta"].T)
    found = {name.removeprefix(_PREDICTIONS): array for name, array in arrays.items() if name.startswith(_PREDICTIONS)}
    for name in found:
        readout(name)  # raises for one that is not known
    flags = {name.removeprefix(_FLAGS): array for name, array in arrays.items() if name.startswith(_FLAGS)}
    unmatched = None
    if f"{_UNMATCHED}counts" in arrays:
        counts, *more = (arrays[_UNMATCHED + name] for name in ("counts", "names", "resized", "original"))
        unmatched = Unmatched(counts.astype(np.int64), *more)
    pairs = Pairs(
        images=tuple(description["images"]),
        categories=tuple(description["categories"]),
        source=arrays["source"],
        target=arrays["target"],
        category=arrays["category"],
        counts=arrays["counts"].astype(np.int64),
        resized=PairsInFrame(arrays["source_points"], arrays["target_points"], theta[0]),
        original=PairsInFrame(arrays["original_source_points"], arrays["original_target_points"], theta[1]),
        sizes=np.hstack([arrays["source_size"], arrays["target_size"]]),
        keypoints=None if description["names"] is None else (tuple(description["names"]), arrays["names"]),
        flags=flags or None,
        thetas={name.removeprefix(_THETAS): own for name, own in arrays.items() if name.startswith(_THETAS)},
        unmatched=unmatched,
    )
    return Matches(pairs, found)
