"""AP-10K against what GeoAware-SC's own code made of a small synthetic data set (tests/golden/ap10k)."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from featstore.datasets.ap10k import KEYPOINTS, SPLITS, Ap10kDataset
from featstore.datasets.records import Pair
from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError

GOLDEN = Path(__file__).parents[2] / "golden" / "ap10k"
PARTS = ("train", "test", "val")
PAIRS: dict[str, list[tuple[int, int, str]]] = json.loads((GOLDEN / "pairs.json").read_text())


def content(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"ap10k-{part}-split1.json").read_text())
    return found


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """As it is distributed; the pictures are empty files, since nothing here opens one."""
    root = tmp_path / "ap-10k"
    (root / "annotations").mkdir(parents=True)
    (root / "data").mkdir()
    shutil.copy(GOLDEN / "is_crowd.txt", root)
    for part in PARTS:
        shutil.copy(GOLDEN / f"ap10k-{part}-split1.json", root / "annotations")
        for image in content(part)["images"]:
            (root / "data" / image["file_name"]).touch()
    return root


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """As GeoAware-SC's notebook writes it."""
    root = tmp_path / "prepared"
    categories = {own["id"]: own for own in content("train")["categories"]}
    images = {own["id"]: own for part in PARTS for own in content(part)["images"]}
    done = set()
    for own in (own for part in PARTS for own in content(part)["annotations"]):
        number, category = own["image_id"], categories.get(own["category_id"])
        if category is None or number not in images or number in done:
            continue
        done.add(number)
        folder = f"{category['supercategory']}/{category['name']}"
        for kind in ("JPEGImages", "ImageAnnotation"):
            (root / kind / folder).mkdir(parents=True, exist_ok=True)
        (root / "JPEGImages" / folder / f"{number:012}.jpg").touch()
        (root / "ImageAnnotation" / folder / f"{number:012}.json").write_text(json.dumps({**images[number], **own}))
    for split, pairs in PAIRS.items():
        (root / "PairAnnotation" / split).mkdir(parents=True)
        for source, target, category in pairs:
            (root / "PairAnnotation" / split / f"{source:012}-{target:012}:{category}.json").write_text("{}")
    return root


def named(pair: Pair) -> tuple[int, int, str]:
    category = {"cross-family": "all"}.get(pair.category, pair.category)
    return int(pair.source.split("/")[1]), int(pair.target.split("/")[1]), category


@pytest.mark.parametrize("form", ["original", "prepared"])
def test_lists_and_their_order(form: str, request: pytest.FixtureRequest) -> None:
    """Pairs within species, across species and across families are theirs, in the order of their files."""
    dataset = open_dataset("ap10k", request.getfixturevalue(form))
    assert set(dataset.splits) == set(SPLITS)
    for split, name in SPLITS.items():
        assert [named(pair) for pair in dataset.pairs(split)] == [tuple(own) for own in PAIRS[name]], split
    assert {len(PAIRS[name]) for name in SPLITS.values()} == {1705, 90, 1044, 31, 430, 60, 79}


