"""MATLAB files written by hand from the format's description, in either byte order."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

LITTLE, BIG = "<", ">"


def header(order: str) -> bytes:
    """The 128 bytes that a file begins with."""
    return b"MATLAB 5.0 MAT-file".ljust(124) + (b"\x00\x01IM" if order == LITTLE else b"\x01\x00MI")


def element(order: str, code: int, content: bytes) -> bytes:
    """A tagged element, padded to 8 bytes."""
    return struct.pack(f"{order}II", code, len(content)) + content + bytes(-len(content) % 8)


def variable(
    order: str, values: NDArray[np.float64], name: bytes = b"kps", stored: str = "f8", code: int = 9, flags: int = 6
) -> bytes:
    """A variable. stored, code: numpy's and the format's type of the stored values. flags: 6, an array of doubles."""
    shape = struct.pack(f"{order}{values.ndim}i", *values.shape)
    parts = [(6, struct.pack(f"{order}II", flags, 0)), (5, shape), (1, name)]
    parts.append((code, values.astype(f"{order}{stored}").tobytes(order="F")))
    return element(order, 14, b"".join(element(order, *part) for part in parts))


def compressed(order: str, variables: bytes) -> bytes:
    """A variable as MATLAB stores it unless told otherwise: packed, and not padded."""
    packed = zlib.compress(variables)
    return struct.pack(f"{order}II", 15, len(packed)) + packed
