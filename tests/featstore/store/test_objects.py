"""What holds of a store's place, be it a folder or a bucket; and what each does about its own troubles."""

import errno
import os
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from featstore.errors import StoreError
from featstore.files import PARTIAL
from featstore.progress import Silent
from featstore.store import bucket as bucket_module
from featstore.store.bucket import Bucket, open_bucket
from featstore.store.images import Change, ImageEntry
from featstore.store.keys import StoreLocation, parse_location
from featstore.store.objects import Folder, Objects, objects_at
from featstore.store.store import open_store, update_images
from tests.faulty_proxy import FaultyProxy
from tests.featstore.store.small_store import LATENT, row_values, write_small_store
from tests.forked import all_done, at_once

ROOT = {"zarr.json": b"{}", "images/zarr.json": b"{ }"}


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """Where a store may lie."""
    if request.param == "folder":
        return tmp_path / "s.zarr"
    return parse_location(request.getfixturevalue("s3_store"))


@pytest.fixture
def objects(place: StoreLocation) -> Objects:
    """A place where a store was made."""
    made = objects_at(place)
    assert not made.exists()
    assert made.make(ROOT)
    return made


def content(objects: Objects, key: str) -> bytes | None:
    found = objects.get(key)
    return None if found is None else found.tobytes()


def test_objects_are_put_and_got_whole_and_in_part(objects: Objects) -> None:
    assert content(objects, "a/b/c") is None
    values = np.arange(6, dtype=np.float16)
    objects.put("a/b/c", b"01", memoryview(b"2345"), values.data)
    whole = b"012345" + values.tobytes()
    assert content(objects, "a/b/c") == whole
    for start, stop in [(0, 1), (2, 5), (3, None), (-4, None), (0, len(whole))]:
        found = objects.get("a/b/c", start, stop)
        assert found is not None
        assert found.tobytes() == whole[start:stop], (start, stop)
        found[:] = 0  # whoever gets bytes may change them
    assert content(objects, "a/b/c") == whole
    objects.put("a/b/c", b"other")
    assert content(objects, "a/b/c") == b"other"
    assert objects.get("a/b", 0, 1) is None
    assert content(objects, "a/b/c/d") is None


def test_what_is_created_stays(objects: Objects) -> None:
    assert objects.create("images/log/0.json", b"first")
    assert not objects.create("images/log/0.json", b"second")
    assert content(objects, "images/log/0.json") == b"first"
    assert not objects.left_over()


