"""The list of images as a log that grows: whoever adds loses nothing, and rows are never used for another image."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from featstore.progress import Silent
from featstore.store.care import drop_rows, gone_rows, verify
from featstore.store.images import LOG, Change, ImageEntry, ImageTable, change_of, read_log, record, table_of
from featstore.store.keys import StoreLocation, parse_location
from featstore.store.objects import objects_at
from featstore.store.pack import pack, unpack
from featstore.store.store import create_store, open_store, update_images
from tests.featstore.store.small_store import ARRAYS, HEADER, LATENT, array_of, contents, row_values, write_small_store
from tests.fixtures.make_store_v1 import SALTS, values
from tests.forked import at_once

FIXTURES = Path(__file__).parents[2] / "fixtures"


def entry(name: str, key: str = "k") -> ImageEntry:
    return ImageEntry(name, "cat", f"{key}-{name}", (60, 40))


A, B, C, D = map(entry, "abcd")


def rows_of(table: ImageTable) -> dict[str, int]:
    return dict(table.rows)


def test_rows_follow_from_the_order_of_the_log_and_are_never_used_again() -> None:
    other, bigger = replace(B, key="new"), replace(C, size=(90, 80))
    steps: list[tuple[Change, dict[str, int], set[int]]] = [
        (Change((A, B)), {"a": 0, "b": 1}, set()),
        (Change((C,), ("a",)), {"b": 1, "c": 2}, {0}),
        (Change((other, D)), {"c": 2, "b": 3, "d": 4}, {0, 1}),
        (Change((A,)), {"a": 0, "c": 2, "b": 3, "d": 4}, {1}),  # back: its old row
        (Change((B,)), {"a": 0, "b": 1, "c": 2, "d": 4}, {3}),  # as it once was
        (Change((bigger,), ("zz",)), {"a": 0, "b": 1, "c": 2, "d": 4}, {3}),
        (Change((replace(A, category="dog"),)), {"b": 1, "c": 2, "d": 4, "a": 5}, {0, 3}),  # another prompt's maps
    ]
    for count, (_, rows, gone) in enumerate(steps, start=1):
        table = table_of(change for change, _, _ in steps[:count])
        assert (rows_of(table), table.gone, table.entries) == (rows, gone, count)
    assert (table.size("c"), table.keys[1], table.keys[3]) == ((90, 80), "k-b", "new")
    assert [Change.from_json(change.to_json()) for change, _, _ in steps] == [change for change, _, _ in steps]


def test_nothing_is_said_where_nothing_changed() -> None:
    table = table_of([Change((A, B))])
    assert change_of([B, A], table, table) == Change()
    assert change_of([A], table, table) == Change((), ("b",))
    assert change_of([A, replace(B, size=(1, 1)), C], table, table) == Change((replace(B, size=(1, 1)), C))


def test_what_another_builder_said_meanwhile_stays() -> None:
    """Each knows what was there when it looked at the folder: images of another are neither added twice nor gone."""
    before = table_of([Change((A, B))])
    now = table_of([Change((A, B)), Change((C, replace(A, key="theirs")), ("b",))])
    assert change_of([A, B, D], before, now) == Change((D,))
    assert change_of([A], before, now) == Change()
    assert change_of([A, B, C], before, now) == Change()
    assert change_of([B], before, now) == Change()  # another says that `a` changed, so there it was
    mine = replace(B, key="mine")
    assert change_of([A, mine], before, table_of([Change((A, B)), Change((C,))])) == Change((mine,))


def ids_of(table: ImageTable) -> set[str]:
    return set(table.rows)


def test_two_builders_that_write_in_between_each_other(tmp_path: Path) -> None:
    store = create_store(tmp_path / "s.zarr", HEADER, table_of([Change((A, B))]), LATENT)
    first, second = open_store(store.path).images, open_store(store.path).images
    assert ids_of(record(store.objects, [A, B, C], first)) == {"a", "b", "c"}
    found = record(store.objects, [B, D], second)
    assert (rows_of(found), found.gone) == ({"b": 1, "c": 2, "d": 3}, {0})
    assert rows_of(open_store(store.path).images) == rows_of(found)
    assert record(store.objects, [B, C, D], found).entries == found.entries == 3


COUNT, BUILDERS = 50, 4


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """Where a store may lie."""
    if request.param == "folder":
        return tmp_path / "s.zarr"
    return parse_location(request.getfixturevalue("s3_store"))


def in_threads(*tasks: Callable[[], object]) -> list[int | None]:
    """As `at_once` does it in processes, of which none may be forked once object storage was used."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        codes = [pool.submit(task) for task in tasks]
        return [-signal.SIGKILL if isinstance(own.exception(), KeyboardInterrupt) else own.result() for own in codes]  # type: ignore[misc]


