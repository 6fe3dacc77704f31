"""Anybody's photographs."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.datasets.folder import FolderDataset
from featstore.datasets.records import Dataset, ImageRecord, ThetaRule
from featstore.errors import DatasetError

HEADER = "image,name,x,y"


def test_images(folder_root: Path) -> None:
    dataset: Dataset = FolderDataset(folder_root)
    assert dataset.name == "folder"
    assert dataset.splits == ("test",)
    assert dataset.theta_rule is ThetaRule.IMAGE
    images = dataset.images()
    assert images == (
        ImageRecord("cat/a", "cat", "cat/a.jpg"),
        ImageRecord("dog/a", "dog", "dog/a.jpg"),
        ImageRecord("dog/b", "dog", "dog/b.PNG"),
        ImageRecord("dog/c.d", "dog", "dog/c.d.webp"),
    )
    assert dataset.read(images[2]) == (folder_root / "dog" / "b.PNG").read_bytes()


def test_all_pairs_that_share_a_keypoint(folder_root: Path) -> None:
    there, back = FolderDataset(folder_root).pairs("test")
    assert (there.source, there.target, there.category, there.names) == ("dog/a", "dog/b", "dog", ("nose",))
    np.testing.assert_array_equal(there.source_points, [[3.5, 4]])
    np.testing.assert_array_equal(there.target_points, [[5, 6]])
    assert (back.source, back.target) == ("dog/b", "dog/a")


def test_listed_pairs_keep_the_lists_order(folder_root: Path) -> None:
    (folder_root / "pairs.csv").write_text("source,target\ndog/b.PNG,dog/a\ndog/a.jpg,dog/b\n")
    pairs = FolderDataset(folder_root).pairs("test")
    assert [(pair.source, pair.target) for pair in pairs] == [
        ("dog/b", "dog/a"),
        ("dog/a", "dog/b"),
    ]


@pytest.mark.parametrize(
    ("again", "sentence"),
    [
        ("dog/b,dog/a.jpg", r"pairs\.csv, line 4: the pair dog/b -> dog/a is there already, in line 2; remove one"),
        ("dog/a,dog/a.jpg", r"pairs\.csv, line 4: pairs dog/a with itself, .*; remove the line"),
    ],
)
def test_listed_pairs_that_say_nothing_new(folder_root: Path, again: str, sentence: str) -> None:
    (folder_root / "pairs.csv").write_text(f"source,target\ndog/b.PNG,dog/a\ndog/a.jpg,dog/b\n{again}\n")
    with pytest.raises(DatasetError, match=sentence):
        FolderDataset(folder_root).pairs("test")


def test_stems_with_dots(folder_root: Path) -> None:
    (folder_root / "keypoints.csv").write_text(f"{HEADER}\ndog/c.d,eye,1,2\ndog/c.d.webp,nose,1,2\ndog/a,eye,1,1\n")
    there, _ = FolderDataset(folder_root).pairs("test")
    assert (there.source, there.target, there.names) == ("dog/a", "dog/c.d", ("eye",))


def test_images_without_keypoints(folder_root: Path) -> None:
    (folder_root / "keypoints.csv").unlink()
    dataset = FolderDataset(folder_root)
    assert len(dataset.images()) == 4
    with pytest.raises(DatasetError, match=r"has no keypoints\.csv.*should hold the header image,name,x,y"):
        dataset.pairs("test")


def test_unknown_split(folder_root: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'trn', it has test"):
        FolderDataset(folder_root).pairs("trn")


def test_one_stem_twice(folder_root: Path) -> None:
    (folder_root / "dog" / "a.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"dog/a\.jpg and .*dog/a\.png would both be the image dog/a; rename"):
        FolderDataset(folder_root).images()


def test_one_stem_twice_in_a_folder_whose_name_is_no_text(folder_root: Path) -> None:
    """The folder's name is shown as nothing that controls a terminal."""
    folder = folder_root / "d\x1b[31m"
    folder.mkdir()
    for name in ("a.jpg", "a.png"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"The name 'd\\x1b\[31m/a\.jpg' in .* is no plain text; rename"):
        FolderDataset(folder_root).images()


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"has no sub-folder with images \(\.jpg .*put the images in sub-folders"):
        FolderDataset(tmp_path).images()


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none cannot be listed \(.*No such file"):
        FolderDataset(tmp_path / "none").images()


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname == "Darwin", reason="file names are bytes on Linux only")
def test_names_that_are_no_text(folder_root: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder_root) + b"/dog/\xff.jpg")).write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"The name 'dog/\\udcff\.jpg' in .* is no plain text; rename"):
        FolderDataset(folder_root).images()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["image,name,x", "dog/a,eye,1"], "has no column y"),
        ([HEADER], "has no rows"),
        ([HEADER, "dog/none,eye,1,2"], "line 2: names the image 'dog/none', which is not there"),
        ([HEADER, "../dog/a,eye,1,2"], r"line 2: names the image '\.\./dog/a', which is not there"),
        (
            [HEADER, "dog/a,eye,1,nan"],
            "line 2: y is 'nan', so absent, where x is '1'; fill in both, or leave both empty",
        ),
        ([HEADER, "dog/a,eye,left,2"], "line 2: x is 'left', which is no finite number"),
        ([HEADER, "dog/a,eye,1_0,2"], "line 2: x is '1_0', which is no finite number"),
        ([HEADER, "dog/a,eye,\u0661,2"], "line 2: x is .*, which is no finite number"),
        ([HEADER, "dog/a,eye,1,-1e300"], "line 2: y is -1e[+]300, which is no coordinate in pixels"),
        ([HEADER, "dog/a,,1,2"], "line 2: the column name is empty"),
        ([HEADER, 'dog/a,"e\nye",1,2'], r"line 3: name is 'e\\nye', which is no plain text"),
        ([HEADER, "dog/a,\x1b[31m,1,2"], r"line 2: name is '\\x1b\[31m', which is no plain text"),
        ([HEADER, f"dog/{'a' * 2000},eye,1,2"], r"line 2: image is 'dog/a{76}\.\.\.', which is no plain text"),
        ([HEADER, f"dog/{'a' * 900},eye,1,2"], r"line 2: names the image 'dog/a{76}\.\.\.', which is not there"),
        ([HEADER, "dog/a,eye,1,2", "", "dog/a.jpg,eye,3,4"], "line 4: the keypoint 'eye' of dog/a is there .* line 2"),
        ([HEADER, "dog/a,eye,1,2", "cat/a,eye,1,2"], "no two images of one category share a keypoint's name"),
    ],
)
def test_malformed_keypoints(folder_root: Path, rows: list[str], sentence: str) -> None:
    path = folder_root / "keypoints.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(DatasetError, match=sentence) as caught:
        FolderDataset(folder_root).pairs("test")
    assert str(path) in str(caught.value)


