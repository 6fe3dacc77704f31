import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from featstore.backbones.base import NetworkName
from featstore.backbones.noise import Latents
from featstore.errors import StoreError
from featstore.store.images import ImageTable, write_columns
from featstore.store.keys import Extractor, PixelExtractor, map_path, noisy_path
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, create_store, open_store
from tests.featstore.store.small_store import write_small_store

FIXTURES = Path(__file__).parents[2] / "fixtures"
HEADER = StoreHeader(
    dataset="folder",
    dataset_root="/data",
    model_id="owner/model",
    model_revision="main",
    model_fingerprint="ab" * 16,
    image_size=64,
    latents=Latents.SAMPLE,
    scheduler={"beta_start": 0.00085, "trained_betas": None},
    seed=7,
)
TABLE = ImageTable(("cat/a", "cat/ö"), ("cat", "cat"), ("k0", "k1"), np.array([[60, 40], [70, 46]], dtype=np.int32))
EXTRACTOR = Extractor("ab" * 16, {"kind": "text", "template": "x"}, 8, "float32", 7)
DINO = PixelExtractor("dino", NetworkName("owner/dino", "ef" * 16), 840, "float32")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "s.zarr", HEADER, TABLE, (4, 8, 8))


def test_it_opens_as_it_was_made(store: Store) -> None:
    again = open_store(store.path)
    assert again.header == HEADER
    assert (again.images.ids, again.images.categories, again.images.keys) == (TABLE.ids, TABLE.categories, TABLE.keys)
    assert again.images.size("cat/ö") == (70, 46)


def test_plain_zarr_shows_what_the_format_says(store: Store) -> None:
    store.latents().write((1,), np.ones((4, 8, 8)))
    store.require_noisy(261, 2).write((0, 1), np.ones((4, 8, 8)))
    store.require_maps(EXTRACTOR, 2, 261, (6, 4, 4)).write((0,), np.ones((6, 4, 4)))
    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["format"] == "dualsd"
    assert group.attrs["version"] == 3
    assert group.attrs["model"] == {"id": "owner/model", "revision": "main", "fingerprint": "ab" * 16}
    assert list(group["images/id"][:]) == ["cat/a", "cat/ö"]
    assert group["images/height"][:].tolist() == [40, 46]
    for path, shape, chunks in [
        ("latents", (2, 4, 8, 8), (1, 4, 8, 8)),
        ("noisy/t0261", (2, 2, 4, 8, 8), (1, 1, 4, 8, 8)),
        (f"maps/{EXTRACTOR.key}/layer2/t0261", (2, 6, 4, 4), (1, 6, 4, 4)),
    ]:
        array = group[path]
        assert isinstance(array, zarr.Array)
        assert (array.shape, array.chunks, array.dtype) == (shape, chunks, np.float16)
        assert np.isnan(array.fill_value)
        assert [type(codec).__name__ for codec in array.compressors] == ["Crc32cCodec"]
    assert np.isnan(group["latents"][0]).all()
    assert (group["latents"][1] == 1).all()
    assert group[f"maps/{EXTRACTOR.key}"].attrs["prompt"] == {"kind": "text", "template": "x"}


def test_names_in_the_store() -> None:
    assert noisy_path(50) == "noisy/t0050"
    assert map_path(EXTRACTOR, 3, 200) == f"maps/{EXTRACTOR.key}/layer3/t0200"


def test_whatever_shapes_a_map_changes_the_extractors_key() -> None:
    others = [
        replace(EXTRACTOR, model_fingerprint="cd" * 16),
        replace(EXTRACTOR, prompt={"kind": "text", "template": "y"}),
        replace(EXTRACTOR, ensemble=1),
        replace(EXTRACTOR, dtype="float16"),
        replace(EXTRACTOR, seed=8),
    ]
    assert len({EXTRACTOR.key, *(other.key for other in others)}) == 6


def test_whatever_shapes_a_patch_map_changes_its_extractors_key() -> None:
    others = [
        replace(DINO, network=NetworkName("owner/dino", "00" * 16)),
        replace(DINO, size=672),
        replace(DINO, dtype="float16"),
    ]
    assert len({DINO.key, EXTRACTOR.key, *(other.key for other in others)}) == 5
    assert replace(DINO, network=NetworkName("/a/copy", "ef" * 16)).key == DINO.key


