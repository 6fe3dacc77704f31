"""MATLAB files against the format's description; `test_pf_pascal.py` holds the reader against scipy's."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from featstore.datasets.pf_pascal import read_numeric_variable
from tests.featstore.datasets.mat_bytes import BIG, LITTLE, compressed, element, header, variable

VALUES = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 250.0]])
ORDERS = pytest.mark.parametrize("order", [LITTLE, BIG])


@ORDERS
@pytest.mark.parametrize(
    ("stored", "code"), [("f8", 9), ("f4", 7), ("u1", 2), ("u2", 4), ("i2", 3), ("i4", 5), ("u4", 6), ("i8", 12)]
)
def test_both_byte_orders_and_all_types_of_storage(order: str, stored: str, code: int) -> None:
    """MATLAB stores whole doubles as bytes."""
    written = variable(order, VALUES, stored=stored, code=code)
    for content in (written, compressed(order, written)):
        found = read_numeric_variable(header(order) + content, "kps")
        assert found is not None
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, VALUES)


@ORDERS
def test_other_variables_are_stepped_over_whatever_they_are(order: str) -> None:
    text = element(order, 14, element(order, 6, struct.pack(f"{order}II", 4, 0)) + bytes(40))
    others = element(order, 14, b"") + text + variable(order, VALUES, b"bbox", code=200)
    found = read_numeric_variable(header(order) + others + compressed(order, text) + variable(order, VALUES), "kps")
    np.testing.assert_array_equal(found, VALUES)  # type: ignore[arg-type]
    assert read_numeric_variable(header(order) + others, "kps") is None


def test_the_first_of_a_name_counts() -> None:
    content = header(LITTLE) + variable(LITTLE, VALUES) + variable(LITTLE, VALUES + 1)
    np.testing.assert_array_equal(read_numeric_variable(content, "kps"), VALUES)  # type: ignore[arg-type]


def test_a_shape_of_three_sides_is_in_columns() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    found = read_numeric_variable(header(LITTLE) + variable(LITTLE, values), "kps")
    np.testing.assert_array_equal(found, values)  # type: ignore[arg-type]


PLAIN = variable(LITTLE, VALUES)
PACKED = compressed(LITTLE, PLAIN)


def at(offset: int, value: int, count: int = 4) -> bytes:
    """`PLAIN` with a number changed: 8 flags' code, 16 flags, 24 shape's code, 32 shape, 56 data's code, 60 size."""
    return PLAIN[:offset] + value.to_bytes(count, "little") + PLAIN[offset + count :]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (PLAIN[:-1], "it is truncated"),
        (PLAIN[:6], "it is damaged"),
        (at(0, 7), "type code 7 where a variable is expected"),
        (at(8, 5), "the variable's header is damaged"),
        (at(16, 4), "no array of real numbers"),
        (at(16, 5), "no array of real numbers"),
        (at(16, 0x806), "no array of real numbers"),
        (at(28, 6), "it is damaged"),
        (at(32, 0xFFFFFFFF), "the variable's header is damaged"),
        (at(32, 0x7FFFFFFF), "48 bytes of type code 9 do not fill the shape"),
        (at(32, 4), "48 bytes of type code 9 do not fill the shape"),
        (at(56, 7), "48 bytes of type code 7 do not fill the shape"),
        (at(56, 14), "48 bytes of type code 14 do not fill the shape"),
        (at(60, 0xFFFFFFFF), "it is truncated"),
        (PACKED[:-1], "it is truncated"),
        (PACKED[:4] + (len(PACKED) - 12).to_bytes(4, "little") + PACKED[8:-4], "is cut off"),
        (PACKED[:-1] + b"\0", "it is damaged"),
        (compressed(LITTLE, b""), "it is damaged"),
        (struct.pack("<II", 15, 4) + b"junk", "it is damaged"),
    ],
)
def test_damage(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_numeric_variable(header(LITTLE) + content, "kps")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(4) + header(LITTLE)[4:] + PLAIN,
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF",
    ],
)
def test_other_versions(content: bytes) -> None:
    """Nothing, version 4, and 7.3, which is HDF5 behind a header of the same kind."""
    with pytest.raises(ValueError, match="not of MATLAB's versions 5 to 7"):
        read_numeric_variable(content, "kps")


def test_bombs_are_not_unpacked() -> None:
    """A variable of another name is unpacked as far as its name; the wanted one up to 16 MiB."""
    zeros = zlib.compress(variable(LITTLE, np.zeros((1 << 22, 2)), b"other"))  # 64 MiB
    bomb = struct.pack("<II", 15, len(zeros)) + zeros
    tracemalloc.start()
    try:
        found = read_numeric_variable(header(LITTLE) + bomb * 20 + PLAIN, "kps")
        peak = tracemalloc.get_traced_memory()[1]
        with pytest.raises(ValueError, match="unpacks to more than 16 MiB"):
            read_numeric_variable(header(LITTLE) + bomb, "other")
        larger = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, VALUES)  # type: ignore[arg-type]
    assert peak < 8 << 20
    assert larger < 64 << 20


def test_a_million_elements_in_a_variable_are_not_listed() -> None:
    flags, shape, name = (6, struct.pack("<II", 6, 0)), (5, struct.pack("<2i", 0, 2)), (1, b"kps")
    content = b"".join(element(LITTLE, *part) for part in (flags, shape, name)) + bytes(8 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="header is damaged"):
            read_numeric_variable(header(LITTLE) + element(LITTLE, 14, content), "kps")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
