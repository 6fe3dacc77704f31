"""Maps that are kept as 8-bit integers with a scale a channel: what lies on the disk, and what is never mistaken."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from featstore.backbones.base import NetworkName
from featstore.errors import StoreError
from featstore.progress import Silent
from featstore.store.care import BadMetadata, MapCriteria, choose_maps, prune, restore_metadata, verify
from featstore.store.keys import Extractor, PixelExtractor, Stored, map_path
from featstore.store.pack import pack, unpack
from featstore.store.row_file import ScaledIntegers, encoding_for
from featstore.store.source import StoredMaps
from featstore.store.store import Store, open_store, summarise
from matcher.configuration import LayerSpec
from tests.featstore.store.small_store import EXTRACTOR, HEADER, array_of, contents, flip, write_small_store

INT8 = dataclasses.replace(EXTRACTOR, stored=Stored.INT8)
PATH = map_path(INT8, 2, 261)
SHAPE = (6, 4, 4)
IMAGES = 3
SIDE = 4


def values_of(row: int) -> NDArray[np.float32]:
    """A map whose channels differ by orders of magnitude, one of them zero."""
    drawn = np.random.default_rng(row).normal(size=SHAPE).astype(np.float32)
    return drawn * np.array([1e-6, 0, 0.1, 1, 3e4, 1e9], dtype=np.float32)[:, None, None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One with float16 maps, and int8 maps of the same extractor beside them; the last row is missing."""
    store = write_small_store(tmp_path / "s.zarr", IMAGES)
    array = store.require_maps(INT8, 2, 261, SHAPE)
    for row in range(IMAGES - 1):
        array.write((row,), values_of(row))
    return store


def read_plainly(store: Store, row: int) -> NDArray[np.float32]:
    """As the documentation says that anybody can: zarr and three lines of numpy."""
    stored = zarr.open_group(store.path, mode="r")[PATH][row]  # type: ignore[index]
    scales = np.ascontiguousarray(stored[:, -4:]).view("<f4")
    return (stored[:, :-4] * scales).reshape(len(stored), SIDE, SIDE)  # type: ignore[no-any-return]


def quantised_plainly(values: NDArray[np.float32]) -> bytes:
    """A row's bytes, value by value."""
    found = b""
    for channel in values:
        scale = np.float32(max(abs(float(value)) for value in channel.ravel())) / np.float32(127)
        for value in channel.ravel():
            step = 0 if scale == 0 else round(float(np.float32(value) / scale))
            found += int(step).to_bytes(1, "little", signed=True)
        found += np.array(scale, dtype="<f4").tobytes()
    return found


def test_a_row_by_hand() -> None:
    encoding = ScaledIntegers()
    stored = encoding.encode(np.array([[[127.0, -127], [1.4, -0.6]], [[0, 0], [0, 0]]]))
    assert stored.tolist() == [[127, -127, 1, -1, 0, 0, -128, 63], [0] * 8]  # the scale 1.0 is the bytes 00 00 80 3f
    assert encoding.is_row(stored)
    np.testing.assert_array_equal(encoding.decode(stored), [[[127, -127], [1, -1]], [[0, 0], [0, 0]]])


def test_a_row_is_its_channels_and_their_scales(store: Store) -> None:
    for row in range(IMAGES - 1):
        content = (store.path / PATH / f"c.{row}.0.0").read_bytes()
        assert content[:-4] == quantised_plainly(values_of(row))
        assert len(content) == 6 * (16 + 4) + 4 == array_of(store, PATH).row_bytes


def test_values_are_off_by_half_a_scale_at_most(store: Store) -> None:
    for row in range(IMAGES - 1):
        values = values_of(row)
        found = array_of(store, PATH).read((row,))
        assert found.dtype == np.float32
        largest = np.abs(values).max(axis=(1, 2), keepdims=True)
        assert (np.abs(found - values) <= largest / 127 / 2 * (1 + 1e-5)).all()
        assert (found[1] == 0).all()
        # a channel's largest value is kept, to float32's rounding
        np.testing.assert_allclose(np.abs(found).max(axis=(1, 2)), largest[:, 0, 0], rtol=1e-6)


def test_anybody_reads_it_with_zarr_and_numpy(store: Store) -> None:
    for row in range(IMAGES - 1):
        np.testing.assert_array_equal(read_plainly(store, row), array_of(store, PATH).read((row,)))


