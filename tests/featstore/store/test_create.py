"""Arrays, groups and stores that many processes make at the same instant."""

import errno
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from featstore.backbones.base import NetworkName
from featstore.errors import StoreExistsError
from featstore.store.images import ImageTable
from featstore.store.keys import map_path
from featstore.store.metadata import create_missing, objects_of
from featstore.store.rows import create_rows
from featstore.store.store import Store, create_store, open_store
from tests.featstore.store.small_store import EXTRACTOR, HEADER, LATENT, MAP, contents, empty_group, write_small_store
from tests.forked import all_done, at_once

PROCESSES = 8
ROUNDS = 50
TABLE = ImageTable(("a/0", "a/1"), ("a", "a"), ("k0", "k1"), np.full((2, 2), 50))


def make_all(store: Store, number: int) -> None:
    """Maps of an extractor of the round's own, noisy latents at a timestep of its own, and a row of each."""
    extractor = replace(EXTRACTOR, seed=number)
    maps = store.require_maps(extractor, 2, 261, MAP)
    maps.write((number % 2,), np.full(MAP, number, dtype=np.float16))
    store.require_noisy(number, 1 + number % 2).write((0, 0), np.ones(LATENT, dtype=np.float16))
    assert store.attributes(f"maps/{extractor.key}") == extractor.describe()


def test_arrays_of_many_processes_at_once(tmp_path: Path) -> None:
    create_store(tmp_path / "s.zarr", HEADER, TABLE, LATENT)
    create_store(tmp_path / "alone.zarr", HEADER, TABLE, LATENT)

    def rounds(path: Path) -> None:
        store = open_store(path)
        for number in range(ROUNDS):
            make_all(store, number)

    # every process goes through the rounds as fast as it can: the first of each makes, the others come while it does
    assert all_done(at_once(*[partial(rounds, tmp_path / "s.zarr")] * PROCESSES))
    rounds(tmp_path / "alone.zarr")
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "alone.zarr")


def test_what_another_made_in_between_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The instant that stress seldom hits: looked for, not found, made by another and grown, and then made."""
    store = create_store(tmp_path / "s.zarr", HEADER, TABLE, LATENT)
    other = open_store(store.path)
    plain = create_missing

    def after_another(*arguments: object) -> None:
        monkeypatch.setattr("featstore.store.rows.create_missing", plain)
        other.require_noisy(261, 4).write((1, 3), np.ones(LATENT, dtype=np.float16))
        plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("featstore.store.rows.create_missing", after_another)
    found = store.require_noisy(261, 2)
    assert found.rows_shape == (2, 4)
    assert found.present()[1, 3]


def test_a_group_that_another_described_in_between_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_store(tmp_path / "s.zarr", HEADER, TABLE, LATENT)
    plain = create_missing

    def after_another(*arguments: object) -> None:
        monkeypatch.setattr("featstore.store.metadata.create_missing", plain)
        open_store(store.path).require_patch_tokens(NetworkName("dino", "cd" * 16), (5, 3))
        plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("featstore.store.metadata.create_missing", after_another)
    store.require_patch_tokens(NetworkName("dino", "cd" * 16), (5, 3))
    assert store.attributes("cond") == {"id": "dino", "fingerprint": "cd" * 16}


def test_metadata_are_those_that_zarr_writes(tmp_path: Path) -> None:
    """Byte for byte, of arrays, of groups that have attributes and of those on the way."""
    path = map_path(EXTRACTOR, 2, 261)
    plain = zarr.create_group(LocalStore(tmp_path / "plain"))
    plain.create_group(f"maps/{EXTRACTOR.key}", attributes=EXTRACTOR.describe())
    create_rows(plain, path, (2,), MAP)
    ours = objects_of(empty_group(tmp_path / "ours"))
    create_missing(ours, lambda made: made.create_group(f"maps/{EXTRACTOR.key}", attributes=EXTRACTOR.describe()))
    create_missing(ours, lambda made: create_rows(made, path, (2,), MAP))
    assert contents(tmp_path / "ours") == contents(tmp_path / "plain")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """exFAT, Google Drive in Colab: what one process makes is what it makes elsewhere, and what is there stays."""
    write_small_store(tmp_path / "plain.zarr")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    store = write_small_store(tmp_path / "s.zarr")
    assert contents(store.path) == contents(tmp_path / "plain.zarr")
    create_missing(store.objects, lambda made: create_rows(made, "latents", (7,), (1, 1)))
    assert contents(store.path) == contents(tmp_path / "plain.zarr")


def test_a_group_that_has_lost_its_description_gets_it_again(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "s.zarr")
    file = store.path / "maps" / EXTRACTOR.key / "zarr.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "attributes": {}}))
    store.require_maps(EXTRACTOR, 3, 261, MAP)
    assert json.loads(file.read_text()) == whole


def test_one_of_many_makes_the_store(tmp_path: Path) -> None:
    """Those that lose say so, and nothing of theirs is left."""
    won = tmp_path / "won"
    won.mkdir()
    paths = [tmp_path / f"{number}.zarr" for number in range(10)]

    def make(own: int) -> None:
        for path in paths:
            try:
                create_store(path, replace(HEADER, seed=own), TABLE, LATENT)
                (won / f"{path.name}-{own}").touch()
            except StoreExistsError:
                assert open_store(path).images.ids == TABLE.ids

    assert all_done(at_once(*(partial(make, own) for own in range(PROCESSES))))
    winners = dict(file.name.split("-") for file in won.iterdir())
    assert len(list(won.iterdir())) == len(winners) == len(paths)
    assert {path.name: str(open_store(path).header.seed) for path in paths} == winners
    assert sorted(tmp_path.iterdir()) == sorted([*paths, won])
