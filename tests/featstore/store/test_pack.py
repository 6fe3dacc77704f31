"""Packed arrays: read as before by every reader and by plain zarr, written by none, whole wherever packing stops."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from featstore.errors import StoreError
from featstore.progress import Silent
from featstore.store import pack as pack_module
from featstore.store.care import verify
from featstore.store.pack import pack, shard_rows, unpack
from featstore.store.rows import RowArray
from featstore.store.store import Store, open_store, summarise, update_images
from tests.featstore.store.small_store import (
    ARRAYS,
    MAP_PATH,
    array_of,
    contents,
    flip,
    place_of,
    row_values,
    write_small_store,
)
from tests.forked import at_once, one_thread

PACKABLE = [path for path in ARRAYS if not path.startswith("grids/")]
IMAGES = 7


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_small_store(tmp_path / "s.zarr", IMAGES)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of two or three rows, so that an array has several."""
    monkeypatch.setattr(pack_module, "SHARD_BYTES", 1200)


def assert_whole(store: Store) -> None:
    """Every row of every array reads as it was written."""
    again = open_store(store.path)
    for path in ARRAYS:
        array = array_of(again, path)
        assert array.present().all()
        for row in np.ndindex(*array.rows_shape):
            np.testing.assert_array_equal(array.read(row), row_values(array, row))


def files_of(store: Store, path: str) -> int:
    return sum(file.is_file() and file.name != "zarr.json" for file in (store.path / path).rglob("*"))


def test_packed_rows_are_read_as_before(store: Store) -> None:
    before = {path: files_of(store, path) for path in PACKABLE}
    outcome = {own.path: own for own in pack(store, Silent())}
    assert sorted(outcome) == PACKABLE
    assert_whole(store)
    for path in PACKABLE:
        assert array_of(store, path).packed
        assert outcome[path].files_before == before[path] == math.prod(array_of(store, path).rows_shape)
        assert outcome[path].files_after == files_of(store, path) == 1
    assert verify(open_store(store.path), Silent()).sound
    assert {own.path: own.present for own in summarise(store)} == {path: before[path] for path in PACKABLE}


@pytest.mark.usefixtures("small_shards")
def test_plain_zarr_reads_packed_arrays_of_several_files(store: Store) -> None:
    pack(store, Silent())
    assert files_of(store, "latents") == 3
    for path in PACKABLE:
        plain = zarr.open_array(store.path / path, mode="r")
        array = array_of(store, path)
        for row in np.ndindex(*array.rows_shape):
            np.testing.assert_array_equal(plain[row], row_values(array, row))
    assert_whole(store)


@pytest.mark.usefixtures("small_shards")
def test_files_are_what_zarr_itself_writes(store: Store, tmp_path: Path) -> None:
    """Byte by byte, the last and shorter one too."""
    latents = np.stack([row_values(store.latents(), (row,)) for row in range(IMAGES)])
    pack(store, Silent())
    made = zarr.create_array(
        tmp_path / "zarrs own",
        shape=latents.shape,
        chunks=(1, *latents.shape[1:]),
        shards=(3, *latents.shape[1:]),
        dtype="float16",
        fill_value=float("nan"),
        filters=None,
        compressors=Crc32cCodec(),
        dimension_names=("image", "channel", "y", "x"),
    )
    for start in (0, 3, 6):
        made[start : start + 3] = latents[start : start + 3]
    ours, theirs = contents(store.path / "latents"), contents(tmp_path / "zarrs own")
    assert ours == theirs
    assert sorted(ours) == ["c/0/0/0/0", "c/1/0/0/0", "c/2/0/0/0", "zarr.json"]


@pytest.mark.usefixtures("small_shards")
def test_unpacking_gives_back_the_very_same_files(store: Store) -> None:
    before = contents(store.path)
    pack(store, Silent())
    assert contents(store.path) != before
    assert sorted(unpack(store, ARRAYS, Silent())) == PACKABLE
    assert contents(store.path) == before


def test_what_is_not_finished_is_left_alone(store: Store) -> None:
    array_of(store, MAP_PATH).delete_rows([(2,)])
    before = contents(store.path / MAP_PATH)
    outcome = {own.path: own for own in pack(store, Silent())}
    assert outcome[MAP_PATH].why == f"1 of {IMAGES} rows are missing"
    assert contents(store.path / MAP_PATH) == before
    assert not outcome["latents"].why


