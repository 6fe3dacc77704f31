"""Keypoint data sets in COCO's form."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.datasets.coco import CocoDataset
from featstore.datasets.drawn import LEAST_PAIRS, PAIRS_OF_A_SPLIT, MarkedImage, draw_pairs
from featstore.datasets.records import ImageRecord, Marks, ThetaRule
from featstore.datasets.registry import annotations_of, open_dataset
from featstore.errors import DatasetError

FILE = Path("annotations/person_keypoints_val2017.json")


def test_the_largest_object_of_each_image(coco_root: Path) -> None:
    """Crowds and objects without keypoints are none, however large; hidden keypoints are some."""
    dataset = open_dataset("coco", coco_root, FILE)
    assert (dataset.name, dataset.splits, dataset.theta_rule) == ("coco", ("test",), ThetaRule.BOX)
    pairs = list(dataset.pairs("test"))
    assert [(pair.source, pair.target, pair.names) for pair in pairs] == [
        ("person/000000000007", "person/000000000008", ("left_eye",)),
        ("person/000000000007", "person/000000000009", ("nose",)),
        ("person/000000000008", "person/000000000007", ("left_eye",)),
        ("person/000000000009", "person/000000000007", ("nose",)),
    ]
    np.testing.assert_array_equal(pairs[0].source_points, [[8, 9]])
    np.testing.assert_array_equal(pairs[0].target_points, [[6, 5]])
    assert pairs[0].source_box == (2, 3, 33.5, 24)
    assert (pairs[0].source_size, pairs[0].target_size) == ((40, 30), (50, 20))
    assert {pair.category for pair in pairs} == {"person"}
    assert [image.file for image in dataset.images()] == [f"val2017/{number:012}.jpg" for number in (7, 8, 9)]
    assert dataset.notes("test") == (
        f"3 of 8 objects in {coco_root / FILE} are left out: 1 are smaller than another of their image, 1 show no "
        "keypoint, 1 are crowds.",
    )


@pytest.mark.parametrize("folder", ["", "images", "data", "val2017"])
def test_where_images_are_found(coco_root: Path, folder: str) -> None:
    (coco_root / "val2017").rename(coco_root / "moved")
    for image in list((coco_root / "moved").iterdir()):
        (coco_root / folder).mkdir(exist_ok=True)
        image.rename(coco_root / folder / image.name)
    assert len(open_dataset("coco", coco_root, FILE).images()) == 3


def test_annotations_lie_anywhere(coco_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (FILE, coco_root / FILE):
        assert annotations_of(open_dataset("coco", coco_root, named)) == str(FILE)
    (coco_root / FILE).rename(tmp_path / "mine_val2017.json")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("coco", coco_root, Path("mine_val2017.json"))
    assert annotations_of(dataset) == str(tmp_path / "mine_val2017.json")
    assert len(dataset.pairs("test")) == 4


def test_annotations_are_asked_for_and_of_no_other_data_set(coco_root: Path, spair_root: Path) -> None:
    with pytest.raises(DatasetError, match="The dataset coco needs the file of its annotations; give it with --annot"):
        open_dataset("coco", coco_root)
    with pytest.raises(DatasetError, match=r"There is no file of annotations x\.json, neither as such nor in .*coco"):
        open_dataset("coco", coco_root, Path("x.json"))
    with pytest.raises(DatasetError, match=r"dataset spair has its own annotations: leave out --annotations .*val2017"):
        open_dataset("spair", spair_root, FILE)
    with pytest.raises(DatasetError, match="demo has its own annotations"):
        open_dataset("demo", None, FILE)


def test_keypoints_without_names_are_numbered(coco_root: Path, coco: dict[str, Any]) -> None:
    del coco["categories"][0]["keypoints"]
    (coco_root / FILE).write_text(json.dumps(coco))
    assert {pair.names for pair in open_dataset("coco", coco_root, FILE).pairs("test")} == {("1",), ("2",)}


def test_unknown_split(coco_root: Path) -> None:
    with pytest.raises(DatasetError, match="has no split 'val', it has test; choose of these"):
        open_dataset("coco", coco_root, FILE).pairs("val")


def test_nothing_in_common(coco_root: Path, coco: dict[str, Any]) -> None:
    coco["annotations"] = coco["annotations"][-2:]
    (coco_root / FILE).write_text(json.dumps(coco))
    with pytest.raises(DatasetError, match="coco has no two images of a category that share a keypoint; mark"):
        open_dataset("coco", coco_root, FILE).images()


def objects(category: str, count: int, names: Sequence[str] = ("nose",)) -> list[MarkedImage]:
    return [
        MarkedImage(
            ImageRecord(f"{category}/{number:05}", category, f"{category}/{number}.jpg"),
            Marks({names[number % len(names)]: (1.0, 2.0)}),
        )
        for number in range(count)
    ]


def test_pairs_are_drawn_evenly_and_never_change() -> None:
    """Few images: every ordered pair that shares a keypoint. Many: as many pairs of each category; the same whatever
    the order of the file and the other categories."""
    few = objects("cat", 7, ("even", "odd"))
    assert len(draw_pairs(few)) == 4 * 3 + 3 * 2
    many = objects("dog", 400) + objects("cow", 300)
    drawn = draw_pairs(many)
    counts = {name: sum(own == name for _, _, own in drawn) for name in ("dog", "cow")}
    assert counts == {"dog": PAIRS_OF_A_SPLIT // 2, "cow": PAIRS_OF_A_SPLIT // 2}
    ends = [(one.record.id, two.record.id) for one, two, _ in drawn]
    assert len(set(ends)) == len(ends)
    assert all(one != two for one, two in ends)
    shuffled = random.Random(0).sample(many, len(many))
    assert [(one.record.id, two.record.id) for one, two, _ in draw_pairs(shuffled)] == ends
    alone = {(one.record.id, two.record.id) for one, two, _ in draw_pairs(many[:400])}
    assert {own for own in ends if own[0].startswith("dog")} < alone
    kinds = [image for number in range(500) for image in objects(f"kind{number}", 20)]
    assert len(draw_pairs(kinds)) == 500 * LEAST_PAIRS


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda own: own.pop("images"), "images is missing; restore the file, or correct it to COCO's format"),
        (lambda own: own["images"][1].update(id=7), "images has the id 7 twice"),
        (lambda own: own["images"][0].update(id=7.5), r"images\[0\]\.id is 7\.5, not a whole number"),
        (
            lambda own: own["images"][0].update(file_name="../x.jpg"),
            r"image 7: names the image '\.\./x\.jpg', which is",
        ),
        (
            lambda own: own["images"][0].update(file_name="a\x1b.jpg"),
            r"image 7: names the image 'a\\x1b\.jpg', which is",
        ),
        (lambda own: own["images"][0].update(width=-40), r"images\[0\]\.width is -40, not at least 1"),
        (
            lambda own: own["images"][2].update(file_name="000000000007.jpg"),
            "would both be the image person/00000000000",
        ),
        (lambda own: own["categories"][0].update(name="a\nb"), r"categories\[0\]\.name is 'a\\nb': a name is a plain"),
        (lambda own: own["categories"][0].update(name="all"), "is of a category called all, which is reserved"),
        (lambda own: own["categories"][0].update(keypoints=["a", "a", "b"]), "a keypoint's name stands twice"),
        (lambda own: own["categories"][0]["keypoints"].pop(), r"annotations\[1\]: keypoints has 9 numbers where .* 6"),
        (
            lambda own: own["annotations"][0].update(image_id=5),
            r"annotations\[0\] names the image 5 of the category 1, one",
        ),
        (
            lambda own: own["annotations"][0].update(category_id=5),
            r"annotations\[0\] names the image 7 of the category 5",
        ),
        (lambda own: own["annotations"][0].pop("bbox"), r"annotations\[0\]\.bbox is missing"),
        (
            lambda own: own["annotations"][0].update(bbox=[1, 2, 3, None]),
            r"annotations\[0\]\.bbox\[3\] is None, not a fin",
        ),
        (lambda own: own["annotations"][0].update(bbox=[1, 2, 3, 1e300]), r"bbox\[3\] is 1e\+300, not at most 1000000"),
        (lambda own: own["annotations"][0].update(iscrowd=2), r"annotations\[0\]\.iscrowd is 2, not one of 0, 1"),
        (lambda own: own["annotations"][0].update(area="9"), r"annotations\[0\]\.area is '9', not a finite number"),
        (lambda own: own["annotations"][1]["keypoints"].append(1), r"annotations\[1\]: keypoints has 10 numbers"),
        (
            lambda own: own["annotations"][1]["keypoints"].__setitem__(2, 3),
            r"annotations\[1\]: keypoints has v = 3 where",
        ),
        (lambda own: own["annotations"][1]["keypoints"].__setitem__(0, True), r"keypoints\[0\] is True, not a finite"),
        (lambda own: own["annotations"][1].update(keypoints={"a": 1}), r"keypoints is {'a': 1}, not a list"),
    ],
)
def test_malformed(
    coco_root: Path, coco: dict[str, Any], damage: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    damage(coco)
    (coco_root / FILE).write_text(json.dumps(coco))
    with pytest.raises(DatasetError, match=sentence) as caught:
        open_dataset("coco", coco_root, FILE).pairs("test")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{", b"[" * 200_000, b"NaN", b'{"images": [NaN]}', b'"\\ud800"'])
def test_no_json(coco_root: Path, data: bytes) -> None:
    (coco_root / FILE).write_bytes(data)
    with pytest.raises(DatasetError, match=r"person_keypoints_val2017\.json: .*; restore the file, or correct it"):
        open_dataset("coco", coco_root, FILE).pairs("test")


def test_a_byte_order_mark(coco_root: Path) -> None:
    (coco_root / FILE).write_bytes(b"\xef\xbb\xbf" + (coco_root / FILE).read_bytes())
    assert len(CocoDataset(coco_root, coco_root / FILE).pairs("test")) == 4