def test_four_builders_one_killed_while_a_reader_folds(place: StoreLocation, tmp_path: Path) -> None:
    """Each adds images of its own, one at a time, as `cache build` does; what one wrote nobody loses, and a row that
    was seen once is the same image's for ever."""
    count, run = (COUNT, at_once) if isinstance(place, Path) else (6, in_threads)
    create_store(place, HEADER, table_of([Change((A,))]), LATENT)
    done = tmp_path / "done"
    done.mkdir()

    def add(builder: int) -> None:
        objects = objects_at(place)
        for number in range(count):
            own = entry(f"{builder}/{number}")
            table = read_log(objects)
            assert table is not None
            now = record(objects, [*map(table.entry, table.rows.values()), own], table)
            assert own.id in now.rows
            (done / f"{builder}-{number}").write_text(str(now.rows[own.id]))
            if builder == 0 and number == count // 2:
                if run is in_threads:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), signal.SIGKILL)

    def read() -> None:
        objects, seen = objects_at(place), dict[str, int]()
        while len(list(done.iterdir())) < (BUILDERS - 1) * count + count // 2 + 1:
            table = read_log(objects)
            assert table is not None
            assert sorted(table.rows.values()) == list(range(len(table)))
            assert seen.items() <= table.rows.items()
            seen = rows_of(table)
            time.sleep(0.01)

    killed, *codes = run(*(partial(add, builder) for builder in range(BUILDERS)), read)
    assert killed == -signal.SIGKILL
    assert not any(codes)
    table = read_log(objects_at(place))
    assert table is not None
    written = {file.name.replace("-", "/"): int(file.read_text()) for file in done.iterdir()}
    assert rows_of(table) == {"a": 0} | written
    assert len(set(table.rows.values())) == len(table.rows) == len(table)


def grown(path: StoreLocation, found: Sequence[ImageEntry]) -> None:
    update_images(open_store(path), found, Silent())


@pytest.mark.parametrize("name", ["store-v1", "store-v1-packed"])
def test_a_store_of_version_1_grows(name: str, tmp_path: Path) -> None:
    """It gets a log and the version that says so; its rows stay as they were, whoever reads them."""
    path = shutil.copytree(FIXTURES / name, tmp_path / name)
    old = open_store(path)
    entries = [*map(old.images.entry, range(2))]
    grown(path, entries)
    assert contents(path) == contents(FIXTURES / name), "nothing to say, nothing said"
    grown(path, [entries[1], C])
    now = open_store(path)
    assert (now.header.version, now.images.gone, rows_of(now.images)) == (3, {0}, {entries[1].id: 1, "c": 2})
    assert sorted(file.name for file in (path / LOG).iterdir()) == ["000000.json", "000001.json"]
    for where, array in now.arrays().items():
        assert array.rows_shape[0] == 3
        assert not array.present()[2].any()
        for row in np.ndindex(2, *array.rows_shape[1:]):
            expected = values(where, row, array.row_shape)
            np.testing.assert_array_equal(array.read(row), expected)
            np.testing.assert_array_equal(array_of(old, where).read(row), expected)
            np.testing.assert_array_equal(np.asarray(zarr.open_array(path / where, mode="r")[row]), expected)
    assert sorted(now.arrays()) == sorted(SALTS)
    assert verify(now, Silent()).sound


def test_a_first_change_that_was_killed_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its log, but before its header says so; the next change says it."""
    path = shutil.copytree(FIXTURES / "store-v1", tmp_path / "s.zarr")
    entries = [*map(open_store(path).images.entry, range(2))]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featstore.store.store._write_header", killed)
        with pytest.raises(KeyboardInterrupt):
            grown(path, [*entries, C])
    between = open_store(path)
    assert (between.header.version, len(between.images)) == (1, 2)
    grown(path, [*entries, C])
    assert (open_store(path).header.version, len(open_store(path).images)) == (3, 3)


def test_two_builders_that_let_a_store_grow_first(tmp_path: Path) -> None:
    """Neither says that the other's images are gone."""
    path = shutil.copytree(FIXTURES / "store-v1", tmp_path / "s.zarr")
    first, second = open_store(path), open_store(path)
    entries = [*map(first.images.entry, range(2))]
    update_images(first, [*entries, C], Silent())
    now = update_images(second, [*entries, D], Silent())
    assert rows_of(now.images) == {entries[0].id: 0, entries[1].id: 1, "c": 2, "d": 3}
    assert not now.images.gone
    assert rows_of(open_store(path).images) == rows_of(now.images)