def test_packing_again_does_nothing(store: Store) -> None:
    pack(store, Silent())
    before = contents(store.path)
    assert {own.why for own in pack(store, Silent())} == {"packed already"}
    assert contents(store.path) == before


@pytest.mark.parametrize(
    ("rows", "row_bytes", "expected"),
    [
        ((1800,), 73_732, (1800,)),  # 133 MB: SPair-71k's latents
        ((1800, 8), 73_732, (225, 8)),  # 1.06 GB in 8 files
        ((1800,), 11_796_484, (11,)),  # 21 GB of layer 3 in 164 files of 130 MB
        ((2,), 300_000_000, (1,)),
        ((100,), 1000, (100,)),
    ],
)
def test_files_are_of_a_size_to_move(rows: tuple[int, ...], row_bytes: int, expected: tuple[int, ...]) -> None:
    assert shard_rows(rows, row_bytes) == expected
    size = math.prod(expected) * row_bytes
    assert 64e6 <= size <= 256e6 or expected[0] in (1, rows[0])


def test_writing_to_a_packed_array_is_refused(store: Store) -> None:
    pack(store, Silent())
    before = contents(store.path)
    latents = store.latents()
    for change in (
        lambda: latents.write((0,), np.zeros(latents.row_shape)),
        lambda: latents.delete_rows([(0,)]),
        lambda: store.require_noisy(50, 3).write((0, 2), np.zeros(latents.row_shape)),
    ):
        with pytest.raises(StoreError, match="packed: run `dualsd cache unpack`"):
            change()
    store.require_noisy(50, 2)
    assert contents(store.path) == before


def test_a_damaged_row_is_named_and_nothing_packed(store: Store) -> None:
    flip(store.path / "latents" / "c.4.0.0.0", 9, 1)
    before = contents(store.path / "latents")
    with pytest.raises(StoreError, match=r"Row 4 of array 'latents' in .* is damaged .*verify --drop"):
        pack(store, Silent())
    assert contents(store.path / "latents") == before


@pytest.mark.usefixtures("small_shards")
def test_damaged_rows_are_lost_when_unpacked_and_no_others(store: Store) -> None:
    pack(store, Silent())
    file, offset, _ = place_of(store, "latents", (3,))
    flip(file, offset + 9, 1)
    (store.path / "latents" / "c" / "2" / "0" / "0" / "0").write_bytes(b"")
    with pytest.raises(StoreError, match=r"Row 3 of array 'latents'.*damaged"):
        store.latents().read((3,))
    assert [bad.row for bad in verify(open_store(store.path), Silent()).bad] == [(3,), (6,)]
    unpack(store, ["latents"], Silent())
    assert store.latents().present().tolist() == [True] * 3 + [False] + [True] * 2 + [False]
    assert verify(open_store(store.path), Silent()).sound


@pytest.mark.usefixtures("small_shards")
def test_rows_of_images_that_are_gone_may_be_missing(store: Store) -> None:
    """They are missing in the packed array, too, and when its images come back; no others are."""
    entries = [*map(store.images.entry, range(IMAGES))]
    smaller = update_images(store, [entry for entry in entries if entry.id not in ("cat/2", "cat/6")], Silent())
    for path in PACKABLE:
        array = array_of(smaller, path)
        array.delete_rows([row for row in np.ndindex(*array.rows_shape) if row[0] in (2, 6)])
    assert {own.why for own in pack(smaller, Silent()) if own.path in PACKABLE} == {""}
    back = update_images(smaller, entries, Silent())
    assert verify(back, Silent()).sound
    for act in (lambda: None, lambda: unpack(back, ARRAYS, Silent())):
        act()
        for path in PACKABLE:
            array = array_of(back, path)
            for row in np.ndindex(*array.rows_shape):
                assert array.present()[row] == (row[0] not in (2, 6))
                if row[0] in (2, 6):
                    with pytest.raises(StoreError, match="is not cached"):
                        array.read(row)
                else:
                    np.testing.assert_array_equal(array.read(row), row_values(array, row))


def test_whoever_has_an_array_open_reads_on(store: Store) -> None:
    """Another process packs or unpacks it meanwhile."""
    opened = [store.latents(), array_of(store, "noisy/t0261")]

    def assert_read() -> None:
        for array in opened:
            for row in np.ndindex(*array.rows_shape):
                np.testing.assert_array_equal(array.read(row), row_values(array, row))

    pack(store, Silent())
    assert_read()
    unpack(store, ARRAYS, Silent())
    assert_read()
    values = np.ones(opened[0].row_shape)
    opened[0].write((2,), values)
    np.testing.assert_array_equal(store.latents().read((2,)), values)


