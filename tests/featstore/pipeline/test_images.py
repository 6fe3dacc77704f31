"""The table of images against the dataset and its files: whatever reads the images says what does not fit."""

from dataclasses import replace
from pathlib import Path

import pytest

from featstore.datasets.records import Dataset
from featstore.errors import StoreError
from featstore.pipeline.build import check_unchanged, refresh, survey_images
from featstore.progress import Silent
from featstore.store.schema import ImageTable, write_images
from featstore.store.store import Store, create_store, open_store
from tests.featstore.store.small_store import HEADER, LATENT, contents


class Notes(Silent):
    """What is noted."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


@pytest.fixture
def store(tmp_path: Path, dataset: Dataset) -> Store:
    return create_store(tmp_path / "s.zarr", HEADER, survey_images(dataset, Silent()).table(), LATENT)


def edited(store: Store, table: ImageTable) -> Store:
    write_columns(store.group, table)
    return open_store(store.path)


def test_a_table_that_fits(store: Store, dataset: Dataset) -> None:
    check_unchanged(store, dataset, store.images.ids, Silent())
    before = contents(store.path)
    assert refresh(store, survey_images(dataset, Silent()), Silent())[1] == 0
    assert contents(store.path) == before


def test_a_size_that_is_not_the_file_s(store: Store, dataset: Dataset) -> None:
    """Refused by what would scale keypoints by it; `cache build` sets it right and forgets no row of the image."""
    before = contents(store.path)
    sizes = store.images.sizes.copy()
    sizes[1] = sizes[1][::-1]
    spoilt = edited(store, replace(store.images, sizes=sizes))
    with pytest.raises(StoreError, match=r"'cat/1' in .* says 46 x 70 where its file has 70 x 46 pixels: run `dualsd"):
        check_unchanged(spoilt, dataset, ["cat/1"], Silent())
    check_unchanged(spoilt, dataset, ["cat/0"], Silent())
    notes = Notes()
    mended, stale = refresh(spoilt, survey_images(dataset, Silent()), notes)
    assert (stale, mended.images.size("cat/1")) == (0, (70, 46))
    assert [note.startswith("Of 1 image(s), e.g. cat/1, the table of images said") for note in notes.sentences] == [
        True
    ]
    assert contents(store.path) == before


def test_a_category_that_is_not_the_dataset_s(store: Store, dataset: Dataset) -> None:
    spoilt = edited(store, replace(store.images, categories=("dog", *store.images.categories[1:])))
    for read in (
        lambda: check_unchanged(spoilt, dataset, ["cat/0"], Silent()),
        lambda: refresh(spoilt, survey_images(dataset, Silent()), Silent()),
    ):
        with pytest.raises(
            StoreError, match=r"'cat/0' .* category 'dog' where the dataset says 'cat'.* another --store"
        ):
            read()