def test_both_forms_say_the_same(original: Path, prepared: Path) -> None:
    for split in SPLITS:
        one, two = (open_dataset("ap10k", root).pairs(split) for root in (original, prepared))
        assert one.images == two.images
        for name in ("source", "target", "category", "coordinates", "boxes", "stated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=f"{split} {name}")


def test_images_have_a_category_each(original: Path) -> None:
    """Pairs across species are of a family, their images still of their species."""
    dataset, kept = open_dataset("ap10k", original), json.loads((GOLDEN / "kept.json").read_text())
    species = {number: name for name, own in kept.items() for part in PARTS for number in own[part]}
    assert {image.id for image in dataset.images()} <= {f"{name}/{number:012}" for number, name in species.items()}
    assert all(image.category == image.id.split("/")[0] for image in dataset.images())
    for pair in dataset.pairs("test-cross-species"):
        ours, theirs = (kept[end.split("/")[0]]["family"] for end in (pair.source, pair.target))
        assert pair.category == ours == theirs
        assert pair.source.split("/")[0] < pair.target.split("/")[0]
    for pair in dataset.pairs("val-cross-family"):
        ours, theirs = (kept[end.split("/")[0]]["family"] for end in (pair.source, pair.target))
        assert ours < theirs
    assert {pair.category for pair in dataset.pairs("val-cross-family")} == {"cross-family"}


def test_keypoints_and_theta(original: Path) -> None:
    """Their loader's numbers, in their padded frame of 840 pixels: theta is the longer side of the target's box. Hidden
    keypoints (v = 1) count for them, too, but at half their coordinates; here where they are."""
    dataset, loaded, hidden = open_dataset("ap10k", original), load_file(GOLDEN / "loaded.safetensors"), 0
    compared = 0
    for split, folder in SPLITS.items():
        pairs = {named(pair): pair for pair in dataset.pairs(split)}
        for key in (own for own in loaded if re.fullmatch(rf"{folder}\|.*\|840\.ids", own)):
            theirs = {name: loaded[key.removesuffix("ids") + name] for name in ("ids", "kps", "theta", "used")}
            for ids, kps, theta in zip(theirs["ids"], theirs["kps"], theirs["theta"], strict=True):
                pair = pairs[int(ids[0]), int(ids[1]), key.split("|")[1]]
                ends: Any = [(pair.source_box, pair.source_size), (pair.target_box, pair.target_size)]
                sides = [max(box[2] - box[0], box[3] - box[1]) * 840 / max(size) for box, size in ends]
                np.testing.assert_allclose(theta, sides[-len(theta) :], rtol=1e-6)
                shown = [KEYPOINTS[int(place)] for place in theirs["used"]]
                both = [name for name, row in zip(shown, kps.transpose(1, 0, 2), strict=True) if row[:, 2].all()]
                assert sorted(pair.names) == sorted(both)
                for side, points in enumerate((pair.source_points, pair.target_points)):
                    width, height = ends[side][1]
                    scale = 840 / max(width, height)
                    rounded = [int((840 - round(840 * own / max(width, height))) / 2) for own in (width, height)]
                    for name, point in zip(pair.names, points, strict=True):
                        x, y, seen = kps[side][shown.index(name)]
                        assert seen in (1, 0.25)
                        own = (point * scale + rounded) * (1 if seen == 1 else 0.5)
                        np.testing.assert_allclose((x, y), own, atol=1e-3)
                        hidden += seen != 1
                compared += 1
    assert compared > 400
    assert hidden > 100


def test_pairs_as_prepared_are_not_taken_where_the_rules_apply(original: Path, prepared: Path) -> None:
    (prepared / "PairAnnotation" / "trn" / next(iter(sorted((prepared / "PairAnnotation" / "trn").iterdir())))).unlink()
    assert len(open_dataset("ap10k", prepared).pairs("trn")) == len(PAIRS["trn"]) - 1
    assert open_dataset("ap10k", prepared).notes("trn") == ()
    for kind in ("PairAnnotation", "ImageAnnotation", "JPEGImages"):
        (prepared / kind).rename(original / kind)
    shutil.rmtree(original / "data")  # pictures are found where the notebook moved them
    dataset = open_dataset("ap10k", original)
    assert len(dataset.pairs("trn")) == len(PAIRS["trn"])
    (sentence,) = dataset.notes("trn")
    assert re.fullmatch(
        "The pairs of .* follow from its annotations, not from PairAnnotation, whose pairs .*", sentence
    )


def test_crowds_are_asked_for(original: Path) -> None:
    (original / "is_crowd.txt").unlink()
    with pytest.raises(DatasetError, match=r"ap-10k has no is_crowd\.txt, GeoAware-SC's list .*; copy it from github"):
        open_dataset("ap10k", original).images()


def test_a_missing_picture(original: Path) -> None:
    number = json.loads((GOLDEN / "kept.json").read_text())["alpha cat"]["test"][0]
    (original / "data" / f"{number:012}.jpg").unlink()
    with pytest.raises(DatasetError, match=rf"split1\.json: image {number}: names the image 'data/{number:012}\.jpg'"):
        open_dataset("ap10k", original).images()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda own: own.pop("categories"), r"train-split1\.json: categories is missing; restore"),
        (
            lambda own: own["categories"][0].pop("supercategory"),
            "the category alpha cat has no supercategory, its family",
        ),
        (lambda own: own["categories"][0].update(name="../x"), r"categories\[0\]\.name is '\.\./x': a name is a plain"),
        (lambda own: own["categories"][1].update(id=1), "categories has the id 1 twice"),
        (lambda own: own["annotations"][3].update(bbox=[1, 2, 3]), r"annotations\[3\]\.bbox\[3\] is missing"),
        (
            lambda own: own["annotations"][3].update(bbox=[1, 2, -3, 4]),
            r"annotations\[3\]\.bbox\[2\] is -3, not at least",
        ),
        (lambda own: own["annotations"][0]["keypoints"].pop(), r"annotations\[0\]: keypoints has 50 numbers where"),
        (lambda own: own["annotations"][0]["keypoints"].__setitem__(5, 7), r"annotations\[0\]: keypoints has v = 7"),
        (
            lambda own: own["annotations"][0].update(image_id="1"),
            r"annotations\[0\]\.image_id is '1', not a whole number",
        ),
        (lambda own: own["images"][0].update(file_name=None), r"images\[0\]\.file_name is None, not a text"),
    ],
)
def test_malformed_annotations(original: Path, damage: Callable[[Any], object], sentence: str) -> None:
    path, found = original / "annotations" / "ap10k-train-split1.json", content("train")
    damage(found)
    path.write_text(json.dumps(found))
    with pytest.raises(DatasetError, match=sentence) as caught:
        open_dataset("ap10k", original).pairs("test")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("1-2:x", r"holds '1-2:x\.json', not <image id>-<image id>:<category>"),
        ("000000000001-000000000002:alpha cat", "not .* of two images that ImageAnnotation has"),
        (
            "000000000331-000000000356:alpha dog",
            "its category is 'alpha dog' where its source is of Alphidae, alpha cat",
        ),
    ],
)
def test_malformed_pairs(prepared: Path, name: str, sentence: str) -> None:
    (prepared / "PairAnnotation" / "test" / f"{name}.json").write_text("{}")
    with pytest.raises(DatasetError, match=sentence):
        open_dataset("ap10k", prepared).pairs("test")


def test_malformed_image_annotation(prepared: Path) -> None:
    path = next((prepared / "ImageAnnotation").rglob("000000000331.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": "x"}))
    with pytest.raises(DatasetError, match=r"000000000331\.json: width is 'x', not a whole number; restore the file"):
        open_dataset("ap10k", prepared).pairs("test")


def test_opened_by_its_usual_folder(original: Path, tmp_path: Path) -> None:
    assert Ap10kDataset.open(tmp_path).root == original
    with pytest.raises(
        DatasetError, match=r"holds no ap10k dataset \(looked for annotations/ap10k-train-split1\.json, or"
    ):
        Ap10kDataset.open(original / "data")


def test_what_only_the_target_shows_belongs_to_its_extent(original: Path) -> None:
    dataset = open_dataset("ap10k", original)
    files = [own for part in PARTS for own in content(part)["annotations"]]
    first = {own["image_id"]: own for own in reversed(files)}
    for pair in list(dataset.pairs("val"))[:20]:
        marked = np.array(first[named(pair)[1]]["keypoints"]).reshape(-1, 3)
        assert sorted(map(tuple, pair.shown.tolist())) == sorted(map(tuple, marked[marked[:, 2] > 0, :2].tolist()))
