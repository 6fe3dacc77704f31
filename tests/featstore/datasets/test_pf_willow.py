"""PF-Willow's adapter, on a synthetic tree and on the real data where they are."""

import csv
from pathlib import Path

import numpy as np
import pytest

from featstore.datasets.pf_willow import PfWillowDataset
from featstore.datasets.records import Dataset, ImageRecord, ThetaRule
from featstore.errors import DatasetError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "pf-willow"


def edit(root: Path, line: int, column: str, value: str) -> Path:
    """Changes one value of the list; `line` is 1-based, the header's being 1."""
    path = root / "test_pairs.csv"
    with path.open(newline="") as stream:
        rows = list(csv.reader(stream))
    rows[line - 1][rows[0].index(column)] = value
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_images_and_pairs(willow_root: Path) -> None:
    dataset: Dataset = PfWillowDataset(willow_root)
    assert dataset.name == "pf-willow"
    assert dataset.splits == ("test",)
    assert dataset.theta_rule is ThetaRule.KEYPOINTS
    images = dataset.images()
    assert images == (
        ImageRecord("car(G)/Cars_006a", "car(G)", "PF-dataset/car(G)/Cars_006a.png"),
        ImageRecord("car(G)/Cars_007a", "car(G)", "PF-dataset/car(G)/Cars_007a.png"),
    )
    assert dataset.read(images[0]) == (willow_root / images[0].file).read_bytes()
    first, second = dataset.pairs("test")
    assert (first.source, first.target, first.category) == ("car(G)/Cars_006a", "car(G)/Cars_007a", "car(G)")
    np.testing.assert_array_equal(first.source_points, [[n + 0.5, 2 * n] for n in range(10)])
    np.testing.assert_array_equal(first.target_points, [[3 * n, n] for n in range(10)])
    np.testing.assert_array_equal(second.source_points, first.target_points)
    assert first.names == tuple(str(n) for n in range(1, 11))


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("XA3", "nan", "line 3: XA3 is 'nan', so absent, where YA3 is '2'; fill in both, or leave both empty"),
        ("YB10", "inf", "line 3: YB10 is 'inf', which is no finite number"),
        ("XA3", "1e300", "line 3: XA3 is 1e[+]300, which is no coordinate in pixels"),
        ("YB10", "12px", "line 3: YB10 is '12px', which is no finite number"),
        ("XB1", "", "line 3: XB1 is '', so absent, where YB1 is '0'; fill in both, or leave both empty"),
        ("imageA", "../Cars_006a.png", "line 3: the path .* leads out of the dataset's folder"),
        ("imageA", "PF-dataset/../../a/Cars_006a.png", "line 3: the path .* leads out of the dataset's folder"),
        ("imageB", "/tmp/car(G)/Cars_006a.png", "line 3: the path .* leads out of the dataset's folder"),
        ("imageB", "Cars_006a.png", "line 3: imageB is 'Cars_006a.png', without its category's folder"),
        (
            "imageB",
            "PF-dataset/car(G)/no.png",
            r"line 3: names the image 'PF-dataset/car\(G\)/no\.png', which is not in",
        ),
        ("imageB", "PF-dataset/car(G)/" + "x" * 300, "line 3: names the image .*, which is not in"),
    ],
)
def test_malformed_row(willow_root: Path, column: str, value: str, sentence: str) -> None:
    path = edit(willow_root, 3, column, value)
    with pytest.raises(DatasetError, match=sentence) as caught:
        PfWillowDataset(willow_root).pairs("test")
    assert str(path) in str(caught.value)


def test_two_categories_in_a_pair(willow_root: Path) -> None:
    (willow_root / "PF-dataset" / "duck(S)").mkdir()
    (willow_root / "PF-dataset" / "duck(S)" / "Duck.png").write_bytes(b"x")
    edit(willow_root, 2, "imageB", "PF-dataset/duck(S)/Duck.png")
    with pytest.raises(
        DatasetError, match=r"line 2: pairs car\(G\)/Cars_006a with duck\(S\)/Duck, which is of another"
    ):
        PfWillowDataset(willow_root).pairs("test")


def test_missing_column(willow_root: Path) -> None:
    path = willow_root / "test_pairs.csv"
    path.write_text(path.read_text().replace("YB10", "YB11", 1))
    with pytest.raises(DatasetError, match="has no column YB10"):
        PfWillowDataset(willow_root).images()


def test_huge_field(willow_root: Path) -> None:
    edit(willow_root, 2, "XA1", "1" * 200_000)
    with pytest.raises(DatasetError, match=r"line 2: it is no valid CSV \(field larger"):
        PfWillowDataset(willow_root).images()


def test_splits(willow_root: Path) -> None:
    with pytest.raises(DatasetError, match="has no split 'val', it has test"):
        PfWillowDataset(willow_root).pairs("val")


@pytest.mark.parametrize("call", ["images", "pairs"])
def test_missing_list(willow_root: Path, call: str) -> None:
    (willow_root / "test_pairs.csv").unlink()
    dataset = PfWillowDataset(willow_root)
    with pytest.raises(DatasetError, match=r"willow has no test_pairs\.csv; give the folder"):
        dataset.images() if call == "images" else dataset.pairs("test")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real PF-Willow is not at {REAL}")
def test_real_data() -> None:
    dataset = PfWillowDataset(REAL)
    images = dataset.images()
    assert len(images) == 100
    assert len({image.category for image in images}) == 10
    pairs = dataset.pairs("test")
    assert len(pairs) == 900
    assert all(pair.source_points.shape == pair.target_points.shape == (10, 2) for pair in pairs)
    assert {pair.source for pair in pairs} == {image.id for image in images}
    first = pairs[0]
    assert (first.source, first.target) == ("car(G)/Cars_006a", "car(G)/Cars_007a")
    np.testing.assert_array_equal(first.source_points[0], [47.935281, 98.158648])
    np.testing.assert_array_equal(first.source_points[9], [131.176976, 61.709622])
    np.testing.assert_array_equal(first.target_points[0], [38.448020, 159.210732])
    np.testing.assert_array_equal(first.target_points[9], [97.285792, 127.612669])


def test_a_doubled_pair_and_one_of_an_image_with_itself(willow_root: Path) -> None:
    path = willow_root / "test_pairs.csv"
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first, second, first]) + "\n")
    with pytest.raises(DatasetError, match=r"line 4: the pair .*Cars_006a -> .*Cars_007a is there already, in line 2"):
        PfWillowDataset(willow_root).pairs("test")
    path.write_text("\n".join([header, first.replace("Cars_007a", "Cars_006a")]) + "\n")
    with pytest.raises(DatasetError, match=r"line 2: pairs car\(G\)/Cars_006a with itself"):
        PfWillowDataset(willow_root).pairs("test")
