"""PF-Pascal's adapter on synthetic trees in both published layouts."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from featstore.datasets import pf_pascal
from featstore.datasets.agreement import agreeing
from featstore.datasets.pf_pascal import CATEGORIES, PfPascalDataset, read_keypoints, read_numeric_variable
from featstore.datasets.records import Dataset, ImageRecord, Points, ThetaRule
from featstore.errors import DatasetError, ImageError
from featstore.pipeline.pairs import overlap, sizes_from_files

HEADER = "source_image,target_image,class"
A, B = (f"PF-dataset-PASCAL/JPEGImages/2008_00000{number}.jpg" for number in (1, 2))


def mat(root: Path, number: int = 2) -> Path:
    return root / "PF-dataset-PASCAL" / "Annotations" / "aeroplane" / f"2008_00000{number}.mat"


def test_categories() -> None:
    assert len(CATEGORIES) == 20
    assert list(CATEGORIES) == sorted(CATEGORIES)


def test_images_of_all_splits(pascal_root: Path) -> None:
    dataset: Dataset = PfPascalDataset(pascal_root)
    assert dataset.name == "pf-pascal"
    assert dataset.splits == ("trn", "val", "test")
    assert dataset.theta_rule is ThetaRule.IMAGE
    file = "PF-dataset-PASCAL/JPEGImages/2008_000001.jpg"
    images = dataset.images()
    assert images[:2] == (
        ImageRecord("aeroplane/2008_000001", "aeroplane", file),
        ImageRecord("aeroplane/2008_000001~mirrored", "aeroplane", file, mirrored=True),
    )
    assert [image.id for image in images[2:]] == ["aeroplane/2008_000002", "aeroplane/2008_000002~mirrored"]
    assert dataset.read(images[1]) == (pascal_root / file).read_bytes()


def test_absent_keypoints_are_dropped_on_both_sides(pascal_root: Path) -> None:
    (pair,) = PfPascalDataset(pascal_root).pairs("test")
    assert (pair.source, pair.target, pair.category) == ("aeroplane/2008_000001", "aeroplane/2008_000002", "aeroplane")
    np.testing.assert_array_equal(pair.source_points, [[1.5, 2], [30, 10]])
    np.testing.assert_array_equal(pair.target_points, [[7, 8], [11, 12.5]])
    assert pair.names == ("1", "3")
    assert pair.target_box is None
    (reverse,) = PfPascalDataset(pascal_root).pairs("val")
    np.testing.assert_array_equal(reverse.source_points, pair.target_points)


@pytest.mark.parametrize("pad", [0.0, -1.0])
def test_padding_is_absent_mirrored_too(pascal_root: Path, pad: float) -> None:
    for number in (1, 2):
        points = scipy.io.loadmat(mat(pascal_root, number))["kps"]
        scipy.io.savemat(mat(pascal_root, number), {"kps": np.vstack([points, np.full((3, 2), pad)])})
    dataset, notes = PfPascalDataset(pascal_root), list[str]()
    sizes = sizes_from_files(dataset, {image.id for image in dataset.images()})
    for pair in agreeing(dataset, dataset.pairs("trn"), sizes.__getitem__, notes.append):
        assert pair.names == ("1", "3")
    assert len(notes) == 1
    assert "12 keypoints of pf-pascal, e.g. '5' of aeroplane/2008_000001" in notes[0]


def test_mirrored_pairs(pascal_root: Path) -> None:
    plain, mirrored = PfPascalDataset(pascal_root).pairs("trn")
    assert plain.source == "aeroplane/2008_000001"
    assert (mirrored.source, mirrored.target) == ("aeroplane/2008_000001~mirrored", "aeroplane/2008_000002~mirrored")
    # W - x: the source is 40 pixels wide, the target 60.
    np.testing.assert_array_equal(mirrored.source_points, [[38.5, 2], [10, 10]])
    np.testing.assert_array_equal(mirrored.target_points, [[53, 8], [49, 12.5]])
    np.testing.assert_array_equal(plain.source_points, [[1.5, 2], [30, 10]])
    ids = {image.id for image in PfPascalDataset(pascal_root).images()}
    assert {mirrored.source, mirrored.target, plain.source, plain.target} <= ids


def test_lists_inside_the_data_folder(pascal_folder: Path) -> None:
    for root, prefix in ((pascal_folder, ""), (pascal_folder.parent, "PF-dataset-PASCAL/")):
        dataset = PfPascalDataset(root)
        assert dataset.splits == ("val", "test")
        assert [image.file for image in dataset.images()] == [
            f"{prefix}JPEGImages/2008_000001.jpg",
            f"{prefix}JPEGImages/2008_000002.jpg",
        ]
        (pair,) = dataset.pairs("test")
        np.testing.assert_array_equal(pair.source_points, [[1.5, 2], [30, 10]])
        assert dataset.read(dataset.images()[0])


def test_each_annotation_is_read_once(pascal_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pascal_root / "test_pairs.csv").write_text("\n".join([HEADER, f"{A},{B},1", f"{B},{A},1"]))
    loads: list[Path] = []

    def counting(path: Path) -> Points:
        loads.append(path)
        return read_keypoints(path)

    monkeypatch.setattr(pf_pascal, "read_keypoints", counting)
    assert len(PfPascalDataset(pascal_root).pairs("test")) == 2
    assert sorted(loads) == [mat(pascal_root, 1), mat(pascal_root, 2)]


def test_unknown_split(pascal_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"no split 'trn', it has val, test; .*looked for \{trn,val,test\}_pairs"):
        PfPascalDataset(pascal_folder).pairs("trn")


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no \{trn,val,test\}_pairs\.csv beside or in PF-dataset-PASCAL"):
        PfPascalDataset(tmp_path).images()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["source_image,target_image", f"{A},{B}"], r"has no column class \(its header is 'source_image,target_image'"),
        ([HEADER], "has no rows"),
        ([], "has no rows"),
        ([HEADER, f"{A},{B}"], "line 2: it has 2 values where the header names 3 columns"),
        ([HEADER, f"{A},{B},x"], "line 2: class is 'x', which is no finite number"),
        ([HEADER, f"{A},{B},nan"], "line 2: class is 'nan', which is no finite number"),
        ([HEADER, f"{A},{B},0"], r"line 2: class is 0 where 1 \(aeroplane\) to 20"),
        ([HEADER, f"{A},{B},21"], r"line 2: class is 21 where 1 \(aeroplane\) to 20"),
        ([HEADER, f"{A},{B},1.5"], r"line 2: class is 1\.5 where"),
        ([HEADER, f",{B},1"], "line 2: the column source_image is empty"),
        ([HEADER, f"{A},PF-dataset-PASCAL/JPEGImages/x.jpg,1"], r"line 2: names the image .*/x\.jpg', which is not in"),
        ([HEADER, f"{A},../../x.jpg,1"], r"line 2: the path '\.\./\.\./x\.jpg' leads out of"),
        ([HEADER, f"{A},/etc/passwd,1"], "line 2: the path '/etc/passwd' leads out of"),
        ([HEADER, f"{A},C:\\x.jpg,1"], "line 2: the path .* leads out of"),
        ([HEADER, f"{A},{B},2"], r"line 2: the annotation .*bicycle.2008_000001\.mat of the image bicycle/2008_000001"),
        ([f"{HEADER},flip", f"{A},{B},1,2"], "line 2: flip is 2 where 0"),
        ([f"{HEADER},class", f"{A},{B},1,1"], "names a column twice"),
        ([HEADER, f'"{A},{B},1'], "is no valid CSV"),
    ],
)
def test_malformed_list(pascal_root: Path, rows: list[str], sentence: str) -> None:
    path = pascal_root / "test_pairs.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(DatasetError, match=sentence) as caught:
        PfPascalDataset(pascal_root).pairs("test")
    assert str(path) in str(caught.value)


def test_training_list_needs_flip(pascal_root: Path) -> None:
    (pascal_root / "trn_pairs.csv").write_text(f"{HEADER}\n{A},{B},1\n")
    with pytest.raises(DatasetError, match=r"trn_pairs\.csv has no column flip"):
        PfPascalDataset(pascal_root).images()


def test_undecodable_list(pascal_root: Path) -> None:
    (pascal_root / "test_pairs.csv").write_bytes(HEADER.encode() + b"\n\xe9,b,1")
    with pytest.raises(DatasetError, match="is no UTF-8 text"):
        PfPascalDataset(pascal_root).images()


def test_missing_image(pascal_root: Path) -> None:
    (pascal_root / B).unlink()
    with pytest.raises(DatasetError, match=r"trn_pairs\.csv, line 2: names the image .*2008_000002\.jpg"):
        PfPascalDataset(pascal_root).images()


def test_two_files_with_one_id(pascal_root: Path) -> None:
    shutil.copy(pascal_root / B, (pascal_root / B).with_suffix(".png"))
    (pascal_root / "test_pairs.csv").write_text(f"{HEADER}\n{A},{B.replace('.jpg', '.png')},1\n")
    with pytest.raises(
        DatasetError, match=r"test_pairs\.csv, line 2: .* would both be the image aeroplane/2008_000002"
    ):
        PfPascalDataset(pascal_root).images()


def test_no_common_keypoint(pascal_root: Path) -> None:
    scipy.io.savemat(mat(pascal_root), {"kps": np.full((4, 2), np.nan)})
    with pytest.raises(
        DatasetError,
        match=r"test_pairs\.csv, line 2: the pair aeroplane/2008_000001 -> aeroplane/2008_000002 has no keypoint",
    ):
        PfPascalDataset(pascal_root).pairs("test")


def test_counts_that_disagree(pascal_root: Path) -> None:
    scipy.io.savemat(mat(pascal_root), {"kps": np.ones((5, 2))})
    with pytest.raises(DatasetError, match="has 4 keypoints in the source's annotation and 5 in the target's"):
        PfPascalDataset(pascal_root).pairs("test")


def saved(**variables: Any) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no MATLAB file with a readable variable kps"),
        (b"not a mat file" * 20, "is no MATLAB file with a readable variable kps"),
        (saved(kps=np.ones((4, 2)))[:150], "is no MATLAB file with a readable variable kps"),
        (saved(points=np.ones((4, 2))), "has no variable kps"),
        (saved(kps=np.ones((4, 3))), r"kps has shape \(4, 3\) where \(n, 2\) is needed"),
        (saved(kps=np.ones((4, 2, 1, 2))), r"kps has shape \(4, 2, 1, 2\)"),
        (saved(kps="text"), "the variable is no array of real numbers"),
        (saved(kps=np.ones((4, 2)) * 1j), "the variable is no array of real numbers"),
        (saved(kps=np.array([[1, "a"]], dtype=object)), "the variable is no array of real numbers"),
        (saved(kps={"x": 1}), "the variable is no array of real numbers"),
        (saved(kps=scipy.sparse.csc_matrix(np.ones((4, 2)))), "the variable is no array of real numbers"),
        (saved(kps=np.full((4, 2), -1e300)), "kps holds 1e[+]300, which is no coordinate in pixels"),
        (saved(kps=np.full((4, 2), np.inf)), "kps holds inf, which is no coordinate in pixels"),
    ],
)
def test_malformed_mat(pascal_root: Path, content: bytes, sentence: str) -> None:
    mat(pascal_root).write_bytes(content)
    with pytest.raises(DatasetError, match=sentence) as caught:
        PfPascalDataset(pascal_root).pairs("test")
    assert str(mat(pascal_root)) in str(caught.value)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"junk")])
def test_mirroring_an_unreadable_image(pascal_root: Path, damage: Callable[[Path], object]) -> None:
    damage(pascal_root / A)
    with pytest.raises(ImageError, match="Image aeroplane/2008_000001~mirrored"):
        PfPascalDataset(pascal_root).pairs("trn")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint8, np.int16, np.int64])
def test_number_types_beside_other_variables(tmp_path: Path, kind: type[Any], compressed: bool) -> None:
    path = tmp_path / "a.mat"
    others = {"name": "text", "nested": {"x": 1}, "bbox": np.ones((1, 4))}
    scipy.io.savemat(path, {**others, "kps": np.array([[1, 2], [3, 4], [5, 6]], kind)}, do_compression=compressed)
    points = read_keypoints(path)
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points, [[1, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize(("at", "value"), [(144, 5), (145, 8), (176, 0), (177, 1)])
def test_bytes_on_which_scipy_would_crash(tmp_path: Path, at: int, value: int) -> None:
    """The array's class, its flags and its data's type: loadmat of scipy 1.17 ends the process on each, for which
    scipy reads no dataset here."""
    content = bytearray(saved(kps=np.array([[1.0, np.nan], [3, 4]]), bbox=np.ones((1, 4))))
    content[at] = value
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is no MATLAB file with a readable variable kps"):
        read_keypoints(path)


REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "pf-willow"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real PF-Willow is not at {REAL}")
def test_files_that_matlab_wrote_read_as_scipy_reads_them() -> None:
    """PF-Willow's annotations come from the same authors' MATLAB as PF-Pascal's. scipy is the independent reader."""
    files = list(REAL.glob("PF-dataset/*/*.mat"))
    assert len(files) == 100
    for path in files:
        points = read_numeric_variable(path.read_bytes(), "pts_coord")
        assert points is not None
        assert points.shape == (2, 10)
        np.testing.assert_array_equal(points, scipy.io.loadmat(path)["pts_coord"])


