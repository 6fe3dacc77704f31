"""What goes and what stays when maps or noisy latents are pruned."""

import os
import shutil
import time
from datetime import timedelta
from pathlib import Path

import pytest

from featstore.errors import StoreError
from featstore.kept_config import PruneConfig
from featstore.pipeline.prune import choose, parse_age, remove
from featstore.progress import Silent
from featstore.store.care import verify
from featstore.store.keys import map_path
from featstore.store.pack import pack
from featstore.store.store import Store, open_store
from matcher.errors import InputError
from tests.featstore.store.small_store import ARRAYS, EXTRACTOR, OTHER, contents, write_small_store

TEXT2, TEXT3, TEXT3_LATE = (map_path(EXTRACTOR, *place) for place in ((2, 261), (3, 50), (3, 261)))
LEARNED = map_path(OTHER, 2, 261)
DAY = 24 * 3600


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_small_store(tmp_path / "s.zarr")


def age(store: Store, path: str, days: float, newest: float | None = None) -> None:
    """Make all files of an array `days` old, and one of them `newest` days."""
    then = time.time() - days * DAY
    files = sorted(file for file in (store.path / path).rglob("*") if file.is_file() and file.name != "zarr.json")
    for file in files:
        os.utime(file, (then, then))
    if newest is not None:
        os.utime(files[1], (time.time() - newest * DAY,) * 2)


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (PruneConfig(prompt="a photo of a {category}"), [TEXT2, TEXT3, TEXT3_LATE]),
        (PruneConfig(prompt="a photo"), []),
        (PruneConfig(extractor=OTHER.key), [LEARNED]),
        (PruneConfig(extractor=OTHER.key[:6]), [LEARNED]),
        (PruneConfig(layers=("3",)), [TEXT3, TEXT3_LATE]),
        (PruneConfig(timesteps=(261,)), [TEXT2, TEXT3_LATE, LEARNED]),
        (PruneConfig(timesteps=(50, 261), layers=("2",)), [TEXT2, LEARNED]),
        (PruneConfig(prompt="a photo of a {category}", layers=("3",), timesteps=(50,)), [TEXT3]),
        (PruneConfig(layers=("1",)), []),
        (PruneConfig(layers=("dino",)), []),
        (PruneConfig(older_than="30d"), [TEXT3]),
        (PruneConfig(older_than="30d", layers=("2",)), []),
    ],
)
def test_maps_go_that_meet_all_criteria(store: Store, criteria: PruneConfig, expected: list[str]) -> None:
    age(store, TEXT3, 31)
    age(store, TEXT2, 31, newest=29)
    before = contents(store.path)
    chosen = choose(store, criteria)
    assert sorted(array.path for array in chosen) == sorted(expected)
    assert contents(store.path) == before
    gone = {name for name in before if any(name.startswith(f"{path}/") for path in expected)}
    assert sum(array.files for array in chosen) == len(gone)
    assert sum(array.bytes for array in chosen) == sum(len(before[name]) for name in gone)
    remove(store, chosen, Silent())
    left = contents(store.path)
    assert left.items() <= before.items()
    # beside them only metadata of groups that hold nothing any more
    assert all(name.startswith("maps/") and name.endswith("zarr.json") for name in before.keys() - left.keys() - gone)
    assert sorted(open_store(store.path).arrays()) == sorted({*ARRAYS[:1], *ARRAYS[2:]} - set(expected))


def test_groups_that_hold_nothing_go_along(store: Store) -> None:
    remove(store, choose(store, PruneConfig(extractor=OTHER.key)), Silent())
    assert [folder.name for folder in (store.path / "maps").iterdir() if folder.is_dir()] == [EXTRACTOR.key]
    remove(store, choose(store, PruneConfig(layers=("3",))), Silent())
    assert [folder.name for folder in (store.path / "maps" / EXTRACTOR.key).glob("layer*")] == ["layer2"]
    assert verify(open_store(store.path), Silent()).sound


def test_noisy_latents(store: Store) -> None:
    age(store, "noisy/t0050", 3)
    assert [own.path for own in choose(store, PruneConfig(noisy=True))] == ["noisy/t0050", "noisy/t0261"]
    assert [own.path for own in choose(store, PruneConfig(noisy=True, timesteps=(261, 3)))] == ["noisy/t0261"]
    assert not choose(store, PruneConfig(noisy=True, older_than="4d"))
    old = choose(store, PruneConfig(noisy=True, older_than="2d"))
    assert [(own.path, own.files) for own in old] == [("noisy/t0050", 7)]
    remove(store, old, Silent())
    assert store.noisy(50) is None
    assert store.noisy(261) is not None
    assert store.latents().present().all()


def test_packed_maps(store: Store) -> None:
    pack(store, Silent())
    age(store, LEARNED, 31)
    (chosen,) = choose(store, PruneConfig(older_than="30d"))
    assert (chosen.path, chosen.files, chosen.what) == (LEARNED, 2, "single")
    remove(store, [chosen], Silent())
    assert LEARNED not in open_store(store.path).arrays()


def test_something_must_be_asked(store: Store) -> None:
    with pytest.raises(InputError, match="Which maps go must be said"):
        choose(store, PruneConfig())
    with pytest.raises(StoreError, match=rf"no extractor 'ffff': it has .*{EXTRACTOR.key}"):
        choose(store, PruneConfig(extractor="ffff"))


def test_rows_of_a_removal_that_was_killed_are_never_seen_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """They might go stale meanwhile. The next removal takes their room back."""
    plain = shutil.rmtree

    def killed(path: Path, **_: object) -> None:
        sorted(path.rglob("c.*"))[0].unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(store, choose(store, PruneConfig(layers=("3",), timesteps=(50,))), Silent())
    monkeypatch.setattr(shutil, "rmtree", plain)
    assert store.maps(EXTRACTOR, 3, 50) is None
    again = store.require_maps(EXTRACTOR, 3, 50, (6, 4, 4))
    assert not again.present().any()
    assert list(store.path.glob(".removed-*"))
    remove(store, [], Silent())
    assert not list(store.path.glob(".removed-*"))


@pytest.mark.parametrize(
    ("text", "hours"), [("12h", 12), ("30d", 720), ("2w", 336), ("1.5d", 36), (" 1d ", 24), ("0h", 0)]
)
def test_ages(text: str, hours: float) -> None:
    assert parse_age(text) == timedelta(hours=hours)


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3 days", "99999999999w"])
def test_no_ages(text: str) -> None:
    with pytest.raises(InputError, match="--older-than"):
        parse_age(text)