def test_a_list_of_gigabytes_is_not_read(folder_root: Path) -> None:
    with (folder_root / "keypoints.csv").open("wb") as stream:
        stream.truncate(5 << 30)  # takes no room on the disk
    with pytest.raises(DatasetError, match="it has 5120 MiB where at most 64 are read"):
        FolderDataset(folder_root).pairs("test")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["source", "dog/a"], "has no column target"),
        (["source,target", "dog/a,dog/z"], "line 2: names the image 'dog/z', which is not there"),
        (["source,target", "dog/a,cat/a"], "line 2: pairs dog/a with cat/a, which is of another category"),
        (
            ["source,target", "dog/a,dog/c.d"],
            "dog/c.d has no keypoint that both images show.*keypoints",
        ),
    ],
)
def test_malformed_pairs(folder_root: Path, rows: list[str], sentence: str) -> None:
    path = folder_root / "pairs.csv"
    path.write_text("\n".join(rows))
    with pytest.raises(DatasetError, match=sentence) as caught:
        FolderDataset(folder_root).pairs("test")
    assert str(path) in str(caught.value)


def test_case_17_duplicate_pairs(folder_root: Path) -> None:
    """A pair that stands three times was counted three times in every average."""
    (folder_root / "pairs.csv").write_text("source,target\n" + "dog/a,dog/b\n" * 3 + "dog/b,dog/a\n")
    with pytest.raises(DatasetError, match=r"line 3: the pair dog/a -> dog/b is there already, in line 2; remove one"):
        FolderDataset(folder_root).pairs("test")


def test_case_24_photos_left_out(folder_root: Path) -> None:
    """What is no picture that is read is counted, wherever it lies; hidden files and what systems leave are not."""
    Image.new("RGB", (8, 8)).save(folder_root / "dog" / "e.jfif", format="JPEG")
    for name in ("f.HEIC", "g.avif", "h.gif", "i.jpg.jpeg~", "no suffix", "Thumbs.db", ".DS_Store", ".k.heic"):
        (folder_root / "dog" / name).write_bytes(b"x")
    (folder_root / "dog" / "link.png").symlink_to("none")
    (folder_root / "dog" / "old" / "older").mkdir(parents=True)
    for name in ("dog/old/l.png", "dog/old/older/m.heic", "dog/old/notes.txt", "n.jpg", "readme.md"):
        (folder_root / name).write_bytes(b"x")
    dataset = FolderDataset(folder_root)
    assert "dog/e" in [image.id for image in dataset.images()]
    (sentence,) = dataset.notes(None)
    assert sentence.startswith(f"10 files in {folder_root} are left out, as only .jpg .jpeg .jpe .jif .jfif .png ")
    assert sentence.endswith(
        ": 1 .avif, 1 .gif, 2 .heic, 1 .jpeg~, 1 .jpg outside of the categories' folders, "
        "1 .png outside of the categories' folders, 1 .txt, 1 that cannot be opened (e.g. a broken link), "
        "1 without a suffix."
    )


