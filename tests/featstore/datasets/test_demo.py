"""The demo dataset: what ships is what its tool draws, and pairs are those of its rules."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featstore.datasets.demo import SIZES, TEST_PAIRS, DemoDataset
from featstore.datasets.records import ThetaRule
from featstore.errors import DatasetError
from tools.demo_drawing.picture import SUBJECTS, compose, render

DATASET = DemoDataset()
SIDE = 128


def test_lists_every_split_of_every_category_once() -> None:
    images = DATASET.images()
    assert [image.id for image in images] == sorted({image.id for image in images})
    assert len(images) == len(SUBJECTS) * sum(SIZES.values())
    assert {image.category for image in images} == set(SUBJECTS) >= {"bird", "car", "fish", "person"}
    assert DATASET.name == "demo"
    assert DATASET.splits == ("trn", "val", "test")
    assert DATASET.theta_rule is ThetaRule.BOX


def test_no_picture_is_in_two_splits_or_twice_in_one() -> None:
    digests = [hashlib.sha256(DATASET.read(image)).digest() for image in DATASET.images()]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("category", sorted(SUBJECTS))
def test_files_are_binary_ppm_of_what_is_drawn(category: str) -> None:
    """Keys, and with them noise and every number, stand on these bytes."""
    for split, number in (("trn", 59), ("val", 0), ("test", 7)):
        image = next(own for own in DATASET.images() if own.id == f"{category}/{split}{number:04d}")
        data = DATASET.read(image)
        assert data.startswith(b"P6\n128 128\n255\n")
        assert len(data) == 15 + 3 * SIDE * SIDE
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "PPM"
            assert np.array_equal(np.asarray(opened), np.asarray(render(category, split, number)))


@pytest.mark.parametrize("split", ["trn", "val", "test"])
def test_pairs_share_category_and_keypoints(split: str) -> None:
    pairs = DATASET.pairs(split)
    split_of = {image.id: image.id.partition("/")[2][:-4] for image in DATASET.images()}
    each = TEST_PAIRS if split == "test" else SIZES[split] * (SIZES[split] - 1)
    assert len(pairs) == len(SUBJECTS) * each
    assert len({(pair.source, pair.target) for pair in pairs}) == len(pairs)
    for pair in pairs[::7]:
        assert pair.source != pair.target
        assert split_of[pair.source] == split_of[pair.target] == split
        assert pair.source.split("/")[0] == pair.target.split("/")[0] == pair.category
        assert set(pair.names) <= set(SUBJECTS[pair.category].keypoints)
        assert pair.source_points.shape == pair.target_points.shape == (len(pair.names), 2)
        source = compose(pair.category, split, int(pair.source[-4:]))
        target = compose(pair.category, split, int(pair.target[-4:]))
        assert set(pair.names) == set(source.keypoints) & set(target.keypoints)
        assert [source.keypoints[name] for name in pair.names] == [tuple(point) for point in pair.source_points]
        assert [target.keypoints[name] for name in pair.names] == [tuple(point) for point in pair.target_points]
        assert pair.target_box is not None
        left, top, right, bottom = pair.target_box
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        assert max(right - left, bottom - top) > 0.4 * SIDE


def test_unknown_splits_and_pictures_are_refused() -> None:
    with pytest.raises(DatasetError, match="training"):
        DATASET.pairs("training")
    image = DATASET.images()[0]
    for file in ("", "bird", "../bird/trn0000.webp", "bird/trn0001.webp", "/bird/test0000.webp"):
        with pytest.raises(DatasetError, match="no picture of the demo"):
            DATASET.read(replace(image, file=file))
    with pytest.raises(DatasetError, match="no picture of the demo"):
        DATASET.read(replace(image, id="whale/trn0000", file="whale/trn0000.webp"))
