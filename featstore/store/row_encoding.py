"""What the values of a row are as they lie on the disk: floating-point numbers as they are, or 8-bit integers that have
one scale a channel.

A missing row, which zarr reads as the fill value, is never taken for one that is there: of floats the fill value
is NaN, which no row holds, and of integers the byte 0xFF, of which four are a scale that is NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

_EXPONENT = np.uint16(0x7C00)
"""The bits of a float16 that are all set where it is infinite or NaN."""

_BLOCK_VALUES = 2**18
"""Values that are looked at at once; they stay in the cache."""

_SCALE = np.dtype("<f4")
_LARGEST = np.float32(127)
"""Of a quantised value: -128 is left out, so that zero is in the middle."""


class Floats:
    """Values as they are. A row is finite.

    dtype: of an array of such rows. read_dtype: of the values that `decode` gives. fill_value: what a missing row of
    such an array reads as. Both encodings have these and the same methods.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = self.read_dtype = dtype
        self.fill_value = float("nan")

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape on the disk of a row of values of `shape`. Raises ValueError for a shape that it cannot hold."""
        return tuple(shape)

    def shape(self, stored_shape: Sequence[int]) -> tuple[int, ...]:
        """The other way round. Raises ValueError for a shape that no row has."""
        return tuple(stored_shape)

    def encode(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as they are stored, rounded to the dtype; what cannot be held (not finite, too large) gives what
        `is_row` denies."""
        with np.errstate(over="ignore"):  # `is_row` is what finds it
            return np.asarray(values).astype(self.dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A stored row's values."""
        return stored

    def is_row(self, stored: NDArray[Any]) -> bool:
        """Whether this is a row that was written, whose values are finite, and no missing one; numpy has no fast way to
        ask that of float16."""
        if stored.dtype != np.float16:
            return bool(np.isfinite(stored).all())
        bits = stored.reshape(-1).view(np.uint16)
        exponents = np.empty(min(len(bits), _BLOCK_VALUES), dtype=np.uint16)
        for start in range(0, len(bits), _BLOCK_VALUES):
            block = bits[start : start + _BLOCK_VALUES]
            if np.bitwise_and(block, _EXPONENT, out=exponents[: len(block)]).max() == _EXPONENT:
                return False
        return True


class ScaledIntegers:
    """Square maps (C, h, h) as int8 rows (C, h * h + 4): of each channel its values, in C order, and then the four
    bytes of its scale, a little-endian float32.

    The scale is a channel's largest absolute value over 127, and a value is its integer times the scale: off by half a
    scale at most. A channel of zeros has the scale 0.
    """

    dtype = np.dtype(np.int8)
    read_dtype = np.dtype(np.float32)
    fill_value = -1

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, h * h + 4) of (C, h, h)."""
        if len(shape) != 3 or shape[1] != shape[2]:
            raise ValueError(f"{tuple(shape)} is no shape of square maps (C, h, h)")
        return shape[0], shape[1] * shape[2] + _SCALE.itemsize

    def shape(self, stored_shape: Sequence[int]) -> tuple[int, ...]:
        """(C, h, h) of (C, h * h + 4)."""
        cells = stored_shape[-1] - _SCALE.itemsize
        side = math.isqrt(max(cells, 0))
        if len(stored_shape) != 2 or side == 0 or side * side != cells:
            raise ValueError(f"{tuple(stored_shape)} is no shape of int8 maps (C, h * h + 4)")
        return stored_shape[0], side, side

    def encode(self, values: NDArray[Any]) -> NDArray[np.int8]:
        """Quantised from values of any precision, (C, h, h)."""
        with np.errstate(over="ignore"):  # infinite scales are what `is_row` finds
            channels = np.asarray(values).astype(np.float32, copy=False).reshape(len(values), -1)
        scales = np.abs(channels).max(axis=1, keepdims=True) / _LARGEST
        stored = np.full(self.stored_shape(values.shape), self.fill_value, dtype=np.int8)
        if np.isfinite(scales).all():
            steps = np.divide(channels, scales, out=np.zeros_like(channels), where=scales > 0)
            # scales so small that they have few bits of their own may leave a step above 127
            stored[:, : -_SCALE.itemsize] = np.clip(np.rint(steps, out=steps), -_LARGEST, _LARGEST, out=steps)
            stored[:, -_SCALE.itemsize :] = scales.astype(_SCALE).view(np.int8)
        return stored

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """(C, h, h) in float32."""
        steps = stored[:, : -_SCALE.itemsize]
        values: NDArray[np.float32] = np.multiply(steps, self._scales(stored), dtype=np.float32)
        return values.reshape(self.shape(stored.shape))

    def is_row(self, stored: NDArray[Any]) -> bool:
        """Whether every scale is a finite number that is not negative."""
        scales = self._scales(stored)
        return bool((np.isfinite(scales) & (scales >= 0)).all())

    @staticmethod
    def _scales(stored: NDArray[Any]) -> NDArray[np.float32]:
        """(C, 1)."""
        return np.ascontiguousarray(stored[:, -_SCALE.itemsize :]).view(_SCALE)


RowEncoding = Floats | ScaledIntegers
"""How rows lie on the disk."""


def encoding_for(dtype: str) -> RowEncoding:
    """How rows of an array of that dtype lie on the disk."""
    return ScaledIntegers() if np.dtype(dtype) == np.int8 else Floats(np.dtype(dtype))


def encoding_of(array: zarr.Array[Any], leading: int) -> RowEncoding:
    """How the rows of an array lie on the disk, of whose dimensions `leading` count rows. Raises ValueError, saying
    why, where its missing rows could be taken for rows that are there, or it holds no rows of dualsd."""
    if array.dtype.kind != "f" and array.dtype != np.int8:
        raise ValueError(f"rows of {array.dtype} are none of dualsd's")
    found = encoding_for(array.dtype.name)
    found.shape(array.shape[leading:])
    same = np.isnan(array.fill_value) if array.dtype.kind == "f" else array.fill_value == found.fill_value
    if not same:
        raise ValueError(f"missing rows of {array.dtype} would read as {array.fill_value}")
    return found


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a row of values of `shape` on the disk, with its checksum of 4 bytes."""
    encoding = encoding_for(dtype)
    return math.prod(encoding.stored_shape(shape)) * encoding.dtype.itemsize + 4
