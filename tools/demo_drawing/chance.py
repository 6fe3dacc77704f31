"""Randomness of the drawings: one Philox stream a purpose, keyed by a hash of what it is for."""

import colorsys
import hashlib
import math

import numpy as np

VERSION = 1
"""Raised whenever a drawing changes, so that old and new pictures cannot be confused."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""


class Chance:
    """Random numbers for one purpose: independent of every other purpose, of order and of process.

    Built on uniform numbers alone, whose stream numpy has kept since it introduced Philox.
    """

    def __init__(self, *purpose: str | int) -> None:
        text = ":".join(["dualsd demo", str(VERSION), *map(str, purpose)])
        digest = hashlib.sha256(text.encode()).digest()
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def degrees(self, low: float, high: float) -> float:
        """An angle uniform in [low, high) degrees, in radians."""
        return math.radians(self.between(low, high))

    def below(self, count: int) -> int:
        """An integer of 0..count-1."""
        return min(int(self.between(0, count)), count - 1)

    def happens(self, probability: float) -> bool:
        return self.between(0, 1) < probability

    def array(self, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Uniform in [0, 1)."""
        return self._generator.random(shape)

    def colour(self, hue: float, saturation: float, value: float, *, spread: float = 1.0) -> Colour:
        """A colour around (hue, saturation, value), each in [0, 1]; `spread` 1 is the jitter of most parts."""
        return rgb(
            hue + spread * self.between(-0.035, 0.035),
            saturation + spread * self.between(-0.12, 0.12),
            value + spread * self.between(-0.12, 0.12),
        )


def rgb(hue: float, saturation: float, value: float) -> Colour:
    """Hue wraps around; saturation and value are clipped to [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def shaded(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue
