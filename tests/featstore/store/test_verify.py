"""Damage of every kind is found, named and taken away; what is whole is never touched."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.errors import StoreError
from featstore.progress import Silent
from featstore.store.care import (
    BadMetadata,
    Verification,
    drop_metadata,
    drop_rows,
    restore_metadata,
    sweep,
    verify,
)
from featstore.store.pack import pack
from featstore.store.store import Store, open_store, summarise
from matcher.errors import InputError
from tests.featstore.store.small_store import (
    ARRAYS,
    EXTRACTOR,
    LATENT,
    MAP,
    MAP_PATH,
    array_of,
    contents,
    flip,
    place_of,
    row_values,
    write_small_store,
)

FLIPS = 200


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_small_store(tmp_path / "s.zarr")


def check(store: Store) -> Verification:
    return verify(open_store(store.path), Silent())


def spoil(store: Store, path: str, row: tuple[int, ...], position: int = 5) -> None:
    """Flip a bit of one row that is a file of its own."""
    file, _, _ = place_of(store, path, row)
    flip(file, position, 3)


def test_a_sound_store_is_listed_whole(store: Store) -> None:
    found = check(store)
    assert found.sound
    assert not found.left_over
    arrays = {array.path: array for array in found.arrays if not array.path.startswith("images/")}
    assert sorted(arrays) == ARRAYS
    assert (arrays["latents"].rows, arrays["latents"].present) == (3, 3)
    assert (arrays["noisy/t0261"].rows, arrays["noisy/t0261"].bytes) == (6, 6 * (4 * 8 * 8 * 2 + 4))
    columns = [array.path for array in found.arrays if array.path.startswith("images/")]
    assert columns == [f"images/{name}" for name in ("id", "category", "width", "height", "key", "here")]


def test_every_one_of_200_flipped_bits_is_found(tmp_path: Path) -> None:
    """By `verify` and by an ordinary read, which names array and row; all other rows read as they were."""
    store = write_small_store(tmp_path / "big.zarr", images=25)
    chance = random.Random(20)
    rows = [(path, row) for path in ARRAYS for row in np.ndindex(*array_of(store, path).rows_shape)]
    assert len(rows) > FLIPS
    spoilt = set(chance.sample(rows, FLIPS))
    for path, row in spoilt:
        file, _, length = place_of(store, path, row)
        flip(file, chance.randrange(length), chance.randrange(8))
    found = check(store)
    assert {(bad.array, bad.row) for bad in found.bad} == spoilt
    assert len(found.bad) == FLIPS
    assert all(bad.image == f"cat/{bad.row[0]}" for bad in found.bad)
    for path, row in rows:
        array = array_of(store, path)
        if (path, row) in spoilt:
            named = rf"Row {', '.join(map(str, row))} of array '{path}' in .* is damaged"
            with pytest.raises(StoreError, match=named):
                array.read(row)
        else:
            np.testing.assert_array_equal(array.read(row), row_values(array, row))


def test_every_flipped_bit_of_a_packed_store_is_found(tmp_path: Path) -> None:
    store = write_small_store(tmp_path / "big.zarr", images=25)
    pack(store, Silent())
    chance = random.Random(21)
    packed = [path for path in ARRAYS if array_of(store, path).packed]
    rows = [(path, row) for path in packed for row in np.ndindex(*array_of(store, path).rows_shape)]
    spoilt = set(chance.sample(rows, FLIPS))
    for path, row in spoilt:
        file, offset, length = place_of(store, path, row)
        flip(file, offset + chance.randrange(length), chance.randrange(8))
    assert {(bad.array, bad.row) for bad in check(store).bad} == spoilt
    for path, row in rows:
        array = array_of(store, path)
        if (path, row) in spoilt:
            with pytest.raises(StoreError, match=rf"Row {', '.join(map(str, row))} of array '{path}' in .* is damaged"):
                array.read(row)
        else:
            np.testing.assert_array_equal(array.read(row), row_values(array, row))


def test_a_damaged_index_damages_all_rows_of_its_file(store: Store) -> None:
    pack(store, Silent())
    file = store.path / "latents" / "c" / "0" / "0" / "0" / "0"
    for position in range(file.stat().st_size - (3 * 16 + 4), file.stat().st_size, 7):
        flip(file, position, 2)
        assert [(bad.array, bad.row) for bad in check(store).bad] == [("latents", (row,)) for row in range(3)]
        with pytest.raises(StoreError, match=r"Row 1 of array 'latents'.*damaged"):
            store.latents().read((1,))
        flip(file, position, 2)
    for size in (0, 3, 60):
        file.write_bytes(file.read_bytes()[:size])
        assert len(check(store).bad) == 3


def test_a_deleted_chunk_is_missing_never_zeros(store: Store) -> None:
    for path in ARRAYS:
        array = array_of(store, path)
        row = tuple(size - 1 for size in array.rows_shape)
        place_of(store, path, row)[0].unlink()
        assert not array.present()[row]
        with pytest.raises(StoreError, match="not cached"):
            array.read(row)
    found = check(store)
    assert found.sound
    missing = {own.path: own.rows - own.present for own in found.arrays if not own.path.startswith("images/")}
    assert missing == dict.fromkeys(ARRAYS, 1)


def test_a_deleted_file_of_packed_rows_is_missing_never_zeros(store: Store) -> None:
    pack(store, Silent())
    shutil.rmtree(store.path / "noisy" / "t0050" / "c")
    with pytest.raises(StoreError, match="not cached"):
        array_of(store, "noisy/t0050").read((1, 1))
    found = check(store)
    assert {(bad.array, bad.why) for bad in found.bad} == {("noisy/t0050", "it is missing")}
    drop_rows(store, found.bad, Silent())
    assert check(store).sound
    assert not array_of(store, "noisy/t0050").present().any()


def test_flipped_metadata_are_our_error_or_none(store: Store, tmp_path: Path) -> None:
    """Some go unseen (within a name, say); none ends in an exception that is not ours, nor in other values."""
    chance = random.Random(22)
    pack(store, Silent())
    packed = open_store(shutil.copytree(store.path, tmp_path / "packed.zarr"))
    shutil.rmtree(store.path)
    refused = flips = 0
    for each in (packed, write_small_store(store.path)):
        for file in sorted(each.path.rglob("zarr.json")):
            sound = file.read_bytes()
            for _ in range(3):
                flip(file, chance.randrange(len(sound)), chance.randrange(8))
                refused, flips = refused + _use(each.path), flips + 1
                file.write_bytes(sound)
    assert refused > flips / 2
    assert check(packed).sound


def _use(path: Path) -> bool:
    """Open, list, verify, read: whether any of it was refused."""
    refused = False
    try:
        store = open_store(path)
    except InputError:
        return True
    refused |= not verify(store, Silent()).sound
    for uses in (lambda: summarise(store), lambda: _read_all(store)):
        try:
            uses()
        except InputError:
            refused = True
    return refused


def _read_all(store: Store) -> None:
    for path in ARRAYS:
        array = store.array(path)
        if array is None:
            continue
        for row in np.argwhere(array.present()).tolist():
            np.testing.assert_array_equal(array.read(tuple(row)), row_values(array, tuple(row)))


def test_damaged_metadata_do_not_hide_other_arrays(store: Store) -> None:
    (store.path / MAP_PATH / "zarr.json").write_text("{")
    (store.path / "noisy" / "zarr.json").write_text("[]")
    spoil(store, "noisy/t0261", (1, 1))
    found = check(store)
    assert {damaged.path: damaged.is_array for damaged in found.metadata} == {MAP_PATH: True, "noisy": False}
    assert [(bad.array, bad.row) for bad in found.bad] == [("noisy/t0261", (1, 1))]
    assert len([array for array in found.arrays if not array.path.startswith("images/")]) == len(ARRAYS) - 1


def test_an_extractor_that_is_not_what_its_name_says(store: Store) -> None:
    file = store.path / "maps" / EXTRACTOR.key / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["prompt"]["template"] = "a photo of b {category}"
    file.write_text(json.dumps(content))
    assert [damaged.path for damaged in check(store).metadata] == [f"maps/{EXTRACTOR.key}"]


def test_an_extractor_killed_before_its_description_is_sound(store: Store) -> None:
    file = store.path / "maps" / EXTRACTOR.key / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"] = {}
    file.write_text(json.dumps(content))
    assert check(store).sound


@pytest.mark.parametrize("name", ["id", "category", "width", "height", "key", "here"])
def test_a_damaged_copy_of_the_log_is_found_and_written_anew(store: Store, name: str) -> None:
    """No code of dualsd reads it; other readers do."""
    before = contents(store.path)
    flip(store.path / "images" / name / "c" / "0", 1, 1)
    assert open_store(store.path).images.ids == store.images.ids
    found = check(store)
    assert [damaged.path for damaged in found.metadata] == ["images"]
    assert not found.sound
    drop_metadata(store, found.metadata[0], Silent())
    assert check(store).sound
    assert contents(store.path) == before


@pytest.mark.parametrize("damage", [lambda it: it.replace(b"cat/1", b"cat/7"), lambda it: it[:-9], lambda _: b""])
def test_a_damaged_entry_of_the_log_is_a_sentence(store: Store, damage: Callable[[bytes], bytes]) -> None:
    file = store.path / "images" / "log" / "000000.json"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StoreError, match=r"log of images of .* is damaged, its entry images/log/000000\.json"):
        open_store(store.path)


def test_a_log_that_is_lost_is_a_sentence(store: Store) -> None:
    shutil.rmtree(store.path / "images" / "log")
    with pytest.raises(StoreError, match="has lost the log of its images"):
        open_store(store.path)


@pytest.mark.parametrize("packed", [False, True])
def test_dropping_takes_the_bad_rows_and_no_others(store: Store, packed: bool) -> None:
    before = contents(store.path)
    for path, row in [("latents", (1,)), ("noisy/t0050", (2, 0)), ("noisy/t0050", (2, 1)), (MAP_PATH, (0,))]:
        spoil(store, path, row)
    found = check(store)
    if packed:  # damaged rows are not packed: pack what is whole, then damage it
        for name, content in before.items():
            (store.path / name).write_bytes(content)
        pack(store, Silent())
        for bad in found.bad:
            file, offset, _ = place_of(store, bad.array, bad.row)
            flip(file, offset + 5, 3)
        assert [(bad.array, bad.row) for bad in check(store).bad] == [(bad.array, bad.row) for bad in found.bad]
    drop_rows(store, found.bad, Silent())
    assert check(store).sound
    gone = {f"{bad.array}/c.{'.'.join(map(str, [*bad.row, 0, 0, 0]))}" for bad in found.bad}
    left = contents(store.path)
    for path in ("latents", "noisy/t0050", MAP_PATH):
        own = {name: data for name, data in before.items() if name.startswith(f"{path}/") and name not in gone}
        assert {name: data for name, data in left.items() if name.startswith(f"{path}/")} == own
    assert array_of(store, "noisy/t0261").packed is packed


def test_dropped_metadata_of_an_array_take_it_along(store: Store) -> None:
    (store.path / MAP_PATH / "zarr.json").write_text("{")
    (store.path / "maps" / "zarr.json").write_text("{")
    (damaged, group) = sorted(check(store).metadata, key=lambda own: -len(own.path))
    assert MAP_PATH in drop_metadata(store, damaged, Silent())
    assert drop_metadata(store, group, Silent()).endswith("are kept")
    assert not (store.path / MAP_PATH).exists()
    assert check(store).sound
    np.testing.assert_array_equal(
        array_of(store, MAP_PATH.replace("layer2/t0261", "layer3/t0050")).read((1,)),
        row_values(array_of(store, MAP_PATH.replace("layer2/t0261", "layer3/t0050")), (1,)),
    )


def test_patch_tokens_of_nobody_are_removed(store: Store) -> None:
    """Else they would pass for those of any DINOv2 that is asked for next."""
    (store.path / "cond" / "zarr.json").write_text("{")
    (damaged,) = check(store).metadata
    drop_metadata(store, damaged, Silent())
    assert "cond/dinov2" not in store.arrays()


def test_metadata_of_latents_are_never_dropped(store: Store) -> None:
    (store.path / "latents" / "zarr.json").write_text("{")
    before = contents(store.path)
    (damaged,) = check(store).metadata
    with pytest.raises(StoreError, match="put the model owner/model in reach"):
        drop_metadata(store, damaged, Silent())
    assert contents(store.path) == before


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("path", "shape"), [("latents", LATENT), ("noisy/t0261", LATENT), (MAP_PATH, MAP)])
def test_metadata_are_written_as_they_were(store: Store, path: str, shape: tuple[int, ...], packed: bool) -> None:
    if packed:
        pack(store, Silent())
    before = contents(store.path)
    (store.path / path / "zarr.json").write_text("{}")
    (damaged,) = check(store).metadata
    if packed and path.startswith("noisy/"):  # how many draws it had is in the metadata alone
        assert not restore_metadata(store, damaged, shape, Silent())
        assert path not in store.arrays()
        return
    assert restore_metadata(store, damaged, shape, Silent())
    assert contents(store.path) == before


def test_latents_that_are_gone_are_found_missing(store: Store) -> None:
    shutil.rmtree(store.path / "latents")
    (damaged,) = check(store).metadata
    assert damaged == BadMetadata("latents", "there are none")
    assert restore_metadata(store, damaged, LATENT, Silent())
    assert not store.latents().present().any()


def test_left_over_files_are_listed_and_swept(store: Store) -> None:
    old, young = (store.path / "latents" / f"c.1.0.0.{name}.partial" for name in ("old", "young"))
    for file in (old, young):
        file.write_bytes(b"half")
    past = time.time() - 3600
    os.utime(old, (past, past))
    (store.path / ".removed-0123").mkdir()
    (store.path / ".removed-0123" / "c.0.0.0.0").write_bytes(b"12345")
    found = check(store)
    assert found.sound
    assert {own.path: own.bytes for own in found.left_over} == {
        ".removed-0123": 5,
        "latents/c.1.0.0.old.partial": 4,
        "latents/c.1.0.0.young.partial": 4,
    }
    sweep(store, Silent())
    assert [own.path for own in check(store).left_over] == ["latents/c.1.0.0.young.partial"]


def _edit(store: Store, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = store.path / path / "zarr.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("latents", lambda own: own["codecs"][0]["configuration"].update(endian="big"), "its codecs is"),
        ("noisy/t0261", lambda own: own["codecs"].pop(), "its codecs is"),
        (
            MAP_PATH,
            lambda own: own.update(codecs=[*own["codecs"], {"name": "gzip", "configuration": {"level": 1}}]),
            "its",
        ),
        ("noisy/t0050", lambda own: own.update(data_type="float32"), "rows of float32 are none of dualsd's"),
        ("latents", lambda own: own.update(data_type="float64"), "rows of float64 are none of dualsd's"),
        (MAP_PATH, lambda own: own.update(fill_value=0), "would read as 0"),
        (MAP_PATH, lambda own: own.update(data_type="int16", fill_value=0), "none of dualsd's"),
        ("latents", lambda own: own["chunk_key_encoding"]["configuration"].update(separator="/"), "other names"),
        ("latents", lambda own: _reshape(own, (3, 8, 8, 4)), "its shape is"),
        (MAP_PATH, lambda own: _reshape(own, (3, 6, 8, 2)), "its shape is"),
    ],
)
def test_metadata_under_which_rows_still_read(
    store: Store, path: str, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    """Edited by hand: they are found, and what they say of is made whole with no row lost."""
    shapes = {"latents": LATENT, MAP_PATH: MAP}
    before = contents(store.path)
    _edit(store, path, change)
    found = verify(open_store(store.path), Silent(), shapes.get)
    assert [(damaged.path, words in damaged.why) for damaged in found.metadata] == [(path, True)], found.metadata
    if path != "noisy/t0261":  # of which not all rows may be there
        assert restore_metadata(store, found.metadata[0], shapes.get(path, LATENT), Silent())
        assert contents(store.path) == before


def _reshape(metadata: dict[str, Any], shape: tuple[int, ...]) -> None:
    metadata["shape"] = list(shape)
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1, *shape[1:]]


def test_a_header_of_another_size_is_not_taken_for_damaged_latents(store: Store) -> None:
    """Nothing may be made anew by it."""
    with pytest.raises(
        StoreError, match=r"says images of 64 pixels .* \(4, 16, 16\), but whole ones of \(4, 8, 8\) lie"
    ):
        verify(store, Silent(), lambda _: (4, 16, 16))
