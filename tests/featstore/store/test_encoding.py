"""How rows lie in their objects, against numcodecs and plain zarr; a row of raw values against the format's words."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import BitRound, Blosc
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.store.rows import ENCODINGS, Encoding, RowArray, is_finite, open_rows, require_rows
from tests.featstore.store.small_store import empty_group

ROW = (6, 5, 4)
ROUNDED = [ENCODINGS["bitround4"], ENCODINGS["bitround3"]]
every = pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=list(ENCODINGS))
rounded = pytest.mark.parametrize("encoding", ROUNDED, ids=["bitround4", "bitround3"])


def made(tmp_path: Path, encoding: Encoding) -> RowArray:
    return require_rows(empty_group(tmp_path / "s.zarr"), "maps/x", (4,), ROW, encoding)


def values(scale: float = 3.0) -> NDArray[np.float32]:
    """Of a few magnitudes, with zeros and a subnormal number among them."""
    found = np.random.default_rng(5).normal(size=ROW).astype(np.float32) * np.float32(scale) ** np.arange(4)
    found[0, 0] = [0.0, -0.0, 6e-8, -1e-5]
    return found


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 has it."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = (found >> 1) ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


@every
def test_plain_zarr_reads_what_is_written_and_the_other_way_round(tmp_path: Path, encoding: Encoding) -> None:
    array = made(tmp_path, encoding)
    half = values().astype(np.float16)
    expected = half if encoding.keepbits is None else BitRound(encoding.keepbits).encode(half).view(np.float16)
    array.write((1,), values())
    plain = zarr.open_array(tmp_path / "s.zarr" / "maps" / "x", mode="r+")
    np.testing.assert_array_equal(np.asarray(plain[1]), expected)
    np.testing.assert_array_equal(array.read((1,)), expected)
    assert plain.attrs.get("keepbits") == encoding.keepbits
    assert np.isnan(np.asarray(plain[0])).all()
    plain[2] = expected
    np.testing.assert_array_equal(array.read((2,)), expected)
    assert array.present().tolist() == [False, True, True, False]
    codecs = json.loads((tmp_path / "s.zarr" / "maps" / "x" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", *(["blosc"] if encoding.keepbits else []), "crc32c"]


@every
def test_an_object_alone(tmp_path: Path, encoding: Encoding) -> None:
    """By the words of docs/store.md: values, compressed where they are rounded, and a CRC-32C behind."""
    array = made(tmp_path, encoding)
    array.write((3,), values())
    data = (tmp_path / "s.zarr" / "maps" / "x" / "c.3.0.0.0").read_bytes()
    assert int.from_bytes(data[-4:], "little") == crc32c(data[:-4])
    body = data[:-4] if encoding.keepbits is None else Blosc().decode(data[:-4])
    np.testing.assert_array_equal(np.frombuffer(body, "<f2").reshape(ROW), array.read((3,)))


@rounded
def test_how_far_values_move_and_which_bits_are_kept(tmp_path: Path, encoding: Encoding) -> None:
    assert encoding.keepbits is not None
    array = made(tmp_path, encoding)
    exact = values().astype(np.float16)
    array.write((0,), exact)
    found = array.read((0,))
    assert not (found.view(np.uint16) & ((1 << (10 - encoding.keepbits)) - 1)).any()
    normal = np.abs(exact) > 1e-4
    apart = np.abs(found[normal].astype(np.float64) - exact[normal]) / np.abs(exact[normal])
    assert 0 < apart.max() <= 2.0 ** -(encoding.keepbits + 1)
    array.write((1,), found)  # what was rounded once stays
    np.testing.assert_array_equal(array.read((1,)), found)


@rounded
@pytest.mark.parametrize("value", [65000.0, -65504.0])
def test_a_value_that_rounds_to_infinity_is_refused(tmp_path: Path, encoding: Encoding, value: float) -> None:
    array = made(tmp_path, encoding)
    large = values()
    large[2, 3, 1] = value
    with pytest.raises(StoreError, match=r"Row 2 of array 'maps/x'.*not finite in float16: the model overflowed"):
        array.write((2,), large)
    assert not array.present().any()
    raw = made(tmp_path / "raw", ENCODINGS["raw"])
    raw.write((2,), large)
    assert raw.read((2,))[2, 3, 1] == np.float16(value)


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e6])
def test_what_is_not_finite_is_refused(tmp_path: Path, encoding: Encoding, value: float) -> None:
    array = made(tmp_path, encoding)
    bad = values()
    bad[-1, -1, -1] = value
    with pytest.raises(StoreError, match="not finite"):
        array.write((0,), bad)


@pytest.mark.parametrize("size", [1, 7, 2**18, 2**18 + 1, 3 * 2**18 + 5])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65504.0])
def test_the_one_value_that_is_not_finite_is_found(size: int, value: float) -> None:
    for place in {0, size // 2, size - 1}:
        kept = np.full(size, 1.5, dtype=np.float16)
        kept[place] = value
        assert is_finite(kept) == bool(np.isfinite(kept).all())


@every
@pytest.mark.parametrize("damage", ["flipped", "flipped checksum", "truncated", "empty", "longer"])
def test_a_damaged_object_is_named(tmp_path: Path, encoding: Encoding, damage: str) -> None:
    array = made(tmp_path, encoding)
    array.write((2,), values())
    array.write((0,), values())
    file = tmp_path / "s.zarr" / "maps" / "x" / "c.2.0.0.0"
    data = bytearray(file.read_bytes())
    data[-1 if damage == "flipped checksum" else 21] ^= 0x20 if damage.startswith("flipped") else 0
    file.write_bytes({"truncated": data[:-2], "empty": b"", "longer": data + b"\0\0"}.get(damage, data))
    with pytest.raises(StoreError, match=r"Row 2 of array 'maps/x'.*damaged.*delete maps/x/c\.2\.0\.0\.0 and run"):
        array.read((2,))
    assert array.damage((2,)) is not None
    assert array.damage((0,)) is None


def test_an_object_of_another_shape_is_damaged(tmp_path: Path) -> None:
    """Whole by itself, and too large: none of it is written anywhere."""
    encoding = ENCODINGS["bitround4"]
    array = made(tmp_path, encoding)
    larger = encoding.round(np.ones((60, 50, 40)))
    array.objects.put("maps/x/c.1.0.0.0", *encoding.encode(larger))
    with pytest.raises(StoreError, match=r"Row 1 of array 'maps/x'.*damaged"):
        array.read((1,))


@pytest.mark.parametrize("codecs", ["zstd", "no checksum", "big endian"])
def test_other_codecs_are_read_and_written_through_zarr(tmp_path: Path, codecs: str) -> None:
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

    group = empty_group(tmp_path / "s.zarr")
    compressors = {"zstd": [ZstdCodec(), Crc32cCodec()], "no checksum": None, "big endian": Crc32cCodec()}[codecs]
    array = group.create_array(
        "maps/y",
        shape=(4, *ROW),
        chunks=(1, *ROW),
        dtype="float16",
        fill_value=float("nan"),
        filters=None,
        chunk_key_encoding={"name": "default", "separator": "."},
        compressors=compressors,
        serializer=BytesCodec(endian="big" if codecs == "big endian" else "little"),
    )
    array[3] = values().astype(np.float16)
    rows = open_rows(group, "maps/y", 1, 4)
    assert rows is not None
    assert rows.encoding is None
    np.testing.assert_array_equal(rows.read((3,)), values().astype(np.float16))
    rows.write((1,), values())
    np.testing.assert_array_equal(np.asarray(array[1]), values().astype(np.float16))
    with pytest.raises(StoreError, match=r"Row 0 of array 'maps/y'.*not cached"):
        rows.read((0,))