def test_nothing_left_out(folder_root: Path) -> None:
    (folder_root / "dog" / "notes.txt").unlink()
    assert FolderDataset(folder_root).notes("test") == ()


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_in_either_normal_form(tmp_path: Path, write_image: Callable[[Path, tuple[int, int]], None]) -> None:
    """As a Mac's archive unpacks on Linux: the disk has one form, the lists have the other; ids are composed."""
    write_image(tmp_path / DECOMPOSED / f"{DECOMPOSED}1.jpg", (8, 8))
    write_image(tmp_path / DECOMPOSED / f"{COMPOSED}2.jpg", (8, 8))
    rows = [f"{COMPOSED}/{COMPOSED}1.jpg,{COMPOSED},1,2", f"{DECOMPOSED}/{DECOMPOSED}2,{DECOMPOSED},3,4"]
    (tmp_path / "keypoints.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (tmp_path / "pairs.csv").write_text(f"source,target\n{COMPOSED}/{DECOMPOSED}1,{COMPOSED}/{COMPOSED}2\n")
    dataset = FolderDataset(tmp_path)
    (pair,) = dataset.pairs("test")
    assert (pair.source, pair.target) == (f"{COMPOSED}/{COMPOSED}1", f"{COMPOSED}/{COMPOSED}2")
    assert (pair.category, pair.names) == (COMPOSED, (COMPOSED,))
    assert all(dataset.read(image) for image in dataset.images())
    with (tmp_path / "pairs.csv").open("a") as stream:
        stream.write(f"{COMPOSED}/{COMPOSED}1.jpg,{DECOMPOSED}/{COMPOSED}2\n")
    with pytest.raises(DatasetError, match=r"line 3: .* is there already, in line 2"):
        dataset.pairs("test")


def test_two_files_of_one_name(tmp_path: Path, write_image: Callable[[Path, tuple[int, int]], None]) -> None:
    write_image(tmp_path / "dog" / f"{DECOMPOSED}.jpg", (8, 8))
    write_image(tmp_path / "dog" / f"{COMPOSED}.jpg", (8, 8))
    with pytest.raises(
        DatasetError, match=r"\('cafe\\u0301\.jpg' and 'caf\\xe9\.jpg'\) would both be the image dog/caf"
    ):
        FolderDataset(tmp_path).images()
    write_image(tmp_path / DECOMPOSED / "a.jpg", (8, 8))
    write_image(tmp_path / COMPOSED / "a.jpg", (8, 8))
    with pytest.raises(DatasetError, match=r"sub-folders 'cafe\\u0301' and 'caf\\xe9', which differ in their Unicode"):
        FolderDataset(tmp_path).images()


def test_a_category_called_all(folder_root: Path) -> None:
    """It replaced the score over all pairs in every table."""
    (folder_root / "dog").rename(folder_root / "all")
    with pytest.raises(DatasetError, match=r"Image all/a is of a category called all, which is reserved .*; rename"):
        FolderDataset(folder_root).images()
    (folder_root / "all").rename(folder_root / "All")
    assert {image.category for image in FolderDataset(folder_root).images()} == {"All", "cat"}


def test_boxes(folder_root: Path) -> None:
    (folder_root / "boxes.csv").write_text("image,x0,y0,x1,y1,note\ndog/b,1,2,15.5,9,\ndog/c.d.webp,0,0,3,3,x\n")
    dataset = FolderDataset(folder_root)
    there, back = dataset.pairs("test")
    assert there.source_box is None
    assert there.target_box == back.source_box == (1, 2, 15.5, 9)
    assert dataset.theta_rule is ThetaRule.IMAGE
    (folder_root / "pairs.csv").write_text("source,target\ndog/a,dog/b\n")
    assert [pair.target_box for pair in dataset.pairs("test")] == [(1, 2, 15.5, 9)]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("", r"boxes\.csv has no rows; it needs the header image,x0,y0,x1,y1"),
        ("dog/x,1,2,3,4", r"boxes\.csv, line 2: names the image 'dog/x', which is not there"),
        ("dog/a,1,2,3,4\ndog/a.jpg,1,2,3,4", r"line 3: the box of dog/a is there already, in line 2; remove one"),
        ("dog/a,3,2,1,4", r"line 2: the box is '3, 2, 1, 4', not x0, y0, x1, y1 with x0 below x1 and y0 below y1"),
        ("dog/a,1,4,3,4", r"line 2: the box is '1, 4, 3, 4', not x0, y0"),
        ("dog/a,,,3,4", r"line 2: the box is 'nothing, nothing, 3, 4', not"),
        ("dog/a,1,,3,4", r"line 2: y0 is '', so absent, where x0 is '1'; fill in both"),
        ("dog/a,1,2,3,1e9", r"line 2: y1 is 1e\+09, which is no coordinate in pixels"),
        ("dog/a,1,2,x,4", r"line 2: x1 is 'x', which is no finite number"),
    ],
)
def test_malformed_boxes(folder_root: Path, rows: str, sentence: str) -> None:
    (folder_root / "boxes.csv").write_text(f"image,x0,y0,x1,y1\n{rows}\n")
    with pytest.raises(DatasetError, match=sentence):
        FolderDataset(folder_root).pairs("test")
