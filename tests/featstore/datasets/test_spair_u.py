"""SPair-U: other keypoints on SPair-71k's test photographs."""

import json
from pathlib import Path
from typing import Any

import pytest

from featstore.datasets.registry import open_dataset
from featstore.errors import DatasetError

NAMES = {"000001-2008_002719-2008_004100:aeroplane": "1", "000009-2008_004100-2008_002719:aeroplane": "2"}


@pytest.fixture
def root(spair_root: Path, spair_annotation: dict[str, Any]) -> Path:
    """Three lines of SPair-71k's list, two of them annotated, one of these under another number."""
    lines = [*NAMES, "000003-2009_000001-2009_000002:cat"]
    lines[1] = lines[1].replace("000009", "000002")
    (spair_root / "Layout" / "large" / "test.txt").write_text("\n".join(lines) + "\n")
    folder = spair_root / "ExtraPairAnnotation" / "test"
    folder.mkdir(parents=True)
    for name, keypoint in NAMES.items():
        source, target = name.split(":")[0].split("-")[1:]
        own = {"src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "kps_ids": [keypoint, "5", "6"]}
        (folder / f"{name}.json").write_text(json.dumps({**spair_annotation, **own}))
    return spair_root


def test_lines_without_annotation_are_counted_and_left_out(root: Path) -> None:
    dataset, folder = open_dataset("spair-u", root), root / "ExtraPairAnnotation" / "test"
    assert dataset.splits == ("test",)
    one, two = dataset.pairs("test")
    assert (one.source, one.target, one.names) == ("aeroplane/2008_002719", "aeroplane/2008_004100", ("1", "5", "6"))
    assert (two.source, two.names) == ("aeroplane/2008_004100", ("2", "5", "6"))
    assert one.target_box == (5, 3, 45, 18)
    assert one.difficulty is not None
    assert one.target_place == str(folder / f"{next(iter(NAMES))}.json")
    assert {image.id for image in dataset.images()} == {"aeroplane/2008_002719", "aeroplane/2008_004100"}
    lines = root / "Layout" / "large" / "test.txt"
    assert dataset.notes("test") == (f"In {folder} 1 pairs of {lines} have no annotation: they are left out.",)
    lines.unlink()
    assert open_dataset("spair-u", root).notes("test") == ()


def test_annotations_without_keypoints_are_counted_and_left_out(root: Path) -> None:
    path = root / "ExtraPairAnnotation" / "test" / f"{next(iter(NAMES))}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kps_ids": [], "src_kps": [], "trg_kps": []}))
    dataset = open_dataset("spair-u", root)
    assert [pair.names[0] for pair in dataset.pairs("test")] == ["2"]
    (sentence,) = dataset.notes("test")
    assert sentence.endswith(
        "have no annotation, and 1 annotations have no keypoint of both images: they are left out."
    )


@pytest.mark.parametrize("place", ["SPair-U/PairAnnotation", "../SPair-U/PairAnnotation"])
@pytest.mark.parametrize("colon", [":", "_", "\uf03a"])
def test_where_annotations_are_found(root: Path, place: str, colon: str) -> None:
    (root / place).parent.mkdir(parents=True)
    (root / "ExtraPairAnnotation").rename(root / place)
    for file in list((root / place / "test").iterdir()):
        file.rename(file.with_name(file.name.replace(":", colon)))
    assert len(open_dataset("spair-u", root).pairs("test")) == 2


def test_the_usual_folder_beside_the_photographs(root: Path, tmp_path: Path) -> None:
    (tmp_path / "SPair-U").mkdir()
    (root / "ExtraPairAnnotation").rename(tmp_path / "SPair-U" / "PairAnnotation")
    root.rename(tmp_path / "SPair-71k")
    assert len(open_dataset("spair-u", tmp_path).pairs("test")) == 2


def test_no_annotations(spair_root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"holds no spair-u dataset \(looked for JPEGImages with ExtraPairAnnotation"
    ):
        open_dataset("spair-u", spair_root)


def test_malformed(root: Path) -> None:
    folder = root / "ExtraPairAnnotation" / "test"
    (folder / "x.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"test holds 'x\.json', which is not <number>-<source>-<target>:<category>"):
        open_dataset("spair-u", root).images()
    (folder / "x.json").unlink()
    first = folder / f"{next(iter(NAMES))}.json"
    first.write_text(json.dumps({**json.loads(first.read_text()), "category": "cat"}))
    with pytest.raises(DatasetError, match=rf"{first}: its category is 'cat' where {first} says 'aeroplane'"):
        open_dataset("spair-u", root).pairs("test")
    (root / "JPEGImages" / "aeroplane" / "2008_004100.jpg").unlink()
    with pytest.raises(
        DatasetError, match=r":aeroplane\.json: names the image 'JPEGImages/aeroplane/2008_004100\.jpg'"
    ):
        open_dataset("spair-u", root).images()
