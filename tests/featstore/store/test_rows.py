from pathlib import Path

import numpy as np
import pytest
import zarr

from featstore.errors import StoreError
from featstore.store.metadata import objects_of
from featstore.store.rows import RowArray, require_rows
from tests.featstore.store.small_store import empty_group


@pytest.fixture
def group(tmp_path: Path) -> zarr.Group:
    return empty_group(tmp_path / "s.zarr")


@pytest.fixture
def array(group: zarr.Group) -> RowArray:
    return require_rows(group, "maps/x", (5,), (3, 2, 2))


def chunk(group: zarr.Group, row: int) -> Path:
    return Path(str(objects_of(group))) / "maps" / "x" / f"c.{row}.0.0.0"


def test_a_row_is_there_or_it_is_not(array: RowArray) -> None:
    values = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    array.write((3,), values)
    assert array.present().tolist() == [False, False, False, True, False]
    np.testing.assert_array_equal(array.read((3,)), values)
    with pytest.raises(StoreError, match=r"Row 2 of array 'maps/x'.*not cached"):
        array.read((2,))


def test_a_row_of_zeros_is_there(array: RowArray) -> None:
    array.write((0,), np.zeros((3, 2, 2)))
    assert array.present()[0]
    assert not array.read((0,)).any()


def test_a_deleted_row_is_missing_never_zeros(group: zarr.Group, array: RowArray) -> None:
    array.write((1,), np.ones((3, 2, 2)))
    array.delete_rows([(1,)])
    array.delete_rows([(1,)])
    assert not array.present().any()
    assert not chunk(group, 1).exists()
    with pytest.raises(StoreError):
        array.read((1,))


@pytest.mark.parametrize("position", [0, 7, 23, 24, 27])
def test_a_flipped_bit_is_found(group: zarr.Group, array: RowArray, position: int) -> None:
    array.write((4,), np.ones((3, 2, 2)))
    data = bytearray(chunk(group, 4).read_bytes())
    assert len(data) == array.row_bytes == 28
    data[position] ^= 4
    chunk(group, 4).write_bytes(data)
    with pytest.raises(StoreError, match=r"Row 4 of array 'maps/x'.*damaged"):
        array.read((4,))


@pytest.mark.parametrize("length", [0, 3, 27])
def test_a_truncated_row_is_found(group: zarr.Group, array: RowArray, length: int) -> None:
    array.write((4,), np.ones((3, 2, 2)))
    chunk(group, 4).write_bytes(chunk(group, 4).read_bytes()[:length])
    with pytest.raises(StoreError):
        array.read((4,))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_is_not_finite_in_float16_is_not_written(array: RowArray, value: float) -> None:
    with pytest.raises(StoreError, match="not finite"):
        array.write((0,), np.full((3, 2, 2), value, dtype=np.float32))
    assert not array.present().any()


def test_left_over_partial_files_are_no_rows(group: zarr.Group, array: RowArray) -> None:
    chunk(group, 2).with_suffix(".abc.partial").write_bytes(b"half")
    assert not array.present().any()


def test_draws_grow_and_keep_what_was_there(group: zarr.Group) -> None:
    noisy = require_rows(group, "noisy/t0050", (3, 1), (4, 2, 2))
    noisy.write((2, 0), np.full((4, 2, 2), 5.0))
    require_rows(group, "noisy/t0050", (3, 4), (4, 2, 2))
    again = require_rows(group, "noisy/t0050", (3, 2), (4, 2, 2))
    assert again.rows_shape == (3, 4)
    assert again.present().sum() == 1
    assert (again.read((2, 0)) == 5).all()


def test_another_shape_is_refused(group: zarr.Group, array: RowArray) -> None:
    with pytest.raises(StoreError, match="another shape"):
        require_rows(group, "maps/x", (5,), (3, 4, 4))