@pytest.mark.parametrize(
    "name",
    [
        *("train_pairs.csv", "trn_pairs_pf_pascal.csv", "train_pairs_pf_pascal.csv"),
        *("PF-dataset-PASCAL/train_pairs_pf_pascal.csv", "image_pairs/train_pairs.csv"),
    ],
)
def test_case_15_pf_pascal_train_list_name(pascal_root: Path, name: str) -> None:
    """The training list is found under the names in which it circulates, and its split is `trn` or `train`."""
    expected = [(pair.source, pair.target) for pair in PfPascalDataset(pascal_root).pairs("trn")]
    (pascal_root / name).parent.mkdir(exist_ok=True)
    (pascal_root / "trn_pairs.csv").rename(pascal_root / name)
    dataset = PfPascalDataset(pascal_root)
    assert dataset.splits == ("trn", "val", "test")
    for split in ("trn", "train"):
        assert [(pair.source, pair.target) for pair in dataset.pairs(split)] == expected
    assert len(dataset.images()) == 4
    (pascal_root / name).write_text(f"{HEADER}\n{A},{B},1\n")
    with pytest.raises(DatasetError, match="has no column flip"):
        dataset.pairs("trn")


def test_two_training_lists(pascal_root: Path) -> None:
    """Copies, in whichever order and with whichever folders before the names, are one list; others are two."""
    header, first, second = (pascal_root / "trn_pairs.csv").read_text().splitlines()
    other = pascal_root / "PF-dataset-PASCAL" / "train_pairs_pf_pascal.csv"
    other.write_text("\n".join([header, second.replace("PF-dataset-PASCAL/", ""), first]) + "\n")
    assert len(PfPascalDataset(pascal_root).pairs("trn")) == 2
    other.write_text(f"{header}\n{first}\n")
    with pytest.raises(
        DatasetError, match=r"trn_pairs\.csv and .*train_pairs_pf_pascal\.csv are both lists of trn, but"
    ):
        PfPascalDataset(pascal_root).pairs("trn")


