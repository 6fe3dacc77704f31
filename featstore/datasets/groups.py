"""Keypoints that may be taken for each other: mirrored ones, left and right, and groups of parts that are alike.

`groups.json` has GeoAware-SC's for SPair-71k, by keypoint ids, and for AP-10K, by names, `*` for every category:
`alike`, by which it defines geometry-aware points, and `mirrored`, those of its training (the ones of its evaluation
number bus and bicycle otherwise). Of other data sets, keypoints whose names differ in a word for the side are mirrored.
"""

import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_SIDES = {"left": "right", "near": "far", "l": "r"}
_OTHER_SIDE = _SIDES | {other: one for one, other in _SIDES.items()}


def mirrored(dataset: str, category: str, names: Collection[str]) -> dict[str, str]:
    """The keypoint on the other side, by name, of those that have one.

    Args:
        dataset: The name that `--dataset` takes.
        category: Whose keypoints are meant.
        names: All of them.
    """
    listed = _listed(dataset, category)
    if listed is not None:
        pairs = [(one, other) for one, other in listed["mirrored"]]
        return dict(pairs) | {other: one for one, other in pairs}
    return {name: other for name in names if (other := _turned(name)) != name and other in names}


def alike(dataset: str, category: str, names: Collection[str]) -> tuple[frozenset[str], ...]:
    """Groups of two keypoints or more that look alike; of a data set that does not list them, each with its mirrored
    one. Arguments as of `mirrored`."""
    listed = _listed(dataset, category)
    if listed is not None:
        return tuple(map(frozenset, listed["alike"]))
    return tuple({frozenset(pair) for pair in mirrored(dataset, category, names).items()})


def _turned(name: str) -> str:
    """The name with words for sides exchanged: `left_eye` to `right_eye`."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        turned = _OTHER_SIDE.get(word.lower(), word)
        return turned.capitalize() if word[0].isupper() else turned

    return re.sub(r"[A-Za-z][a-z]*", other, name)


def _listed(dataset: str, category: str) -> Mapping[str, Any] | None:
    own: Mapping[str, Any] = _file().get(dataset, {})
    found: Mapping[str, Any] | None = own.get(category, own.get("*"))
    return found


@cache
def _file() -> Mapping[str, Any]:
    read: Mapping[str, Any] = json.loads(Path(__file__).with_name("groups.json").read_bytes())
    return read
