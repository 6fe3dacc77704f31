"""Reads one variable of a MATLAB file of versions 5 to 7 ("MAT-File Format", MathWorks, chapter 1).

Not scipy.io.loadmat: it trusts the type codes inside a variable, and one wrong byte in an array's flags or in its
data's tag ends the process with a segmentation fault instead of raising. Whoever checks the tags before has read the
file.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.datasets.reading import read_bytes
from featstore.datasets.records import LARGEST_COORDINATE, Points
from featstore.errors import DatasetError

_COMPRESSED, _MATRIX = 15, 14
_FLAGS, _SHAPE, _NAME = 6, 5, 1
"""Type codes of the three elements that head an array: uint32, int32 and int8."""

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""numpy's types by type code. MATLAB stores a double array in the smallest type that holds its values."""

_NUMERIC_CLASSES = range(6, 16)
"""Codes of arrays of double, single and integers; below are cell, object, struct, text and sparse."""

_COMPLEX = 0x0800

_HEAD = 1024
"""Bytes of a variable that hold its name: a tag, the flags, the shape and the name, of at most 63 letters."""

_LARGEST = 1 << 24
"""Bytes that the wanted variable may unpack to; keypoints take a few hundred."""


def read_numeric_variable(data: bytes, name: str) -> NDArray[np.float64] | None:
    """The array of real numbers called `name`, in MATLAB's shape; None where the file has no such variable.

    Other variables are stepped over, whatever they are. Raises `ValueError` saying what is wrong with the file.
    """
    try:
        return _find(data, name.encode())
    except (struct.error, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _find(data: bytes, name: bytes) -> NDArray[np.float64] | None:
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128])
    # A zero among the first four bytes is how readers tell version 4, which has another layout.
    if order is None or 0 in data[:4]:
        raise ValueError("not of MATLAB's versions 5 to 7")
    for code, content in _elements(memoryview(data)[128:], order):
        if code == _COMPRESSED:
            # Of a variable that is not wanted only the name is unpacked: it may be a bomb.
            head = memoryview(zlib.decompressobj().decompress(content, _HEAD))
            code, _ = struct.unpack_from(f"{order}II", head)
            if code == _MATRIX and _name(head[8:], order) != name:
                continue
            code, content = next(_elements(_unpacked(content), order))
        if code != _MATRIX:
            raise ValueError(f"type code {code} where a variable is expected")
        if _name(content, order) == name:
            return _array(content, order)
    return None


def _unpacked(content: memoryview) -> memoryview:
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, _LARGEST)
    if not unpacker.eof:  # only at its end is the checksum compared
        raise ValueError(f"a compressed variable is cut off or unpacks to more than {_LARGEST >> 20} MiB")
    return memoryview(unpacked)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The tagged elements that `data` is made of: type code and content."""
    at = 0
    while at < len(data):
        code, size = struct.unpack_from(f"{order}II", data, at)
        if code >> 16:  # four bytes or fewer share the tag's eight
            code, size = code & 0xFFFF, code >> 16
            start, following = at + 4, at + 8
            if size > 4:
                raise ValueError(f"a short element of {size} bytes")
        else:
            start = at + 8
            following = start + size
            if code != _COMPRESSED:
                following += -size % 8
        if start + size > len(data):
            raise ValueError("it is truncated")
        yield code, data[start : start + size]
        at = following


def _name(content: memoryview, order: str) -> bytes:
    """The name of the variable whose elements `content` begins with."""
    head = list(islice(_elements(content, order), 3))
    return bytes(head[2][1]) if len(head) == 3 else b""


def _array(content: memoryview, order: str) -> NDArray[np.float64]:
    elements = list(islice(_elements(content, order), 5))
    if [code for code, _ in elements[:3]] != [_FLAGS, _SHAPE, _NAME]:
        raise ValueError("the variable's header is damaged")
    (_, flags), (_, sides), _, *parts = elements
    (bits,) = struct.unpack_from(f"{order}I", flags)
    if bits & 0xFF not in _NUMERIC_CLASSES or bits & _COMPLEX:
        raise ValueError("the variable is no array of real numbers")
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    if not shape or min(shape) < 0 or len(parts) != 1:
        raise ValueError("the variable's header is damaged")
    code, values = parts[0]
    kind = np.dtype(f"{order}{_NUMBERS[code]}") if code in _NUMBERS else None
    if kind is None or kind.itemsize * math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} bytes of type code {code} do not fill the shape {shape}")
    return np.frombuffer(values, kind).astype(np.float64).reshape(shape, order="F")


def read_keypoints(path: Path) -> Points:
    """The variable `kps` of a MATLAB file.

    Returns:
        (n, 2), pixels, NaN where a keypoint is absent.

    Raises:
        DatasetError: for a file that is no MATLAB file, has no such variable, or one of another type or shape, and for
            a coordinate that is none.
    """
    try:
        points = read_numeric_variable(read_bytes(path), "kps")
    except ValueError as error:
        raise DatasetError(
            f"{path} is no MATLAB file with a readable variable kps ({error}); restore it from the dataset."
        ) from error
    if points is None:
        wrong = "it has no variable kps"
    elif points.ndim != 2 or points.shape[1] != 2:
        wrong = f"kps has shape {points.shape[:8]} where (n, 2) is needed"
    elif (np.abs(points) > LARGEST_COORDINATE).any():
        wrong = f"kps holds {np.nanmax(np.abs(points)):g}, which is no coordinate in pixels"
    else:
        return points
    raise DatasetError(f"{path}: {wrong}; restore it from the dataset.")
