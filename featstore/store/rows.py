"""Arrays whose rows are there or not: one row one object, written atomically, with a checksum, filled with NaN.

No bookkeeping: which rows are there is read off the objects themselves, so it cannot go stale.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError

from featstore.errors import StoreError
from featstore.store.row_file import read_row_file, row_folder

_EXPONENT = np.uint16(0x7C00)
"""The bits of a float16 that are all set where it is infinite or NaN."""

_BLOCK_VALUES = 2**18
"""Values that are looked at at once; they stay in the cache."""

Row = tuple[int, ...]
"""Index of a row: (image,) or (image, draw)."""


class RowArray:
    """An array (*rows, *row shape) of which single rows are written, read and deleted.

    `leading` of its dimensions count rows: 1 for latents and maps, 2 for noisy latents (image, draw).
    """

    def __init__(self, array: zarr.Array[Any], leading: int) -> None:
        self._array = array
        self._leading = leading
        self._folder = row_folder(array)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self._array.shape[self._leading :])

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """(images,) or (images, draws)."""
        return tuple(self._array.shape[: self._leading])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk, checksum included."""
        return int(np.prod(self.row_shape)) * self._array.dtype.itemsize + 4

    def present(self) -> NDArray[np.bool_]:
        """Which rows are there, shape `rows_shape`; one listing, no row is read."""
        found = np.zeros(self.rows_shape, dtype=bool)
        for name in sync(_names(self._array.store_path.store, self._array.path)):
            kind, *parts = name.split(".")
            if kind != "c" or len(parts) != self._array.ndim or not all(part.isdecimal() for part in parts):
                continue  # metadata, or what a killed write left
            row = tuple(int(part) for part in parts[: self._leading])
            if all(index < size for index, size in zip(row, self.rows_shape, strict=True)):
                found[row] = True
        return found

    def read(self, row: Row) -> NDArray[Any]:
        """One row. Raises `StoreError`, naming array and row, where it is missing or fails its checksum."""
        try:
            values = self._values(row)
        except (ValueError, OSError, RuntimeError, IndexError, BufferError) as error:
            raise StoreError(
                f"Row {_spell(row)} of {self._where} is damaged ({error}): delete {self._object(row)} and run the same "
                "command again."
            ) from error
        if values is None or not _all_finite(values):
            raise StoreError(f"Row {_spell(row)} of {self._where} is not cached.")
        return values

    def _values(self, row: Row) -> NDArray[Any] | None:
        if self._folder is None or any(index >= size for index, size in zip(row, self.rows_shape, strict=True)):
            return np.asarray(self._array[row])
        return read_row_file(self._folder / self._name(row), self.row_shape, self._array.dtype)

    def write(self, row: Row, values: NDArray[Any]) -> None:
        """Write one row atomically. Raises `StoreError` where a value is not finite in the stored precision."""
        with np.errstate(over="ignore"):  # an overflow to infinity is what the check below is for
            stored = np.asarray(values).astype(self._array.dtype)
        if not _all_finite(stored):
            raise StoreError(
                f"Row {_spell(row)} of {self._where} would hold values that are not finite in {stored.dtype}: the "
                "model overflowed; try --dtype float32."
            )
        try:
            self._array[row] = stored
        except OSError as error:
            raise StoreError(f"Row {_spell(row)} of {self._where} could not be written: {error}.") from error

    def delete(self, row: Row) -> None:
        """Forget one row, whether it is there or not."""
        store: ZarrStore = self._array.store_path.store
        sync(store.delete(self._object(row)))

    def grow(self, draws: int) -> None:
        """Make room for `draws` draws an image; never shrinks."""
        # as it is now: another process may have grown it since it was opened
        self._array = zarr.open_array(self._array.store_path, mode="r+", zarr_format=3)
        images, have = self.rows_shape
        if draws > have:
            self._array.resize((images, draws, *self.row_shape))

    def _object(self, row: Row) -> str:
        """The key of the object that a row is, within the store."""
        return f"{self._array.path}/{self._name(row)}"

    def _name(self, row: Row) -> str:
        indices = [*row, *[0] * len(self.row_shape)]
        return f"c.{'.'.join(map(str, indices))}"

    @property
    def _where(self) -> str:
        return f"array {self._array.path!r} in {self._array.store_path.store}"


def require_rows(group: zarr.Group, path: str, rows: Sequence[int], row_shape: Sequence[int], dtype: str) -> RowArray:
    """The array at `path`, made where it is not there: shape (*rows, *row_shape), chunks of one row."""
    if path not in group:
        with contextlib.suppress(ContainsArrayError):  # another process may have made it meanwhile
            group.create_array(
                path,
                shape=(*rows, *row_shape),
                chunks=(*[1] * len(rows), *row_shape),
                dtype=dtype,
                fill_value=float("nan"),
                filters=None,
                # zarr's default, zstd, is slow to read and gains nothing on features
                compressors=Crc32cCodec(),
                # flat names: the default puts a folder a dimension around every row
                chunk_key_encoding={"name": "default", "separator": "."},
            )
    found = open_rows(group, path, len(rows))
    if found is None or found.row_shape != tuple(row_shape):
        raise StoreError(f"The array {path!r} of the store has another shape than {tuple(row_shape)} a row.")
    return found


def open_rows(group: zarr.Group, path: str, leading: int) -> RowArray | None:
    """The array at `path`, None where there is none."""
    try:
        found = group.get(path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(
            f"The array {path!r} of {group.store_path} has damaged metadata ({error}): delete that folder and run the "
            "same command again."
        ) from error
    return RowArray(found, leading) if isinstance(found, zarr.Array) else None


def _all_finite(values: NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN; numpy has no fast way to ask that of float16."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    bits = values.reshape(-1).view(np.uint16)
    exponents = np.empty(min(len(bits), _BLOCK_VALUES), dtype=np.uint16)
    for start in range(0, len(bits), _BLOCK_VALUES):
        block = bits[start : start + _BLOCK_VALUES]
        if np.bitwise_and(block, _EXPONENT, out=exponents[: len(block)]).max() == _EXPONENT:
            return False
    return True


def _spell(row: Row) -> str:
    return ", ".join(str(index) for index in row)


async def _names(store: ZarrStore, path: str) -> list[str]:
    return [name async for name in store.list_dir(path)]
