"""CUB-200-2011 in its published layout."""

from pathlib import Path

import numpy as np
import pytest

from featstore.datasets.records import ThetaRule
from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError


def test_birds(cub_root: Path) -> None:
    dataset = open_dataset("cub", cub_root.parent)
    assert (dataset.splits, dataset.theta_rule) == (("trn", "test"), ThetaRule.BOX)
    there, back = dataset.pairs("train")
    assert (there.source, there.target) == ("Black footed Albatross/Bird_1", "Black footed Albatross/Bird_2")
    assert (back.source, back.target, back.category) == (there.target, there.source, "Black footed Albatross")
    assert there.names == ("left eye",)
    np.testing.assert_array_equal(there.source_points, [[5, 6]])
    np.testing.assert_array_equal(there.target_points, [[7.5, 8]])
    assert there.target_box == (2, 2, 32, 22)
    assert [pair.names for pair in dataset.pairs("test")] == [("back",), ("back",)]
    images = dataset.images()
    assert [image.id for image in images][2:] == ["Laysan Albatross/Bird_3", "Laysan Albatross/Bird_4"]
    assert dataset.read(images[0]) == (cub_root / "images/001.Black_footed_Albatross/Bird_1.jpg").read_bytes()
    assert dataset.members("trn") == {"Black footed Albatross/Bird_1", "Black footed Albatross/Bird_2"}


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("images.txt", "1 001", "2 001", r"images\.txt, line 2: '2' is there already, in line 1; remove one"),
        (
            "images.txt",
            "001.Black_footed_Albatross/Bird_1",
            "Bird_1",
            r"line 1: the path 'Bird_1\.jpg' is not <number>",
        ),
        ("images.txt", "001.Black_footed_Albatross/Bird_1", "../1.x/Bird_1", r"line 1: the path '\.\./.* leads out of"),
        (
            "images.txt",
            "Bird_1.jpg",
            "Bird_9.jpg",
            r"line 1: names the image 'images/001\..*/Bird_9\.jpg', which is not",
        ),
        ("images.txt", "1 001", "001", r"images\.txt, line 1: '001.*' is not image path; restore"),
        ("bounding_boxes.txt", "1 1.0 2.0", "1 1.0 x", r"bounding_boxes\.txt, line 1: y is 'x', which is no finite"),
        ("bounding_boxes.txt", "1 1.0 2.0 30.0", "1 1.0 2.0", r"line 1: '1 .*' is not image x y width height"),
        (
            "bounding_boxes.txt",
            "1 1.0",
            "9 1.0",
            r"images\.txt, line 1: the image '1' is not in both of bounding_boxes",
        ),
        ("train_test_split.txt", "1 1", "1 2", r"train_test_split\.txt, line 1: is_training is '2' where 0 or 1 is"),
        ("parts/parts.txt", "2 left eye", "3 left eye", r"part_locs\.txt, line 2: the part '2' is not in parts\.txt"),
        ("parts/part_locs.txt", "1 1 3.0", "1 2 3.0", r"part_locs\.txt, line 2: the part 'left eye' of this image is"),
        ("parts/part_locs.txt", "1 1 3.0", "1 1 1e9", r"part_locs\.txt, line 1: x is 1e\+09, which is no coordinate"),
        ("parts/part_locs.txt", "4.0 1\n1 2", "4.0 yes\n1 2", r"part_locs\.txt, line 1: visible is 'yes' where 0 or 1"),
    ],
)
def test_malformed(cub_root: Path, file: str, old: str, new: str, sentence: str) -> None:
    path = cub_root / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=sentence) as caught:
        open_dataset("cub", cub_root).pairs("test")
    assert "\n" not in str(caught.value)


def test_what_is_missing(cub_root: Path, tmp_path: Path) -> None:
    (cub_root / "parts" / "parts.txt").unlink()
    with pytest.raises(DatasetError, match=r"parts\.txt cannot be read \(No such file"):
        open_dataset("cub", cub_root).pairs("test")
    (cub_root / "images.txt").unlink()
    with pytest.raises(DatasetError, match=r"holds no cub dataset \(looked for images\.txt and parts/part_locs\.txt\)"):
        open_dataset("cub", tmp_path)


def test_a_split_without_pairs_is_none(cub_root: Path) -> None:
    path = cub_root / "train_test_split.txt"
    path.write_text(path.read_text().replace("4 0", "4 1"))
    dataset = open_dataset("cub", cub_root)
    assert dataset.splits == ("trn",)
    assert len(dataset.images()) == 2
    with pytest.raises(DatasetError, match="has no split 'test', it has trn; choose of these"):
        dataset.pairs("test")
