"""The table of images against the dataset and its files: whatever reads the images says what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

from featstore.datasets.records import Dataset
from featstore.errors import StoreError
from featstore.pipeline.build import check_unchanged, survey_images
from featstore.progress import Silent
from featstore.store.images import LOG, Change, table_of
from featstore.store.store import Store, create_store, open_store, update_images
from tests.featstore.store.small_store import HEADER, LATENT, contents


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> Store:
    return create_store(
        tmp_path / "s.zarr", HEADER, table_of([Change(survey_images(dataset, Silent()).entries())]), LATENT
    )


def edited(store: Store, **change: Any) -> Store:
    """The store, whose log says something else of the second image."""
    entries = [*map(store.images.entry, range(len(store.images)))]
    entries[1] = replace(entries[1], **change)
    (store.path / LOG / "000000.json").write_bytes(Change(tuple(entries)).to_json())
    return open_store(store.path)


def refreshed(store: Store, dataset: Dataset) -> Store:
    """As `cache build` writes down what the data set has."""
    return update_images(store, survey_images(dataset, Silent()).entries(store.images), Silent())


def test_a_table_that_fits(store: Store, dataset: Dataset) -> None:
    check_unchanged(store, dataset, store.images.ids, Silent())
    before = contents(store.path)
    assert refreshed(store, dataset).images.entries == 1
    assert contents(store.path) == before


def test_a_size_that_is_not_the_file_s(store: Store, dataset: Dataset) -> None:
    """Refused by what would scale keypoints by it; `cache build` sets it right, and the image keeps its row."""
    columns = {name: data for name, data in contents(store.path).items() if "/log/" not in name}
    spoilt = edited(store, size=(46, 70))
    with pytest.raises(StoreError, match=r"'cat/1' in .* says 46 x 70 where its file has 70 x 46 pixels: run `dualsd"):
        check_unchanged(spoilt, dataset, ["cat/1"], Silent())
    check_unchanged(spoilt, dataset, ["cat/0"], Silent())
    mended = refreshed(spoilt, dataset)
    assert (mended.images.row("cat/1"), mended.images.size("cat/1"), len(mended.images)) == (1, (70, 46), 6)
    check_unchanged(mended, dataset, store.images.ids, Silent())
    assert columns.items() <= contents(store.path).items()
    assert verify_columns(mended)


def verify_columns(store: Store) -> bool:
    """Whether plain zarr reads what the log says."""
    group = zarr.open_group(store.path, mode="r")
    sizes = [[int(value) for value in group[f"images/{name}"][:]] for name in ("width", "height")]  # type: ignore[index]
    return sizes == store.images.sizes.T.tolist()


def test_a_category_that_is_not_the_dataset_s(store: Store, dataset: Dataset) -> None:
    """The maps may be another prompt's: refused, and a build gives the image a new row."""
    spoilt = edited(store, category="dog")
    with pytest.raises(StoreError, match=r"'cat/1' .* says category 'dog' where the dataset says 'cat'"):
        check_unchanged(spoilt, dataset, ["cat/1"], Silent())
    mended = refreshed(spoilt, dataset)
    assert (mended.images.row("cat/1"), mended.images.gone) == (6, {1})
    check_unchanged(mended, dataset, mended.images.rows, Silent())
