"""A transformer's blocks by name, and what a layer's name asks of them: `block:9`, `single:10.adaln-154-1446` (see
`featstore.backbones.mmdit`)."""

import re
from dataclasses import dataclass
from functools import cached_property

from featstore.errors import ModelError

BLOCK, SINGLE = "block", "single"
PATCH = 2
"""Latent cells a side of a token, in all of them."""


@dataclass(frozen=True, slots=True)
class Tap:
    """What a layer's name asks for. block: e.g. `block:9`. adaln: of the tokens before it what its AdaLN makes, instead
    of those behind it. without: channels that are set to 0."""

    block: str
    adaln: bool
    without: tuple[int, ...]


def tap_of(layer: str) -> Tap | None:
    """None where it is no such layer."""
    found = re.fullmatch(rf"((?:{BLOCK}|{SINGLE}):[1-9]\d*)(\.adaln)?((?:-\d+)*)", layer)
    if found is None:
        return None
    return Tap(found[1], found[2] is not None, tuple(map(int, found[3].split("-")[1:])))


@dataclass(frozen=True)
class Blocks:
    """Of one transformer. of_model: its id, for sentences. double, single: how many there are of those that keep text
    and image apart, and of those that take both as one. channels: of every layer's map."""

    of_model: str
    double: int
    single: int
    channels: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """In the order in which they run."""
        counts = ((BLOCK, self.double), (SINGLE, self.single))
        return tuple(f"{name}:{number}" for name, count in counts for number in range(1, count + 1))

    def tap(self, layer: int | str) -> Tap:
        """What a layer's name asks for. Raises `ModelError` for one that this transformer does not have."""
        tap = tap_of(str(layer))
        if tap is None or tap.block not in self.names:
            counts = ((BLOCK, self.double), (SINGLE, self.single))
            told = " and ".join(f"{name}:1 to {name}:{count}" for name, count in counts if count)
            raise ModelError(f"There is no layer {layer} in {self.of_model}: it has {told}, and block:1.adaln each.")
        if high := [own for own in tap.without if own >= self.channels]:
            raise ModelError(f"Layer {layer} leaves out channel {high[0]}, and there are {self.channels}, from 0.")
        return tap
