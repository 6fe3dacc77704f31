"""The readouts by name. A new one is a file with a `READOUTS` of its own, and its line here; torch is loaded only once
one is used."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from matcher.errors import MatchError

if TYPE_CHECKING:
    from matcher.pairs import Frame
    from matcher.readout import Readout

MODULES: Mapping[str, str] = {
    "nn": "matcher.readout",
    "bilinear": "matcher.readout",
    "softmax": "matcher.readout",
    "kernelsoftmax": "matcher.readout",
    "window": "matcher.readout",
    "pixel": "matcher.readout",
}
"""Where each lies, in the order in which help texts name them."""


def readout(name: str) -> "Readout":
    """The readout of a name. Raises `MatchError` where there is none."""
    if name not in MODULES:
        raise MatchError(f"There is no readout {name!r}: choose from {', '.join(MODULES)}.")
    found: Readout = import_module(MODULES[name]).READOUTS[name]
    return found


def frame_of(name: str) -> "Frame":
    """The frame in which a readout's predictions are, and are scored. Raises `MatchError` where there is none."""
    return readout(name).frame