def test_no_room_is_a_sentence_and_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store.path)
    monkeypatch.setattr("featstore.store.pack.free_bytes", lambda _: 3000)  # 7 rows of 516 bytes take 3,612
    with pytest.raises(StoreError, match=r"packing the array 'latents' its 3\.6 kB must fit.*only 3\.0 kB are free"):
        pack(store, Silent())
    assert contents(store.path) == before


def test_a_disk_that_fills_up_while_packing_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(store.path / "latents")
    plain = Path.replace

    def full(self: Path, target: Path) -> Path:
        if "/c/" in str(target):
            raise OSError(28, os.strerror(28))
        assert target.name != "zarr.json", "the array was swapped"
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 100)
    with pytest.raises(StoreError, match=r"packed array 'latents'.*the disk is full"):
        pack(store, Silent())
    assert contents(store.path / "latents") == before


Act = Callable[[Store], object]


def rearranged(store: Store, act: Act, place: int, times: int) -> None:
    """Pack or unpack in this process, which is killed before the step `place` of its renaming and removing."""
    steps, counting = 0, threading.Lock()

    def step() -> None:
        nonlocal steps
        with counting:
            steps += 1
            now = steps
        if now == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_and_after(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if plain.__name__ == "unlink" and arguments[0].suffix == ".partial":
                return plain(*arguments, **options)
            step()
            done = plain(*arguments, **options)
            step()
            return done

        return call

    pack_module.SHARD_BYTES = 1200
    Path.replace = before_and_after(Path.replace)  # type: ignore[method-assign]
    Path.unlink = before_and_after(Path.unlink)  # type: ignore[method-assign]
    for _ in range(times):
        act(open_store(store.path))


def packing(store: Store) -> None:
    pack(store, Silent())


def unpacking(store: Store) -> None:
    unpack(store, store.array_paths(), Silent())


def there_and_back(store: Store) -> None:
    packing(store)
    unpacking(store)


def age(folder: Path) -> None:
    """Let an hour pass: what may be another run's, half-written just now, is swept only when it is old."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)


def killed(store: Store, act: Act, place: int) -> int | None:
    """The exit code of a process that is forked for it."""
    return at_once(partial(rearranged, store, act, place, 1))[0]


# latents: 3 files (steps 1 to 6), their metadata (7, 8), 7 rows that go (9 to 22); then the next array
@pytest.mark.parametrize("place", [1, 4, 6, 7, 8, 9, 16, 22, 23, 40])
def test_a_killed_pack_leaves_every_row(store: Store, place: int) -> None:
    assert killed(store, packing, place) == -signal.SIGKILL
    assert store.latents().packed is (place >= 8)
    assert_whole(store)
    assert verify(open_store(store.path), Silent()).sound
    age(store.path)
    assert killed(store, packing, 0) == 0
    assert_whole(store)
    assert all(array_of(store, path).packed for path in PACKABLE)
    assert files_of(store, "latents") == 3
    assert not verify(open_store(store.path), Silent()).left_over


@pytest.mark.parametrize("place", [1, 5, 14, 15, 16, 17])
def test_a_killed_unpack_leaves_every_row(store: Store, place: int) -> None:
    """latents: 7 rows (steps 1 to 14), their metadata (15, 16); then the next array."""
    before = contents(store.path)
    assert killed(store, packing, 0) == 0
    assert killed(store, unpacking, place) == -signal.SIGKILL
    assert store.latents().packed is (place < 16)
    assert_whole(store)
    age(store.path)
    assert killed(store, unpacking, 0) == 0
    assert contents(store.path) == before


def test_two_processes_that_pack_and_unpack_at_once(store: Store) -> None:
    """Each waits for the other, array by array; no row is ever lost."""
    context = multiprocessing.get_context("fork")
    with one_thread():
        running = [context.Process(target=rearranged, args=(store, there_and_back, 0, 3)) for _ in range(2)]
        for process in running:
            process.start()
    latents: RowArray = store.latents()
    while any(process.is_alive() for process in running):
        for row in range(IMAGES):
            np.testing.assert_array_equal(latents.read((row,)), row_values(latents, (row,)))
        time.sleep(0.01)
    assert [process.exitcode for process in running] == [0, 0]
    assert_whole(store)
