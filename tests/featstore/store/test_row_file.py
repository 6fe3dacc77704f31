"""Rows read straight from local files, against zarr's own reading."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, Endian, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featstore.errors import StoreError
from featstore.store.row_file import RowFiles, stored_rows
from featstore.store.rows import RowArray, open_rows, require_rows

ROW = (3, 5, 4)


@pytest.fixture
def group(tmp_path: Path) -> zarr.Group:
    return zarr.create_group(tmp_path / "s.zarr")


@pytest.fixture
def rows(group: zarr.Group) -> RowArray:
    """Rows 0 and 2 of four are there."""
    made = require_rows(group, "maps/x", (4,), ROW, "float16")
    for row in (0, 2):
        made.write((row,), values_of(row))
    return made


def values_of(row: int) -> NDArray[np.float16]:
    return np.random.default_rng(row).normal(size=ROW).astype(np.float16)


def file_of(tmp_path: Path, row: int) -> Path:
    return tmp_path / "s.zarr" / "maps" / "x" / f"c.{row}.0.0.0"


def plain_zarr(group: zarr.Group, path: str) -> zarr.Array[Any]:
    found = group[path]
    assert isinstance(found, zarr.Array)
    return found


def forbid_zarrs_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("zarr was asked to read")

    monkeypatch.setattr(zarr.Array, "__getitem__", fail)


def test_a_local_row_is_what_zarr_reads(group: zarr.Group, rows: RowArray) -> None:
    for row in (0, 2):
        found, expected = rows.read((row,)), plain_zarr(group, "maps/x")[row]
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, values_of(row))


def test_a_local_row_is_read_without_zarr(rows: RowArray, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_zarrs_reading(monkeypatch)
    np.testing.assert_array_equal(rows.read((2,)), values_of(2))


def test_what_zarr_writes_is_read_and_the_other_way_round(group: zarr.Group, rows: RowArray) -> None:
    plain_zarr(group, "maps/x")[1] = values_of(1)
    np.testing.assert_array_equal(rows.read((1,)), values_of(1))


def test_rows_of_draws(group: zarr.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = require_rows(group, "noisy/t0050", (2, 3), (4, 2, 2), "float16")
    for place in ((0, 2), (1, 0)):
        noisy.write(place, np.full((4, 2, 2), sum(place) + 10 * place[0]))
    forbid_zarrs_reading(monkeypatch)
    assert (noisy.read((0, 2)) == 2).all()
    assert (noisy.read((1, 0)) == 11).all()
    with pytest.raises(StoreError, match=r"Row 0, 0 of array 'noisy/t0050'.*not cached"):
        noisy.read((0, 0))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "longer"])
def test_a_damaged_file_is_named(tmp_path: Path, rows: RowArray, damage: str) -> None:
    file = file_of(tmp_path, 2)
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[11] ^= 1
    content = {"truncated": data[:-2], "empty": b"", "longer": data + b"\0\0"}.get(damage, data)
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"Row 2 of array 'maps/x'.*damaged.*delete maps/x/c\.2\.0\.0\.0 and run"):
        rows.read((2,))
    np.testing.assert_array_equal(rows.read((0,)), values_of(0))


def test_a_flipped_checksum_is_found(tmp_path: Path, rows: RowArray) -> None:
    file = file_of(tmp_path, 0)
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80
    file.write_bytes(data)
    with pytest.raises(StoreError, match="checksum does not match"):
        rows.read((0,))


def test_a_missing_file_is_a_row_that_is_not_cached(tmp_path: Path, rows: RowArray) -> None:
    assert RowFiles(ROW, np.dtype(np.float16), file_of(tmp_path, 1).parent).read((1,)) is None
    with pytest.raises(StoreError, match=r"Row 1 of array 'maps/x'.*not cached"):
        rows.read((1,))


def test_a_row_file_of_another_length_is_refused(tmp_path: Path, rows: RowArray) -> None:
    with pytest.raises(ValueError, match="124 bytes instead of 244"):
        RowFiles(ROW, np.dtype(np.float32), file_of(tmp_path, 0).parent).read((0,))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, rows: RowArray) -> None:
    file_of(tmp_path, 0).unlink()
    file_of(tmp_path, 0).mkdir()
    with pytest.raises(StoreError, match=r"Row 0 of array 'maps/x'.*damaged"):
        rows.read((0,))


def test_a_row_beyond_the_array_is_refused(rows: RowArray) -> None:
    with pytest.raises(StoreError, match=r"Row 4 of array 'maps/x'"):
        rows.read((4,))


def test_a_value_that_is_not_finite_is_no_row(group: zarr.Group, rows: RowArray) -> None:
    bad = values_of(1)
    bad[1, 2, 3] = np.inf
    plain_zarr(group, "maps/x")[1] = bad
    with pytest.raises(StoreError, match=r"Row 1 of array 'maps/x'"):
        rows.read((1,))


@pytest.mark.parametrize(
    "codecs",
    [
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"compressors": None},
        {"compressors": Crc32cCodec(), "serializer": BytesCodec(endian=Endian.big)},
    ],
    ids=["zstd", "no checksum", "big endian"],
)
def test_other_codecs_are_read_through_zarr(group: zarr.Group, codecs: dict[str, Any]) -> None:
    made = group.create_array(
        "maps/y",
        shape=(4, *ROW),
        chunks=(1, *ROW),
        dtype="float16",
        fill_value=float("nan"),
        filters=None,
        chunk_key_encoding={"name": "default", "separator": "."},
        **codecs,
    )
    made[3] = values_of(3)
    assert stored_rows(made, 1) is None
    rows = open_rows(group, "maps/y", leading=1)
    assert rows is not None
    np.testing.assert_array_equal(rows.read((3,)), values_of(3))
    with pytest.raises(StoreError, match=r"Row 0 of array 'maps/y'.*not cached"):
        rows.read((0,))


def test_a_store_that_is_no_folder_is_read_through_zarr() -> None:
    memory = MemoryStore()
    group = zarr.create_group(memory)
    rows = require_rows(group, "maps/x", (4,), ROW, "float16")
    rows.write((1,), values_of(1))
    assert stored_rows(plain_zarr(group, "maps/x"), 1) is None
    np.testing.assert_array_equal(rows.read((1,)), values_of(1))
    with pytest.raises(StoreError, match=r"Row 0 of array 'maps/x'.*not cached"):
        rows.read((0,))
    prototype = default_buffer_prototype()
    stored = sync(memory.get("maps/x/c.1.0.0.0", prototype))
    assert stored is not None
    data = bytearray(stored.to_bytes())
    data[11] ^= 1
    sync(memory.set("maps/x/c.1.0.0.0", prototype.buffer.from_bytes(bytes(data))))
    with pytest.raises(StoreError, match=r"Row 1 of array 'maps/x'.*damaged"):
        rows.read((1,))