def test_patch_maps_lie_beside_the_unets_and_say_what_they_are(store: Store) -> None:
    store.require_maps(EXTRACTOR, 2, 261, (6, 4, 4))
    store.require_maps(DINO, "dino", None, (5, 3, 3)).write((0,), np.ones((5, 3, 3)))
    path = f"maps/{DINO.key}/dino/patches"
    assert map_path(DINO, "dino", None) == path
    assert set(store.arrays()) == {"latents", f"maps/{EXTRACTOR.key}/layer2/t0261", path}
    group = zarr.open_group(store.path, mode="r")
    assert group[f"maps/{DINO.key}"].attrs.asdict() == {
        "dino": {"id": "owner/dino", "fingerprint": "ef" * 16},
        "size": 840,
        "dtype": "float32",
    }
    assert store.pixel_extractors("dino") == [DINO]
    assert store.maps(replace(DINO, size=672), "dino", None) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "spair"}, "dataset folder, not spair"),
        ({"model_fingerprint": "cd" * 16, "model_id": "other/model"}, "owner/model.*abababab.*not other/model.*cdcd"),
        ({"image_size": 128}, "image size 64, not 128"),
        ({"seed": 8}, "seed 7, not 8"),
        ({"latents": Latents.MEAN}, "latents sample, not mean"),
        ({"scheduler": {"beta_start": 0.1}}, "noise schedule"),
    ],
)
def test_a_store_made_otherwise_is_refused_naming_both_sides(change: dict[str, object], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        HEADER.check_same(replace(HEADER, **change), "s.zarr")


def test_where_the_dataset_lies_does_not_matter() -> None:
    HEADER.check_same(replace(HEADER, dataset_root="/elsewhere", creator="9.9"), "s.zarr")


def test_no_store_or_another(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store at"):
        open_store(tmp_path / "none.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no dualsd store"):
        open_store(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="no dualsd store"):
        open_store(tmp_path / "file")
    zarr.create_group(tmp_path / "plain.zarr")
    with pytest.raises(StoreError, match="no dualsd store"):
        open_store(tmp_path / "plain.zarr")


def test_a_newer_store_is_refused_with_the_version_that_wrote_it(store: Store) -> None:
    store.group.attrs.update({"version": 5, "creator": "3.1"})
    with pytest.raises(StoreError, match=r"store version 5, written by dualsd 3\.1"):
        open_store(store.path)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"model": "x"},
        {"model": {"id": 3, "revision": None, "fingerprint": "ab"}},
        {"model": {"id": "m", "revision": 1, "fingerprint": "ab"}},
        {"dataset": {"name": "", "root": None}},
        {"preprocessing": {"size": -64}},
        {"preprocessing": {"size": 0}},
        {"preprocessing": {"size": 64.5}},
        {"preprocessing": {"size": "64"}},
        {"preprocessing": {"size": True}},
        {"seed": 0.5},
        {"seed": None},
        {"seed": "7"},
        {"latents": "median"},
        {"dtype": "float32"},
        {"scheduler": 3},
    ],
)
def test_a_damaged_header(store: Store, nonsense: dict[str, object]) -> None:
    store.group.attrs.update(nonsense)
    with pytest.raises(StoreError, match=r"damaged header.*set it right in its zarr\.json"):
        open_store(store.path)


def test_an_image_that_stands_twice(tmp_path: Path) -> None:
    store = open_store(shutil.copytree(FIXTURES / "store-v1", tmp_path / "old.zarr"))
    table = store.images
    write_columns(store.group, replace(table, ids=(table.ids[0], table.ids[0], *table.ids[2:])))
    with pytest.raises(StoreError, match=r"has the image 'cat/a' more than once"):
        open_store(store.path)


def test_a_group_that_a_killed_run_left_out_is_made_and_a_damaged_one_is_no_obstacle(tmp_path: Path) -> None:
    """Versions before wrote an array's groups in any order; a listing finds nothing below a folder that is no group."""
    store = write_small_store(tmp_path / "s.zarr")
    group = store.path / "noisy" / "zarr.json"
    whole = group.read_bytes()
    group.unlink()
    assert "noisy" not in dict(open_store(store.path).group.groups())
    open_store(store.path).require_noisy(50, 2)
    assert group.read_bytes() == whole
    group.write_text("{")
    assert open_store(store.path).require_noisy(50, 2).present().all()