def test_the_matcher_gets_float32(store: Store) -> None:
    found = StoredMaps(store, INT8).load("cat/1", LayerSpec("2", 261))
    np.testing.assert_array_equal(found.numpy(), array_of(store, PATH).read((1,)))
    found[:] = 0  # its own memory
    assert StoredMaps(store, INT8).load("cat/1", LayerSpec("2", 261)).abs().max() > 0


def test_a_missing_row_is_missing_never_zeros(store: Store) -> None:
    array = array_of(store, PATH)
    assert array.present().tolist() == [True, True, False]
    array.delete((0,))
    assert array.present().tolist() == [False, True, False]
    for row in (0, 2):
        with pytest.raises(StoreError, match=rf"Row {row} of array .* is not cached"):
            array.read((row,))
        assert np.isnan(read_plainly(store, row)).all()


def test_no_row_reads_as_a_missing_one() -> None:
    """Whatever is written, its scales are finite: the fill value's, four bytes 0xFF, are not."""
    encoding = ScaledIntegers()
    missing = np.full((2, 8), encoding.fill_value, dtype=np.int8)
    assert not encoding.is_row(missing)
    for values in (np.zeros((2, 2, 2)), np.full((2, 2, 2), -1.0), np.full((2, 2, 2), 3e38), np.full((2, 2, 2), 1e-45)):
        assert encoding.is_row(encoding.encode(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_no_row(store: Store, bad: float) -> None:
    array = array_of(store, PATH)
    values = values_of(2).astype(np.float64)
    values[3, 1, 2] = bad
    with pytest.raises(StoreError, match=r"Row 2 of .* would hold values that are not finite in int8"):
        array.write((2,), values)
    assert not array.present()[2]


@pytest.mark.parametrize("largest", [1e-45, 1e-44, 1e-38, 3.4e38])
def test_the_smallest_and_the_largest_channels(largest: float) -> None:
    encoding = ScaledIntegers()
    values = np.array([[[largest, -largest], [0, largest / 3]]], dtype=np.float32)
    found = encoding.decode(encoding.encode(values))
    assert np.isfinite(found).all()
    assert (np.abs(found - values) <= max(largest / 127, 2e-43)).all()


def test_the_worst_a_scale_can_be_is_found(store: Store) -> None:
    """Bytes whose checksum is right, written by nobody's dualsd."""
    plain = zarr.open_group(store.path, mode="r+")[PATH]
    assert isinstance(plain, zarr.Array)
    for scale in (np.nan, np.inf, -1.0):
        row: Any = np.zeros((6, 20), dtype=np.int8)
        row[:, -4:] = np.full((6, 1), scale, dtype="<f4").view(np.int8)
        plain[0] = row
        with pytest.raises(StoreError, match="is not cached"):
            array_of(store, PATH).read((0,))
        assert [(bad.array, bad.row) for bad in verify(store, Silent()).bad] == [(PATH, (0,))]


def test_every_flipped_bit_is_found(store: Store) -> None:
    file = store.path / PATH / "c.1.0.0"
    for position in range(0, file.stat().st_size, 7):
        flip(file, position, position % 8)
        assert [bad.row for bad in verify(store, Silent()).bad] == [(1,)]
        with pytest.raises(StoreError, match="damaged"):
            array_of(store, PATH).read((1,))
        flip(file, position, position % 8)
    assert verify(store, Silent()).sound


def test_packed_and_unpacked_it_is_what_it_was(store: Store) -> None:
    array_of(store, PATH).write((2,), values_of(2))
    before = contents(store.path / PATH)
    pack(store, Silent())
    again = open_store(store.path)
    assert array_of(again, PATH).packed
    assert verify(again, Silent()).sound
    for row in range(IMAGES):
        np.testing.assert_array_equal(read_plainly(again, row), array_of(again, PATH).read((row,)))
        np.testing.assert_allclose(array_of(again, PATH).read((row,))[5], values_of(row)[5], rtol=0, atol=3e7)
    unpack(again, again.array_paths(), Silent())
    assert contents(store.path / PATH) == before


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_are_written_as_they_were(store: Store, packed: bool) -> None:
    array_of(store, PATH).write((2,), values_of(2))
    if packed:
        pack(store, Silent())
    metadata = store.path / PATH / "zarr.json"
    before = json.loads(metadata.read_text())
    metadata.write_text("{")
    assert restore_metadata(open_store(store.path), BadMetadata(PATH, ""), SHAPE, "int8")
    assert json.loads(metadata.read_text()) == before
    assert verify(open_store(store.path), Silent()).sound


def test_both_kinds_of_a_prompt_live_side_by_side(store: Store) -> None:
    assert INT8.key != EXTRACTOR.key
    assert {extractor.stored for extractor in store.extractors()} == {Stored.FLOAT16, Stored.INT8}
    assert Extractor.from_description(store.attributes(f"maps/{INT8.key}")) == INT8
    arrays = {array.path: array for array in summarise(store)}
    own = arrays[PATH]
    assert (own.row_shape, own.present, own.rows, own.bytes) == (SHAPE, 2, 3, 2 * (6 * 20 + 4))
    assert own.what == "'a photo of a {category}', ensemble 8, float32, kept as int8"
    prune(store, choose_maps(store, MapCriteria(extractor=INT8.key)))
    left = open_store(store.path)
    assert left.array(PATH) is None
    assert array_of(left, map_path(EXTRACTOR, 2, 261)).present().all()


def test_the_names_of_float16_maps_are_what_they_were() -> None:
    """The hash of DESIGN's description, which knows nothing of how maps are kept."""
    described = {
        "dtype": "float32",
        "ensemble": 8,
        "model_fingerprint": "ab" * 16,
        "prompt": {"kind": "text", "template": "a photo of a {category}"},
        "seed": 7,
    }
    named = [(EXTRACTOR, described), (INT8, {**described, "stored": "int8"})]
    for extractor, description in named:
        text = json.dumps(description, sort_keys=True).encode()
        assert extractor.key == hashlib.blake2b(text, digest_size=8).hexdigest()
    dino = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32")
    assert dino.describe() == {"dino": {"id": "owner/dino", "fingerprint": "ef" * 16}, "size": 840, "dtype": "float32"}


def test_the_store_says_that_it_needs_a_newer_dualsd(store: Store, tmp_path: Path) -> None:
    """An older one would call such arrays damaged, and offer to take them away: it is to refuse the store."""

    def version(path: Path) -> int:
        return int(json.loads((path / "zarr.json").read_text())["attributes"]["version"])

    assert version(store.path) == open_store(store.path).header.version == 2
    assert open_store(store.path).header == dataclasses.replace(HEADER, version=2)
    plain = write_small_store(tmp_path / "plain.zarr")
    assert version(plain.path) == plain.header.version == 1


def test_rows_of_patch_maps_too(store: Store) -> None:
    extractor = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32", Stored.INT8)
    store.require_maps(extractor, "dino", None, SHAPE).write((1,), values_of(1))
    assert store.pixel_extractors("dino") == [extractor]
    found = StoredMaps(store, None, {"dino": extractor}).load("cat/1", LayerSpec("dino", None))
    np.testing.assert_array_equal(found.numpy(), array_of(store, PATH).read((1,)))
    assert verify(store, Silent()).sound


def test_a_store_with_patch_maps_is_sound(store: Store) -> None:
    extractor = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32")
    store.require_maps(extractor, "dino", None, SHAPE).write((1,), values_of(3) * 1e-6)
    assert verify(store, Silent()).sound


def test_other_integers_are_none_of_dualsds(store: Store) -> None:
    """Their missing rows would read as zeros, or as nothing that a row is not."""
    for name, dtype, shape, fill in (
        ("zeros", "int8", (6, 20), 0),
        ("odd", "int8", (6, 21), -1),
        ("wide", "int16", (6, 20), -1),
        ("unsigned", "uint8", (6, 20), 255),
    ):
        path = f"maps/{INT8.key}/layer2/{name}"
        store.group.create_array(path, shape=(IMAGES, *shape), chunks=(1, *shape), dtype=dtype, fill_value=fill)
        with pytest.raises(StoreError, match="damaged metadata"):
            store.array(path)


def test_float16_where_int8_belongs_is_refused(store: Store) -> None:
    damaged = map_path(INT8, 3, 50)
    assert restore_metadata(store, BadMetadata(damaged, ""), SHAPE, "float16")
    with pytest.raises(StoreError, match=r"holds float16 where int8 belongs: delete that folder"):
        store.require_maps(INT8, 3, 50, SHAPE)


def test_maps_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 4, 5\) is no shape of square maps"):
        encoding_for("int8").stored_shape((6, 4, 5))


def test_half_the_disk() -> None:
    """SD 2-1's layers 2 and 3."""
    for shape in ((1280, 48, 48), (640, 96, 96)):
        sizes = [math.prod(encoding_for(name).stored_shape(shape)) * np.dtype(name).itemsize for name in ("int8", "f2")]
        assert 0.5 <= sizes[0] / sizes[1] < 0.501