def test_doubled_lines(pascal_root: Path) -> None:
    """They count once, and are noted; a pair and the same mirrored are two."""
    path = pascal_root / "trn_pairs.csv"
    path.write_text(path.read_text() + f"elsewhere/{Path(A).name},{B},1,0\n")
    dataset = PfPascalDataset(pascal_root)
    assert [pair.source for pair in dataset.pairs("trn")] == [
        "aeroplane/2008_000001",
        "aeroplane/2008_000001~mirrored",
    ]
    (sentence,) = dataset.notes("trn")
    assert sentence.startswith(f"1 of 3 lines of {path} repeat a pair of an earlier line, e.g. line 4 that of line 2")
    path.write_text(path.read_text() + f"{A},{A},1,1\n")
    with pytest.raises(DatasetError, match=r"line 5: pairs aeroplane/2008_000001~mirrored with itself"):
        dataset.pairs("trn")


def test_photographs_of_test_that_are_trained_on(pascal_root: Path) -> None:
    dataset: Dataset = PfPascalDataset(pascal_root)
    (sentence,) = overlap(dataset, "test", {})
    assert sentence == (
        "2 of 2 photographs of pf-pascal test are in trn as well: aeroplane/2008_000001, aeroplane/2008_000002; "
        "prompts that were learned on trn have seen them."
    )
    assert overlap(dataset, "val", {})[0].startswith("2 of 2 photographs of pf-pascal val are in trn as well")


def test_copies_of_test_photographs_that_are_trained_on(pascal_root: Path) -> None:
    """Known by their content, whatever their names; mirrored or not."""
    path = pascal_root / "trn_pairs.csv"
    rows = path.read_text()
    for number in (1, 2):
        old, new = (f"2008_00000{value}" for value in (number, number + 7))
        for name in (f"JPEGImages/{old}.jpg", f"Annotations/aeroplane/{old}.mat"):
            file = pascal_root / "PF-dataset-PASCAL" / name
            (file.parent / file.name.replace(old, new)).write_bytes(file.read_bytes())
        rows = rows.replace(old, new)
    path.write_text(rows)
    dataset = PfPascalDataset(pascal_root)
    keys = {image.id: str(len(dataset.read(image))) for image in dataset.images() if not image.mirrored}
    assert overlap(dataset, "test", {}) == ()
    (sentence,) = overlap(dataset, "test", keys)
    assert sentence.startswith("2 of 2 photographs of pf-pascal test are in trn as well")
