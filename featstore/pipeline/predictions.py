"""What an evaluation predicted, in one safetensors file: enough to score it again, in either frame.

P pairs, N points of all pairs in turn, P_i of pair i. Points are (x, y), the frames those of docs/numbers.md.

    counts                          (P,)    int32     points of each pair
    source, target                  (P,)    int32     its images, as places in the metadata's `images`
    category                        (P,)    int32     as a place in the metadata's `categories`
    source_size, target_size        (P, 2)  int32     width and height of the original images, in pixels
    theta                           (P, 2)  float64   base threshold, in pixels of the resized and of the original frame
    source_points, target_points    (N, 2)  float32   annotated, in the resized frame
    original_source_points, original_target_points    the same in the original frame (where a point was clamped into its
                                                      image, the two frames clamp it to other places)
    names                           (N,)    int32     the keypoint, as a place in the metadata's `names`; optional
    flags|<flag>                    (P,)    int32     the dataset's own mark of how hard the pair is; optional
    predictions|<readout>           (N, 2)  float32   in the readout's own frame: `pixel` original, all others resized

The metadata's `dualsd` is JSON: format, version, creator, images, categories, names.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from featstore.errors import EvaluationError
from featstore.sealed import check_tensors_seal, read_tensors, seal_tensors
from featstore.store.schema import creator_version
from matcher.errors import MatchError
from matcher.pairs import MatchingPair, OriginalFrame
from matcher.pck import MatchedPair
from matcher.readout import Readout

FORMAT = "dualsd predictions"
VERSION = 1
_PREDICTIONS = "predictions|"
_FLAGS = "flags|"

Arrays = Mapping[str, NDArray[Any]]


def predictions_bytes(matched: Sequence[MatchedPair]) -> bytes:
    """What their file holds. Raises `MatchError` for a pair that is not known in the original frame."""
    pairs = [match.pair for match in matched]
    frames = [pair.in_original_frame() for pair in pairs]
    images = sorted({image for pair in pairs for image in (pair.source, pair.target)})
    categories = sorted({pair.category for pair in pairs})
    named = [pair.names for pair in pairs if pair.names is not None]
    names = sorted({name for own in named for name in own}) if len(named) == len(pairs) else None
    arrays: dict[str, NDArray[Any]] = {
        "counts": _integers([len(pair.target_points) for pair in pairs]),
        "source": _places([pair.source for pair in pairs], images),
        "target": _places([pair.target for pair in pairs], images),
        "category": _places([pair.category for pair in pairs], categories),
        "source_size": _integers([frame.source_size for frame in frames]),
        "target_size": _integers([frame.target_size for frame in frames]),
        "theta": np.array([(pair.theta, frame.theta) for pair, frame in zip(pairs, frames, strict=True)]),
        "source_points": np.concatenate([pair.source_points for pair in pairs]),
        "target_points": np.concatenate([pair.target_points for pair in pairs]),
        "original_source_points": np.concatenate([frame.source_points for frame in frames]),
        "original_target_points": np.concatenate([frame.target_points for frame in frames]),
    }
    if names is not None:
        arrays["names"] = _places([name for own in named for name in own], names)
    flagged = [pair.flags for pair in pairs if pair.flags is not None]
    if len(flagged) == len(pairs):
        arrays |= {_FLAGS + name: _integers([flags[name] for flags in flagged]) for name in flagged[0]}
    for readout in matched[0].predictions:
        arrays[_PREDICTIONS + readout.value] = np.concatenate([match.predictions[readout] for match in matched])
    description = {
        "format": FORMAT,
        "version": VERSION,
        "creator": creator_version(),
        "images": images,
        "categories": categories,
        "names": names,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return seal_tensors(description, lambda metadata: save(contiguous, metadata=metadata))


def load_predictions(file: Path) -> tuple[MatchedPair, ...]:
    """Read them, in the order in which they were written. Raises `EvaluationError` for what is no such file."""
    try:
        content, description = read_tensors(file)
        arrays = load(content)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EvaluationError(f"{file} cannot be read as predictions ({error}): evaluate again.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise EvaluationError(f"{file} holds no predictions: its metadata do not name the format {FORMAT!r}.")
    check_version(description, VERSION, str(file))
    try:
        _check(arrays, description)
        matched = _parse(arrays, description)
        check_tensors_seal(content, description)
        return matched
    except (KeyError, TypeError, ValueError, IndexError, MatchError) as error:
        raise EvaluationError(f"{file} is damaged ({error}): evaluate again.") from error


def check_version(description: Mapping[str, Any], known: int, where: str) -> None:
    """Raise `EvaluationError` for what a newer dualsd wrote, naming that."""
    if not isinstance(description.get("version"), int) or description["version"] > known:
        raise EvaluationError(
            f"{where} has version {description.get('version')}, written by dualsd {description.get('creator')}; this "
            f"dualsd {creator_version()} reads up to version {known}: upgrade it."
        )


def _check(arrays: Arrays, description: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError for arrays that do not belong together."""
    counts = arrays["counts"]
    pairs, points = len(counts), int(counts.sum())
    readouts = [name for name in arrays if name.startswith(_PREDICTIONS)]
    flags = [name for name in arrays if name.startswith(_FLAGS)]
    shapes = {
        **dict.fromkeys(("counts", "source", "target", "category", *flags), (pairs,)),
        **dict.fromkeys(("source_size", "target_size", "theta"), (pairs, 2)),
        **dict.fromkeys(("source_points", "target_points"), (points, 2)),
        **dict.fromkeys(("original_source_points", "original_target_points", *readouts), (points, 2)),
        **({} if description["names"] is None else {"names": (points,)}),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    if not pairs or not readouts or counts.min() < 1:
        raise ValueError("it lacks pairs, points or readouts")
    if arrays["theta"].min() <= 0:
        raise ValueError("a theta is not positive")
    of = {"source": "images", "target": "images", "category": "categories"}
    for name, listed in (of | ({} if description["names"] is None else {"names": "names"})).items():
        if arrays[name].min() < 0 or arrays[name].max() >= len(description[listed]):
            raise ValueError(f"{name} points outside the list of {listed}")


def _parse(arrays: Arrays, description: Mapping[str, Any]) -> tuple[MatchedPair, ...]:
    images, categories, known = description["images"], description["categories"], description["names"]
    ends = np.cumsum(arrays["counts"])
    readouts = {
        Readout(name.removeprefix(_PREDICTIONS)): array
        for name, array in arrays.items()
        if name.startswith(_PREDICTIONS)
    }
    flags = {name.removeprefix(_FLAGS): array for name, array in arrays.items() if name.startswith(_FLAGS)}
    found = []
    for row, (start, end) in enumerate(zip(ends - arrays["counts"], ends, strict=True)):
        own = slice(int(start), int(end))
        original = OriginalFrame(
            source_size=_size(arrays["source_size"][row]),
            target_size=_size(arrays["target_size"][row]),
            source_points=arrays["original_source_points"][own],
            target_points=arrays["original_target_points"][own],
            theta=float(arrays["theta"][row, 1]),
        )
        pair = MatchingPair(
            source=images[arrays["source"][row]],
            target=images[arrays["target"][row]],
            category=categories[arrays["category"][row]],
            source_points=arrays["source_points"][own],
            target_points=arrays["target_points"][own],
            theta=float(arrays["theta"][row, 0]),
            original=original,
            names=None if known is None else tuple(known[place] for place in arrays["names"][own]),
            flags={name: int(array[row]) for name, array in flags.items()} or None,
        )
        found.append(MatchedPair(pair, {readout: array[own] for readout, array in readouts.items()}))
    return tuple(found)


def _size(numbers: NDArray[Any]) -> tuple[int, int]:
    return int(numbers[0]), int(numbers[1])


def _integers(values: Sequence[Any]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _places(values: Sequence[str], known: Sequence[str]) -> NDArray[np.int32]:
    place = {value: row for row, value in enumerate(known)}
    return _integers([place[value] for value in values])
