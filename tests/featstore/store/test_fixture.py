"""Stores that dualsd 0.1.0 wrote open and read for ever; those of a newer dualsd are refused, naming it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from featstore.errors import StoreError
from featstore.progress import Silent
from featstore.store.care import verify
from featstore.store.store import Store, open_store
from tests.featstore.store.small_store import contents
from tests.fixtures.make_store_v1 import EXTRACTOR, HEADER, IMAGES, LATENT, MAP, SALTS, values, write

FIXTURES = Path(__file__).parents[2] / "fixtures"
DIGESTS = {
    "store-v1": "3365cf02b4209d63",
    "store-v1-packed": "e72b3bd3888557a1",
}
"""Of all files: a store that somebody wrote anew is no witness."""

each = pytest.mark.parametrize("name", DIGESTS)


def digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name, content in contents(path).items():
        found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


@each
def test_it_is_the_one_that_was_written_then(name: str) -> None:
    assert digest(FIXTURES / name) == DIGESTS[name]


@each
def test_it_opens_and_every_row_reads(name: str) -> None:
    store = open_store(FIXTURES / name)
    assert store.header == HEADER
    assert (store.images.ids, store.images.categories, store.images.keys) == (
        IMAGES.ids,
        IMAGES.categories,
        IMAGES.keys,
    )
    assert [store.images.size(image) for image in store.images.ids] == [(60, 40), (70, 46)]
    arrays = store.arrays()
    assert sorted(arrays) == sorted(SALTS)
    assert store.latents().row_shape == LATENT
    assert store.noisy(261) is not None
    maps = store.maps(EXTRACTOR, 2, 261)
    assert maps is not None
    assert maps.row_shape == MAP
    for path, array in arrays.items():
        assert array.present().all()
        assert array.packed is name.endswith("packed")
        plain = zarr.open_array(FIXTURES / name / path, mode="r")
        for row in np.ndindex(*array.rows_shape):
            expected = values(path, row, array.row_shape)
            np.testing.assert_array_equal(array.read(row), expected)
            np.testing.assert_array_equal(plain[row], expected)
    assert verify(store, Silent()).sound
    assert digest(FIXTURES / name) == DIGESTS[name]  # reading leaves no trace


@each
def test_it_is_written_to_today(name: str, tmp_path: Path) -> None:
    store = open_store(shutil.copytree(FIXTURES / name, tmp_path / name))
    timestep = 300
    array = store.require_noisy(timestep, 1)
    array.write((1, 0), np.ones(LATENT))
    assert open_store(store.path).noisy(timestep) is not None
    assert digest(FIXTURES / name) == DIGESTS[name]


@each
def test_todays_stores_hold_the_same_rows(name: str, tmp_path: Path) -> None:
    """And the same columns of images; shards are zarr's own, whose chunks may stand in another order."""
    write(tmp_path)
    then, now = contents(FIXTURES / name), contents(tmp_path / name)
    assert now.keys() - then.keys() == {"images/here/zarr.json", "images/here/c/0", "images/log/000000.json"}
    assert then.keys() <= now.keys()
    for file, content in then.items():
        if file.endswith("zarr.json"):
            ours, theirs = (json.loads(own)["attributes"] for own in (now[file], content))
            assert ours == theirs | ({"version": 3} if file == "zarr.json" else {}), file
        elif not name.endswith("packed"):
            assert content == now[file], file


def rewritten(tmp_path: Path, **attributes: Any) -> Path:
    """A copy whose header says something else."""
    path = shutil.copytree(FIXTURES / "store-v1", tmp_path / "s.zarr")
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"] |= attributes
    (path / "zarr.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("version", [5, 99])
def test_a_newer_one_is_refused_naming_who_wrote_it(tmp_path: Path, version: int) -> None:
    path = rewritten(tmp_path, version=version, creator="9.3.1")
    with pytest.raises(StoreError, match=rf"store version {version}, written by dualsd 9\.3\.1; .* up to version 4"):
        open_store(path)


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, None, True])
def test_what_is_no_version_is_a_damaged_header(tmp_path: Path, version: object) -> None:
    with pytest.raises(StoreError, match="damaged header: its version is"):
        open_store(rewritten(tmp_path, version=version))


def test_arrays_of_an_unknown_kind_are_left_alone(tmp_path: Path) -> None:
    """A later dualsd of the same version may keep more than this one knows."""
    store: Store = open_store(rewritten(tmp_path, note="unknown attributes too"))
    zarr.create_array(store.path / "more" / "of it", shape=(3,), dtype="int32")[:] = 1
    again = open_store(store.path)
    assert sorted(again.arrays()) == sorted(SALTS)
    assert verify(again, Silent()).sound
