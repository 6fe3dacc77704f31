"""Checks a MATLAB file (version 5 to 7) before scipy reads it.

scipy.io.loadmat trusts the type codes inside a variable: one wrong byte in an array's flags or in its data's tag, and
it ends the process with a segmentation fault instead of raising. This walks the tags of the one variable wanted.
Format: "MAT-File Format", MathWorks, chapter 1.
"""

import math
import struct
import zlib
from collections.abc import Iterator

_COMPRESSED, _MATRIX = 15, 14

_ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
"""Bytes a number by type code, of the numeric ones."""

_NUMERIC_CLASSES = range(6, 16)
"""Codes of arrays of double, single and integers; below are cell, object, struct, text and sparse."""

_COMPLEX = 0x0800

_LARGEST = 1 << 24
"""Bytes that a variable may unpack to; keypoints take a few hundred."""


def check_numeric_variable(data: bytes, name: str) -> None:
    """Returns where `data` is a MATLAB file whose variable `name`, if there, is a well-formed real numeric array.

    Raises `ValueError` or `struct.error` or `zlib.error` where it is not.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    # A zero among the first four bytes is how readers tell version 4, which has another layout.
    if order is None or 0 in data[:4]:
        raise ValueError("not of MATLAB's versions 5 to 7")
    for code, content in _elements(data[128:], order):
        if code == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(content, _LARGEST)
            code, content = next(_elements(unpacked, order), (0, b""))
        if code != _MATRIX:
            raise ValueError(f"type code {code} where a variable is expected")
        _check_variable(content, order, name)


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
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


def _check_variable(content: bytes, order: str, name: str) -> None:
    flags_element, shape_element, name_element, *parts = list(_elements(content, order))
    if name_element[1] != name.encode():
        return
    (flags,) = struct.unpack_from(f"{order}I", flags_element[1])
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
        raise ValueError(f"{name} is no array of real numbers")
    shape = struct.unpack(f"{order}{len(shape_element[1]) // 4}i", shape_element[1])
    if [flags_element[0], shape_element[0], name_element[0]] != [6, 5, 1] or len(parts) != 1 or min(shape) < 0:
        raise ValueError(f"the header of {name} is damaged")
    code, values = parts[0]
    if _ITEM_BYTES.get(code, 0) * math.prod(shape) != len(values):
        raise ValueError(f"{name} has {len(values)} bytes of values of type code {code} for the shape {shape}")