def test_of_eight_that_create_one_wins(objects: Objects) -> None:
    for number in range(10):
        key, won, start = f"log/{number}", list[int](), threading.Barrier(8)

        def create(own: int, key: str = key, won: list[int] = won, start: threading.Barrier = start) -> None:
            start.wait()
            if objects.create(key, f"by {own}".encode()):
                won.append(own)

        threads = [threading.Thread(target=create, args=(own,)) for own in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert content(objects, key) == f"by {won[0]}".encode()


def test_lists(objects: Objects) -> None:
    for key in ("maps/x/c.0", "maps/x/c.1", "maps/y/z/c.0", "mapsandmore/c.0"):
        objects.put(key, b"123")
    names, folders = objects.level("maps")
    assert (sorted(names), sorted(folders)) == ([], ["x", "y"])
    names, folders = objects.level("maps/x")
    assert (sorted(names), folders) == (["c.0", "c.1"], [])
    assert objects.level("nothing") == ([], [])
    assert sorted(objects.level()[1]) == ["images", "maps", "mapsandmore"]
    assert [(one.key, one.bytes) for one in objects.below("maps")] == [
        ("maps/x/c.0", 3),
        ("maps/x/c.1", 3),
        ("maps/y/z/c.0", 3),
    ]
    assert objects.below("nothing") == []
    assert [one.key for one in objects.below()] == sorted(
        [*ROOT, "maps/x/c.0", "maps/x/c.1", "maps/y/z/c.0", "mapsandmore/c.0"]
    )


def test_what_is_deleted_and_removed_is_gone_and_nothing_else(objects: Objects) -> None:
    for key in ("maps/x/zarr.json", "maps/x/c.1", "maps/xx/c.0", "latents/c.0", "latents/c.1"):
        objects.put(key, b"123")
    objects.delete(["latents/c.1", "latents/c.7"])
    objects.delete([])
    objects.remove("maps/x")
    objects.remove("nothing")
    assert [one.key for one in objects.below()] == sorted([*ROOT, "maps/xx/c.0", "latents/c.0"])
    assert not objects.left_over()


def test_one_of_many_makes_a_store_and_it_is_whole(place: StoreLocation, objects: Objects) -> None:
    assert objects.exists()
    assert not objects_at(place).make({"zarr.json": b"other", "images/zarr.json": b"{ }"})
    assert content(objects, "zarr.json") == b"{}"
    assert {one.key for one in objects.below()} == set(ROOT)


def test_whoever_waits_is_told_for_whom_and_how_long(
    place: StoreLocation, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "WAIT_SECONDS", 0.01)
    told, entered, waiting = list[str](), threading.Event(), threading.Event()

    def note(sentence: str) -> None:
        told.append(sentence)
        waiting.set()

    def second() -> None:
        with objects_at(place).exclusive("pruning", note):
            entered.set()

    with objects.exclusive("packing", told.append):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(timeout=300)
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()
    (sentence,) = told
    assert re.fullmatch(
        rf"Waiting for process {os.getpid()} on \S+, which holds {re.escape(str(place))} for packing, for \d+ s now\.",
        sentence,
    )


def test_a_server_that_ignores_conditions_is_refused(s3_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two builders there would overwrite each other's entries; nothing of a store is left."""
    bucket = open_bucket(parse_location(s3_store))  # type: ignore[arg-type]
    plain = Bucket.create

    def ignoring(self: Bucket, key: str, *pieces: bytes) -> bool:
        self.put(key, *pieces)
        return True

    monkeypatch.setattr(Bucket, "create", ignoring)
    with pytest.raises(StoreError, match=r"ignores conditions of writes \(If-None-Match\)"):
        bucket.make(ROOT)
    assert bucket.below() == []
    monkeypatch.setattr(Bucket, "create", plain)
    assert bucket.make(ROOT)


MOVED = "is no longer there: it was moved or removed while this command worked on it"


def test_a_store_that_is_moved_away_from_a_reader_and_a_writer(tmp_path: Path) -> None:
    """One sentence each, and nothing appears where it was."""
    store = write_small_store(tmp_path / "s.zarr")
    latents, noisy = store.latents(), store.noisy(50)
    assert noisy is not None
    shutil.move(tmp_path / "s.zarr", tmp_path / "elsewhere.zarr")
    entry = ImageEntry("new", "cat", "k", (1, 1))
    acts = [
        lambda: latents.read((0,)),
        lambda: latents.write((0,), np.ones(LATENT)),
        latents.present,
        lambda: noisy.read((0, 0)),
        lambda: store.require_noisy(300, 1),
        store.arrays,
        lambda: update_images(store, [*map(store.images.entry, range(3)), entry], Silent()),
        lambda: store.objects.create("images/log/000007.json", Change().to_json()),
        store.objects.below,
    ]
    for act in acts:
        with pytest.raises(StoreError, match=MOVED):
            act()
        assert not (tmp_path / "s.zarr").exists()
    with pytest.raises(StoreError, match=MOVED), store.objects.exclusive("packing", lambda _: None):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["elsewhere.zarr"]
    assert open_store(tmp_path / "elsewhere.zarr").latents().present().all()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_create_on_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    objects = Folder(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    assert objects.create("log/0", b"first")
    assert not objects.create("log/0", b"second")
    assert content(objects, "log/0") == b"first"
    assert [file.name for file in (tmp_path / "log").iterdir()] == ["0"]


def test_a_disk_that_refuses_a_link_for_another_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="Input/output"):
        Folder(tmp_path).create("log/0", b"first")
    assert list((tmp_path / "log").iterdir()) == []


def test_a_write_that_fails_leaves_the_old_object_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Folder(tmp_path)
    objects.put("a", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        objects.put("a", b"new")
    Folder(tmp_path, durable=False).put("b", b"not synced")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old", "b": b"not synced"}


def test_half_written_objects_are_no_objects(tmp_path: Path) -> None:
    objects = Folder(tmp_path)
    objects.put("a/c.0", b"whole")
    (tmp_path / "a" / f"c.1.0123{PARTIAL}").write_bytes(b"half")
    assert objects.level("a") == (["c.0"], [])
    assert [one.key for one in objects.below()] == ["a/c.0"]
    assert [(one.key, one.bytes) for one in objects.left_over()] == [(f"a/c.1.0123{PARTIAL}", 4)]


def test_a_forked_process_goes_on_in_a_folder(tmp_path: Path) -> None:
    """After its parent read and wrote there; as DataLoader's workers do."""
    store = write_small_store(tmp_path / "s.zarr")
    latents = store.latents()

    def work(row: int) -> None:
        np.testing.assert_array_equal(latents.read((row,)), row_values(latents, (row,)))
        latents.write((row,), np.full(LATENT, row))
        store.require_noisy(600 + row, 1).write((row, 0), np.ones(LATENT))
        assert open_store(store.path).latents().present().all()

    assert all_done(at_once(*(partial(work, row) for row in range(3))))
    for row in range(3):
        assert (latents.read((row,)) == row).all()
        array = store.noisy(600 + row)
        assert array is not None
        assert (array.read((row, 0)) == 1).all()


def test_a_forked_process_is_refused_in_a_bucket(s3_store: str, s3_link: FaultyProxy) -> None:
    """It would wait for ever, even on a bucket that it opened itself."""
    store = write_small_store(parse_location(s3_store))
    latents = store.latents()

    def work() -> None:
        for use in (lambda: latents.read((0,)), lambda: open_store(s3_store)):
            with pytest.raises(StoreError, match="was forked from one that used object storage; spawn it"):
                use()

    assert all_done(at_once(work))
