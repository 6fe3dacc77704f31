"""Half-written files of killed runs go at the next run of their array; those of a run that still writes stay."""

import glob
import os
import time
from pathlib import Path

import numpy as np
import pytest

from featstore.files import IN_FLIGHT_SECONDS, sweep_making
from featstore.store.store import Store
from tests.featstore.store.small_store import MAP_PATH, contents, row_values, write_small_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_small_store(tmp_path / "s.zarr")


def partial(store: Store, name: str, seconds_old: float) -> Path:
    file = store.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"half a row")
    then = time.time() - seconds_old
    os.utime(file, (then, then))
    return file


def test_only_old_ones_of_the_arrays_named_go(store: Store) -> None:
    before = contents(store.path)
    old = [
        partial(store, name, IN_FLIGHT_SECONDS + 5)
        for name in (
            f"{MAP_PATH}/c.1.0.0.aa.partial",
            f"{MAP_PATH}/zarr.bb.partial",
            "maps/zarr.dd.partial",
            "zarr.ee.partial",
        )
    ]
    stays = [
        partial(store, f"{MAP_PATH}/c.2.0.0.ff.partial", -3600),  # young, however long this takes
        partial(store, "latents/c.2.0.0.gg.partial", IN_FLIGHT_SECONDS + 5),
    ]
    store.objects.sweep([MAP_PATH])
    assert not any(file.exists() for file in old)
    assert all(file.exists() for file in stays)
    deep = partial(store, f"{MAP_PATH}/c/0/0/0/0.cc.partial", IN_FLIGHT_SECONDS + 5)  # of a pack that was killed
    store.objects.sweep()
    assert not deep.exists()
    assert before.items() <= contents(store.path).items()


def test_what_was_being_made_goes_when_all_of_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "s[1].zarr"
    old, young, others = (
        tmp_path / f"{name}.{age}.making" for name, age in ((path.name, "a"), (path.name, "b"), ("s1.zarr", "c"))
    )
    for folder in (old, young, others):
        (folder / "store").mkdir(parents=True)
        (folder / "store" / "zarr.json").write_text("{}")
        for entry in (*folder.rglob("*"), folder):
            os.utime(entry, (0, 0))
    recently = time.time() + 3600  # however long this takes
    os.utime(young / "store" / "zarr.json", (recently, recently))
    sweep_making(tmp_path, glob.escape(path.name))
    assert sorted(tmp_path.iterdir()) == sorted([young, others])


def test_nothing_is_swept_above_the_store(store: Store, tmp_path: Path) -> None:
    beside = tmp_path / "somebody's.partial"
    beside.write_bytes(b"")
    os.utime(beside, (0, 0))
    store.objects.sweep(["latents", "noisy/t0999"])
    assert beside.exists()


def test_a_store_that_may_only_be_read_is_no_obstacle(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = partial(store, "latents/c.2.0.0.gg.partial", IN_FLIGHT_SECONDS + 5)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    store.objects.sweep(["latents"])
    assert file.exists()


def test_a_write_in_flight_is_never_taken_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process sweeps between the writing of the file and its renaming, however long the run has been going."""
    plain = Path.replace
    swept: list[Path] = []

    def sweeping(self: Path, target: Path) -> Path:
        store.objects.sweep(["latents"])
        swept.append(self)
        return plain(self, target)

    latents = store.latents()
    latents.delete_rows([(1,)])
    monkeypatch.setattr(Path, "replace", sweeping)
    latents.write((1,), row_values(latents, (1,)))
    assert len(swept) == 1
    np.testing.assert_array_equal(latents.read((1,)), row_values(latents, (1,)))
