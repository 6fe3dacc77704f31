"""SPair-71k's adapter on a synthetic tree in the published layout."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.datasets.records import Dataset, Difficulty, ImageRecord, ThetaRule
from featstore.datasets.spair import SpairDataset
from featstore.errors import DatasetError, ImageError

LINE = "000001-2008_002719-2008_004100:aeroplane"


def annotation_path(root: Path) -> Path:
    return root / "PairAnnotation" / "test" / f"{LINE}.json"


def test_images_of_all_splits_sorted(spair_root: Path) -> None:
    dataset: Dataset = SpairDataset(spair_root)
    assert dataset.name == "spair"
    assert dataset.splits == ("trn", "val", "test")
    assert dataset.theta_rule is ThetaRule.BOX
    images = dataset.images()
    assert [image.id for image in images] == [
        "aeroplane/2008_002719",
        "aeroplane/2008_004100",
        "cat/2009_000001",
        "cat/2009_000002",
    ]
    assert images[0] == ImageRecord("aeroplane/2008_002719", "aeroplane", "JPEGImages/aeroplane/2008_002719.jpg")


def test_images_opens_no_annotation(spair_root: Path) -> None:
    for path in (spair_root / "PairAnnotation").glob("*/*.json"):
        path.unlink()
    assert len(SpairDataset(spair_root).images()) == 4


def test_a_pair(spair_root: Path) -> None:
    (pair,) = SpairDataset(spair_root).pairs("test")
    assert (pair.source, pair.target, pair.category) == ("aeroplane/2008_002719", "aeroplane/2008_004100", "aeroplane")
    np.testing.assert_array_equal(pair.source_points, [[3, 4], [10, 12], [20, 15]])
    np.testing.assert_array_equal(pair.target_points, [[6, 5], [22, 9], [40, 17]])
    assert pair.source_points.dtype == np.float64
    assert pair.names == ("0", "3", "7")
    assert pair.source_box == (1, 2, 30, 20)
    assert pair.target_box == (5, 3, 45, 18)
    assert pair.difficulty == Difficulty(viewpoint=2, scale=1, truncation=3, occlusion=0)


def test_pairs_keep_the_lists_order(spair_root: Path) -> None:
    pairs = SpairDataset(spair_root).pairs("trn")
    assert [pair.source for pair in pairs] == ["cat/2009_000001", "cat/2009_000002"]


@pytest.mark.parametrize("colon", ["_", "\uf03a"])
def test_replaced_colons_in_file_names(spair_root: Path, colon: str) -> None:
    path = annotation_path(spair_root)
    path.rename(path.with_name(path.name.replace(":", colon)))
    assert len(SpairDataset(spair_root).pairs("test")) == 1


def test_ambiguous_annotation(spair_root: Path) -> None:
    path = annotation_path(spair_root)
    path.with_name(path.name.replace(":", "_")).write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match=r"test\.txt, line 1: its annotation is there 2 times, as .* and .*remove"):
        SpairDataset(spair_root).pairs("test")


def test_windows_line_ends_and_byte_order_mark(spair_root: Path) -> None:
    (spair_root / "Layout" / "large" / "test.txt").write_bytes(b"\xef\xbb\xbf" + LINE.encode() + b"\r\n\r\n")
    assert len(SpairDataset(spair_root).pairs("test")) == 1


@pytest.mark.parametrize("absent", [None, [None, None], [float("nan"), float("nan")]])
def test_keypoints_that_are_null_are_absent(spair_root: Path, spair_annotation: dict[str, Any], absent: object) -> None:
    annotation_path(spair_root).write_text(json.dumps({**spair_annotation, "src_kps": [[3, 4], absent, [20, 15]]}))
    (pair,) = SpairDataset(spair_root).pairs("test")
    assert pair.names == ("0", "7")
    np.testing.assert_array_equal(pair.target_points, [[6, 5], [40, 17]])


def test_sizes_are_optional(spair_root: Path, spair_annotation: dict[str, Any]) -> None:
    (pair,) = SpairDataset(spair_root).pairs("test")
    assert (pair.source_size, pair.target_size) == ((40, 30), (50, 20))
    del spair_annotation["src_imsize"]
    annotation_path(spair_root).write_text(json.dumps(spair_annotation))
    assert SpairDataset(spair_root).pairs("test")[0].source_size is None


def test_flags_are_optional(spair_root: Path, spair_annotation: dict[str, Any]) -> None:
    for flag in ("viewpoint_variation", "scale_variation", "truncation", "occlusion"):
        del spair_annotation[flag]
    annotation_path(spair_root).write_text(json.dumps(spair_annotation))
    (pair,) = SpairDataset(spair_root).pairs("test")
    assert pair.difficulty is None


def test_integer_ids_become_names(spair_root: Path, spair_annotation: dict[str, Any]) -> None:
    annotation_path(spair_root).write_text(json.dumps({**spair_annotation, "kps_ids": [0, 3, 7]}))
    assert SpairDataset(spair_root).pairs("test")[0].names == ("0", "3", "7")


def test_read(spair_root: Path) -> None:
    dataset = SpairDataset(spair_root)
    image = dataset.images()[0]
    assert dataset.read(image) == (spair_root / image.file).read_bytes()
    (spair_root / image.file).unlink()
    with pytest.raises(ImageError, match=r"Image aeroplane/2008_002719 cannot be read from .*No such file") as caught:
        dataset.read(image)
    assert caught.value.image_id == "aeroplane/2008_002719"


@pytest.mark.parametrize("file", ["../secret.jpg", "/etc/passwd", "JPEGImages/../../x.jpg", "C:\\x.jpg", "a\0b.jpg"])
def test_read_stays_inside_the_root(spair_root: Path, file: str) -> None:
    with pytest.raises(DatasetError, match="leads out of the dataset's folder"):
        SpairDataset(spair_root).read(ImageRecord("cat/x", "cat", file))


def test_unknown_split_lists_those_there(spair_root: Path) -> None:
    (spair_root / "Layout" / "large" / "val.txt").unlink()
    dataset = SpairDataset(spair_root)
    assert dataset.splits == ("trn", "test")
    with pytest.raises(DatasetError, match=r"no split 'val', it has trn, test; .*looked for Layout/large"):
        dataset.pairs("val")


def test_no_list_at_all(tmp_path: Path) -> None:
    for call in (SpairDataset(tmp_path).images, lambda: SpairDataset(tmp_path).pairs("test")):
        with pytest.raises(DatasetError, match=r"has no Layout/large/\{trn,val,test\}\.txt; give the folder"):
            call()


@pytest.mark.parametrize(
    "line",
    [
        f"000001-{'a' * 1000}-b:cat",
        "000001-a\x1b-b:cat",
        "000001-a\u2028-b:cat",
        "nonsense",
        "000001-a:cat",
        "000001-../../x-b:cat",
        "x-a-b:cat",
        "000001-a-b:c/../../d",
        "000001-a-b:",
    ],
)
def test_malformed_line(spair_root: Path, line: str) -> None:
    (spair_root / "Layout" / "large" / "test.txt").write_text(f"{LINE}\n{line}\n")
    with pytest.raises(DatasetError, match=r"test\.txt, line 2: .* is not <number>-<source>-<target>:<category>"):
        SpairDataset(spair_root).images()


def test_a_category_leads_nowhere_else(spair_root: Path) -> None:
    (spair_root / "a.jpg").write_bytes(b"x")
    (spair_root / "Layout" / "large" / "test.txt").write_text("000001-a-a:..\n")
    with pytest.raises(DatasetError, match=r"names the image 'JPEGImages/\.\./a\.jpg', which is not in"):
        SpairDataset(spair_root).images()


def test_empty_list(spair_root: Path) -> None:
    (spair_root / "Layout" / "large" / "test.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"test\.txt lists no pairs"):
        SpairDataset(spair_root).pairs("test")


def test_undecodable_list(spair_root: Path) -> None:
    (spair_root / "Layout" / "large" / "test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"test\.txt is no UTF-8 text \(byte 0"):
        SpairDataset(spair_root).images()


def test_missing_annotation(spair_root: Path) -> None:
    annotation_path(spair_root).unlink()
    with pytest.raises(
        DatasetError, match=rf"test\.txt, line 1: its annotation .*{re.escape(LINE)}\.json is not there"
    ):
        SpairDataset(spair_root).pairs("test")


@pytest.mark.parametrize("call", ["images", "pairs"])
def test_missing_image(spair_root: Path, call: str) -> None:
    (spair_root / "JPEGImages" / "aeroplane" / "2008_004100.jpg").unlink()
    dataset = SpairDataset(spair_root)
    with pytest.raises(
        DatasetError, match=r"line 1: names the image 'JPEGImages/aeroplane/2008_004100\.jpg', which is not"
    ):
        dataset.images() if call == "images" else dataset.pairs("test")


def changed(field: str, value: object) -> Callable[[dict[str, Any]], bytes]:
    return lambda annotation: json.dumps({**annotation, field: value}).encode()


def without(field: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda annotation: json.dumps({key: annotation[key] for key in annotation if key != field}).encode()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda _: b"", "is no valid JSON"),
        (lambda _: b'{"src_kps": [', "is no valid JSON"),
        (lambda _: b"\xff\xff\xff{", "is no valid JSON"),
        (lambda _: b"[" * 200_000, "is no valid JSON"),
        (lambda _: b"[1, 2]", r"it is \[1, 2\], not a table"),
        (without("src_kps"), "src_kps is missing"),
        (without("kps_ids"), "kps_ids is missing"),
        (without("occlusion"), "occlusion is missing"),
        (changed("src_imname", 3), "src_imname is 3, not a text"),
        (changed("src_imname", "other.jpg"), r"its src_imname is 'other\.jpg' where .*line 1 says '2008_002719\.jpg'"),
        (changed("trg_imname", "../x.jpg"), r"its trg_imname is '\.\./x\.jpg' where .*line 1 says"),
        (changed("category", "cat"), "its category is 'cat' where .* says 'aeroplane'"),
        (changed("kps_ids", "037"), "kps_ids is '037', not a list"),
        (changed("kps_ids", [0, None, 7]), r"kps_ids\[1\] is None: an id of a keypoint is a number or a plain text"),
        (changed("kps_ids", [True, 3, 7]), r"kps_ids\[0\] is True: an id"),
        (changed("kps_ids", ["0", " ", "7"]), r"kps_ids\[1\] is ' ': an id"),
        (changed("kps_ids", ["0", "a\nb", "7"]), r"kps_ids\[1\] is 'a\\nb': an id"),
        (changed("kps_ids", ["0", "\ud800", "7"]), r"kps_ids\[1\] is '\\ud800': an id"),
        (changed("kps_ids", [0, 10**2000, 7]), r"kps_ids\[1\] is 10{79}\.\.\.: an id"),
        (changed("kps_ids", [0, 3, 3]), "kps_ids names a keypoint twice"),
        (changed("kps_ids", [0, 3]), "src_kps has 3 points where kps_ids has 2"),
        (changed("trg_kps", [[1, 2], [3, 4]]), "trg_kps has 2 points where kps_ids has 3"),
        (changed("src_kps", {"a": 1}), "src_kps is {'a': 1}, not a list"),
        (changed("src_kps", [[1, 2], [3, 4], [5]]), r"src_kps\[2\] is \[5\], not a list of at least 2"),
        (changed("src_kps", [[1, 2], [3, 4], [5, "6"]]), r"src_kps\[2\]\[1\] is '6', not a finite number"),
        (changed("src_kps", [[1, 2], [3, 4], [5, None]]), "src_kps has a point that is not two finite numbers"),
        (changed("src_kps", [[1, 2], [3, 4], [5, float("nan")]]), "src_kps has a point that is not two finite"),
        (changed("src_kps", [[1, 2], [3, 4], [5, True]]), r"src_kps\[2\]\[1\] is True, not a finite number"),
        (changed("src_kps", [[1, 2], [3, 4], [5, 10**400]]), r"src_kps\[2\]\[1\] is 10{79}\.\.\., not a finite"),
        (changed("src_kps", [[1, 2], [3, 4], [5, 1e300]]), "src_kps has a point that is not two finite numbers"),
        (
            changed("trg_bndbox", [1, 2, 3, 1e300]),
            r"trg_bndbox\[3\] is 1e\+300, not at most 1000000",
        ),
        (changed("trg_bndbox", [1, 2, 3]), r"trg_bndbox\[3\] is missing"),
        (changed("trg_bndbox", [1, 2, 3, float("inf")]), r"trg_bndbox\[3\] is inf, not a finite number"),
        (changed("src_imsize", [40, "30", 3]), r"src_imsize\[1\] is '30', not a finite number"),
        (changed("trg_imsize", 40), "trg_imsize is 40, not a list"),
        (changed("src_bndbox", None), "src_bndbox is None, not a list"),
        (changed("viewpoint_variation", 3), "viewpoint_variation is 3, not at most 2"),
        (changed("truncation", {}), "truncation is {}, not a whole number"),
        (changed("category", "x" * 100_000), r"its category is 'x{80}\.\.\.' where"),
        (changed("truncation", "yes"), "truncation is 'yes', not a whole number"),
        (
            lambda a: json.dumps({**a, "kps_ids": [], "src_kps": [], "trg_kps": []}).encode(),
            r"test\.txt, line 1: the pair aeroplane/2008_002719 -> aeroplane/2008_004100 has no keypoint that both",
        ),
    ],
)
def test_malformed_annotation(
    spair_root: Path, spair_annotation: dict[str, Any], damage: Callable[[dict[str, Any]], bytes], sentence: str
) -> None:
    path = annotation_path(spair_root)
    path.write_bytes(damage(spair_annotation))
    with pytest.raises(DatasetError, match=sentence) as caught:
        SpairDataset(spair_root).pairs("test")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_list(spair_root: Path) -> None:
    (spair_root / "Layout" / "large" / "test.txt").chmod(0)
    with pytest.raises(DatasetError, match=r"test\.txt cannot be read \(Permission denied\)"):
        SpairDataset(spair_root).images()


def test_case_17_duplicate_pairs(spair_root: Path) -> None:
    """A doubled line of a published list counts once, and is noted."""
    path = spair_root / "Layout" / "large" / "trn.txt"
    path.write_text(path.read_text() * 3)
    dataset = SpairDataset(spair_root)
    assert [(pair.source, pair.target) for pair in dataset.pairs("train")] == [
        ("cat/2009_000001", "cat/2009_000002"),
        ("cat/2009_000002", "cat/2009_000001"),
    ]
    (sentence,) = dataset.notes("trn")
    assert sentence == (
        f"4 of 6 lines of {path} repeat a pair of an earlier line, e.g. line 3 that of line 1; each pair is counted "
        "once."
    )
    assert dataset.notes("test") == dataset.notes(None) == ()


def test_a_doubled_pair_with_two_annotations(spair_root: Path) -> None:
    """The same pair under another number counts once where both annotations agree, and is refused where not."""
    path, folder = spair_root / "Layout" / "large" / "val.txt", spair_root / "PairAnnotation" / "val"
    first, again = (f"00000{number}-2008_004100-2008_002719:aeroplane" for number in (1, 2))
    path.write_text(f"{first}\n{again}\n")
    content = json.loads((folder / f"{first}.json").read_text())
    (folder / f"{again}.json").write_text(json.dumps(content))
    assert len(SpairDataset(spair_root).pairs("val")) == 1
    (folder / f"{again}.json").write_text(json.dumps(content | {"src_kps": [[4, 4], *content["src_kps"][1:]]}))
    with pytest.raises(DatasetError, match="line 2: names the pair of line 1, but its annotation has other keypoints"):
        SpairDataset(spair_root).pairs("val")


def test_an_image_paired_with_itself(spair_root: Path) -> None:
    path = spair_root / "Layout" / "large" / "val.txt"
    path.write_text("000001-2008_004100-2008_004100:aeroplane\n")
    with pytest.raises(DatasetError, match=r"val\.txt, line 1: pairs aeroplane/2008_004100 with itself"):
        SpairDataset(spair_root).pairs("val")


def test_names_in_either_normal_form(spair_root: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (spair_root / "JPEGImages" / "cat").rename(spair_root / "JPEGImages" / decomposed)
    path = spair_root / "Layout" / "large" / "trn.txt"
    path.write_text(path.read_text().replace("cat", composed))
    for old in list((spair_root / "PairAnnotation" / "trn").iterdir()):
        content = old.read_text().replace('"cat"', json.dumps(decomposed))
        old.rename(old.with_name(old.name.replace("cat", decomposed))).write_text(content)
    dataset = SpairDataset(spair_root)
    assert [pair.category for pair in dataset.pairs("trn")] == [composed, composed]
    assert all(dataset.read(image) for image in dataset.images())


def test_what_else_a_target_shows_is_in_its_own_annotation(spair_root: Path) -> None:
    folder = spair_root / "ImageAnnotation" / "aeroplane"
    folder.mkdir(parents=True)
    own = folder / "2008_004100.json"
    own.write_text(json.dumps({"category": "aeroplane", "kps": {"0": [6, 5], "4": [7.5, 8], "5": None}}))
    (pair,) = SpairDataset(spair_root).pairs("test")
    assert pair.names == ("0", "3", "7")
    assert dict(pair.target_only) == {"4": (7.5, 8.0)}
    own.write_text(json.dumps({"kps": {"0": [6]}}))
    with pytest.raises(DatasetError, match=r"2008_004100\.json: kps\.0.*; restore the file from SPair-71k"):
        SpairDataset(spair_root).pairs("test")