def test_a_changed_image_has_a_new_row_and_old_readers_the_old_one(place: StoreLocation) -> None:
    old = write_small_store(place)
    entries = [*map(old.images.entry, range(3))]
    now = update_images(old, [entries[0], replace(entries[1], key="new"), entries[2]], Silent())
    assert (now.images.row("cat/1"), old.images.row("cat/1")) == (3, 1)
    now.latents().write((3,), np.ones(LATENT))
    for path in ARRAYS:
        if path.startswith("grids/"):
            continue
        array = array_of(old, path)
        for row in np.ndindex(*array.rows_shape):
            np.testing.assert_array_equal(array.read(row), row_values(array, row))
    assert (open_store(place).latents().read((3,)) == 1).all()
    assert now.latents().array.shape[0] == 4, "plain readers see the new row"
    back = update_images(now, entries, Silent())
    assert (back.images.row("cat/1"), back.images.gone) == (1, {3})


def test_rows_of_images_that_are_gone_go_when_asked_and_no_others(place: StoreLocation) -> None:
    store = write_small_store(place)
    entries = [*map(store.images.entry, range(3))]
    now = update_images(store, [entries[0], entries[2]], Silent())
    drop_rows(now, gone_rows(now), Silent())
    assert gone_rows(now) == []
    for path in (path for path in ARRAYS if not path.startswith("grids/")):  # their rows are of pairs
        array = array_of(open_store(place), path)
        for row in np.ndindex(*array.rows_shape):
            assert array.present()[row] == (row[0] != 1)
            if row[0] != 1:
                np.testing.assert_array_equal(array.read(row), row_values(array, row))
    assert verify(now, Silent()).sound


def test_packing_by_one_that_does_not_know_the_newest_images(tmp_path: Path) -> None:
    """Their rows are packed like all others, or their lack is noticed."""
    old = write_small_store(tmp_path / "s.zarr")
    now = update_images(old, [*map(old.images.entry, range(3)), C], Silent())
    now.latents().write((3,), np.ones(LATENT))
    why = {own.path: own.why for own in pack(old, Silent())}
    assert why["latents"] == ""
    assert {why[path] for path in ("noisy/t0050", "cond/dinov2")} == {
        "2 of 8 rows are missing",
        "1 of 4 rows are missing",
    }
    for reader in (open_store(now.path), now):
        assert (reader.latents().read((3,)) == 1).all()
        np.testing.assert_array_equal(reader.latents().read((1,)), row_values(reader.latents(), (1,)))
    unpack(old, ["latents"], Silent())
    assert (now.latents().read((3,)) == 1).all()


def test_what_older_readers_make_is_lengthened_later(tmp_path: Path) -> None:
    """One that opened the store before it grew makes an array of its own length; whoever writes beyond lengthens it."""
    old = write_small_store(tmp_path / "s.zarr")
    entries = [*map(old.images.entry, range(3))]
    now = update_images(old, [*entries, C], Silent())
    old.require_noisy(700, 1).write((2, 0), np.ones(LATENT))
    assert zarr.open_array(now.path / "noisy/t0700", mode="r").shape[:2] == (3, 1)
    now.require_noisy(700, 2).write((3, 1), np.ones(LATENT))
    found = zarr.open_array(now.path / "noisy/t0700", mode="r")
    assert found.shape[:2] == (4, 2)
    assert (np.asarray(found[3, 1]) == 1).all()
    assert (np.asarray(found[2, 0]) == 1).all()


def test_the_columns_are_what_the_log_says_for_plain_readers(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "s.zarr")
    entries = [*map(store.images.entry, range(3))]
    update_images(store, [entries[0], replace(entries[1], size=(7, 9)), C], Silent())
    images = zarr.open_group(store.path / "images", mode="r")
    found = {name: np.asarray(array[:]).tolist() for name, array in images.arrays()}
    assert found == {
        "id": ["cat/0", "cat/1", "cat/2", "c"],
        "category": ["cat"] * 4,
        "key": ["k0", "k1", "k2", "k-c"],
        "width": [50, 7, 50, 60],
        "height": [50, 9, 50, 40],
        "here": [True, True, False, True],
    }
