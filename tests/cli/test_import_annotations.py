"""`dualsd import`: exports as LabelMe, COCO and CVAT publish their layouts, written by hand, and what they say."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.cli.conftest import Run

LABELME: dict[str, Any] = {
    "version": "5.5.0",
    "flags": {},
    "shapes": [
        {
            "label": "left ear",
            "points": [[10.5, 20.25]],
            "group_id": 1,
            "description": "",
            "shape_type": "point",
            "flags": {},
            "mask": None,
        },
        {"label": "Nase (Größe)", "points": [[30, 22]], "group_id": 1, "shape_type": "point", "flags": {}},
        {"label": "cat", "points": [[50, 35], [2, 5]], "group_id": 1, "shape_type": "rectangle", "flags": {}},
        {"label": "left ear", "points": [[55.0, 8.0]], "group_id": 2, "shape_type": "point", "flags": {}},
        {"label": "tail", "points": [[1, 1], [2, 3], [4, 4]], "group_id": 1, "shape_type": "polygon", "flags": {}},
    ],
    "imagePath": "a b.jpg",
    "imageData": None,
    "imageHeight": 40,
    "imageWidth": 60,
}

COCO: dict[str, Any] = {
    "info": {"description": "two photographs"},
    "licenses": [],
    "images": [
        {"id": 7, "file_name": "cat/a b.jpg", "width": 60, "height": 40},
        {"id": 8, "file_name": "dog/ä.png", "width": 30, "height": 50},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 3,
            "iscrowd": 0,
            "area": 240.0,
            "bbox": [10.0, 5.0, 40.0, 30.0],
            "segmentation": [[10, 5, 50, 5, 50, 35]],
            "num_keypoints": 2,
            "keypoints": [12, 8, 2, 40.5, 30, 1, 0, 0, 0],
        },
        {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 60, 40], "keypoints": [1, 1, 2]},
        {"id": 3, "image_id": 7, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 60, 40], "keypoints": [0] * 9},
        {"id": 4, "image_id": 8, "category_id": 3, "keypoints": [1, 2, 2, 0, 0, 0, 5.1239, 6, 2]},
    ],
    "categories": [
        {"id": 1, "name": "person", "supercategory": "person", "keypoints": ["nose"], "skeleton": []},
        {"id": 3, "name": "cat", "supercategory": "animal", "keypoints": ["left ear", "nose", "tail, tip"]},
    ],
}

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><name>cats</name><size>2</size><mode>annotation</mode>
    <labels><label><name>cat</name><type>skeleton</type><attributes></attributes></label></labels></task></meta>
  <image id="0" name="photographs/cat/a b.jpg" width="60" height="40">
    <skeleton label="cat" source="manual" z_order="0">
      <points label="left ear" source="manual" outside="0" occluded="0" points="12.50,8.00"></points>
      <points label="nose" source="manual" outside="0" occluded="1" points="40.00,30.00"></points>
      <points label="tail" source="manual" outside="1" occluded="0" points="0.00,0.00"></points>
    </skeleton>
    <box label="cat" source="manual" occluded="0" xtl="10.00" ytl="5.00" xbr="50.00" ybr="35.00" z_order="0"></box>
    <polygon label="cat" source="manual" occluded="0" points="1,1;5,1;5,5" z_order="1"></polygon>
    <tag label="good" source="manual"></tag>
  </image>
  <image id="1" name="dog\\ä.png" width="30" height="50">
    <points label="wheel" source="manual" occluded="0" points="1.00,2.00;3.00,4.00" z_order="5">
      <attribute name="side">left</attribute></points>
    <points label="lamp" source="manual" occluded="0" points="7,8" z_order="5"></points>
  </image>
</annotations>
"""


@pytest.fixture
def root(run: Run) -> Path:
    """Two photographs: `cat/a b.jpg` of 60x40 pixels, `dog/ä.png` of 30x50."""
    root = Path("photographs")
    for name, size in {"cat/a b.jpg": (60, 40), "dog/ä.png": (30, 50)}.items():
        (root / name).parent.mkdir(parents=True)
        Image.new("RGB", size).save(root / name)
    return root


def write(file: str, content: Any) -> str:
    """An export as the program would write it."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    Path(file).write_text(text, encoding="utf-8")
    return file


def table(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))


def imported(run: Run, source: str, *options: str) -> dict[str, Any]:
    """The JSON of an import into `photographs`."""
    result = run("import", source, "--out", "photographs", "--json", "out.json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(Path("out.json").read_text(encoding="utf-8"))
    return found


def refusal(run: Run, source: str, *options: str) -> str:
    """The sentence that an import is refused with."""
    result = run("import", source, *(options or ("--out", "photographs")))
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def counts(found: Mapping[str, Any]) -> dict[str, int]:
    return {kind: len(places) for kind, places in found["notes"].items()}


def test_labelme(run: Run, root: Path) -> None:
    found = imported(run, write("photographs/cat/a b.json", LABELME))
    assert table(root / "keypoints.csv") == [
        ["image", "name", "x", "y"],
        ["cat/a b.jpg", "left ear", "10.5", "20.25"],
        ["cat/a b.jpg", "Nase (Größe)", "30", "22"],
    ]
    assert table(root / "boxes.csv") == [["image", "x0", "y0", "x1", "y1"], ["cat/a b.jpg", "2", "5", "50", "35"]]
    assert counts(found) == {"left out: shapes of the kind polygon": 1, "left out: further objects": 1}


def test_coco(run: Run, root: Path) -> None:
    found = imported(run, write("person_keypoints_default.json", COCO))
    assert table(root / "keypoints.csv") == [
        ["image", "name", "x", "y"],
        ["cat/a b.jpg", "left ear", "12", "8"],
        ["cat/a b.jpg", "nose", "40.5", "30"],
        ["dog/ä.png", "left ear", "1", "2"],
        ["dog/ä.png", "tail, tip", "5.124", "6"],
    ]  # the person is larger, but the folder says cat
    assert table(root / "boxes.csv")[1:] == [["cat/a b.jpg", "10", "5", "50", "35"]]
    assert counts(found) == {
        "left out: points that are not labelled": 2,
        "left out: crowds": 1,
        "left out: further objects": 1,
        "taken, though something hides them: points": 1,
    }
    assert found["notes"]["left out: further objects"] == ["cat/a b.jpg person"]


def test_cvat(run: Run, root: Path) -> None:
    found = imported(run, write("annotations.xml", CVAT))
    assert table(root / "keypoints.csv")[1:] == [
        ["cat/a b.jpg", "left ear", "12.5", "8"],
        ["cat/a b.jpg", "nose", "40", "30"],
        ["dog/ä.png", "wheel 1", "1", "2"],
        ["dog/ä.png", "wheel 2", "3", "4"],
        ["dog/ä.png", "lamp", "7", "8"],
    ]
    assert table(root / "boxes.csv")[1:] == [["cat/a b.jpg", "10", "5", "50", "35"]]
    assert counts(found) == {
        "left out: points outside of the picture": 1,
        "left out: shapes of the kind polygon": 1,
        "left out: shapes of the kind tag": 1,
        "taken, though something hides them: points": 1,
    }


def test_what_is_written_is_scored(run: Run, root: Path, small_model: Path) -> None:
    """The list is read as `--dataset folder` reads it."""
    Image.new("RGB", (60, 40), "red").save(root / "cat" / "b.jpg")
    write("photographs/cat/1.json", {**LABELME, "imagePath": "../cat/a b.jpg"})
    write("photographs/cat/2.json", {**LABELME, "imagePath": "C:\\pictures\\cat\\b.jpg"})
    assert imported(run, "photographs")["n_images"] == 2
    build = run(
        "cache", "build", "--dataset", "folder", "--root", str(root), "--model", str(small_model), "--size", "64"
    )
    assert build.exit_code == 0, build.output
    result = run("eval", "--layers", "2", "--t", "261", "--ensemble", "1", "--json", "scores.json")
    assert result.exit_code == 0, result.output
    scores = json.loads(Path("scores.json").read_text())
    assert (scores["n_pairs"], scores["n_points"]) == (2, 4)


TURNED = "turned back, as the file stores it turned: the points of pictures"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stated", ["as seen", "as stored", "not at all"])
def test_a_turned_photograph(run: Run, orientation: int, stated: str) -> None:
    """A mark is set on the picture that Pillow shows, as a viewer does, and found on the pixels as they are stored."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[7, 51] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Path("photographs/cat").mkdir(parents=True)
    Image.fromarray(pixels).save("photographs/cat/a.png", exif=exif)
    with Image.open("photographs/cat/a.png") as picture:
        seen = picture if stated == "as stored" and orientation > 4 else ImageOps.exif_transpose(picture)
        width, height = seen.size
        row, column = np.argwhere(np.asarray(seen.convert("L")))[0].tolist()
    told = {} if stated == "not at all" else {"imageWidth": width, "imageHeight": height}
    point = {"label": "mark", "points": [[column + 0.5, row + 0.5]], "group_id": None, "shape_type": "point"}
    box = {**point, "shape_type": "rectangle", "points": [[column, row], [column + 1, row + 1]]}
    export = {"shapes": [point, box], "imagePath": "a.png", **told}
    found = imported(run, write("photographs/cat/a.json", export))
    assert table(Path("photographs/keypoints.csv"))[1:] == [["cat/a.png", "mark", "51.5", "7.5"]]
    assert table(Path("photographs/boxes.csv"))[1:] == [["cat/a.png", "51", "7", "52", "8"]]
    is_turned = orientation > 1 and not (stated == "as stored" and orientation > 4)
    assert counts(found) == ({TURNED: 1} if is_turned else {})


def test_a_folder_of_exports(run: Run, root: Path) -> None:
    """Files that are none are named, as are pictures that are not there; --format takes one kind."""
    write("exports/annotations.xml", CVAT)
    write("exports/deep/coco.json", {**COCO, "images": [*COCO["images"], {"id": 9, "file_name": "cow/1.jpg"}]})
    write("exports/package.json", {"name": "x"})
    write("exports/voc.xml", "<annotation><filename>a.jpg</filename></annotation>")
    assert "cat/a b.jpg is annotated a second time" in refusal(run, "exports")
    found = imported(run, "exports", "--format", "coco")
    assert found["n_points"] == 4
    assert len(found["notes"]["left out: files that are no such export"]) == 3
    assert found["notes"]["left out: pictures that are not in photographs"] == ["cow/1.jpg"]


def test_the_same_import_again_and_another(run: Run, root: Path) -> None:
    source = write("coco.json", COCO)
    assert imported(run, source) == imported(run, source)
    before = (root / "keypoints.csv").read_bytes()
    other = write("annotations.xml", CVAT)
    assert "keypoints.csv is there and differs; move it away, or name another --out FILE.csv." in refusal(run, other)
    assert (root / "keypoints.csv").read_bytes() == before
    result = run("import", other, "--out", "photographs/cvat.csv")
    assert result.exit_code == 0, result.output
    assert len(table(root / "cvat.csv")) == 6
    assert result.output.splitlines() == [
        "photographs/cvat.csv: 5 keypoints of 2 photographs: left ear, nose, wheel 1, wheel 2, lamp",
        "photographs/boxes.csv: the boxes of 1 of them",
        "left out: points outside of the picture: 1 (cat/a b.jpg)",
        "left out: shapes of the kind polygon: 1 (cat/a b.jpg)",
        "left out: shapes of the kind tag: 1 (cat/a b.jpg)",
        "taken, though something hides them: points: 1 (cat/a b.jpg)",
        "  dualsd cache build --dataset folder --root photographs --model sd2-1 --store mine.zarr",
    ]


def test_groups_of_cvat(run: Run, root: Path) -> None:
    """Points of a group are an object, with the group's box; a box that is turned is none."""
    shape = '<points label="{}" occluded="0" points="{}" z_order="0"{}></points>'
    box = '<box label="{}" occluded="0" xtl="{}" ytl="1" xbr="{}" ybr="9" z_order="0"{}></box>'
    one, two = ' group_id="1"', ' group_id="2"'
    shapes = [shape.format("nose", "2,3", one), shape.format("tail", "4,5", one), shape.format("nose", "6,7", two)]
    shapes += [box.format("dog", 1, 8, one), box.format("cat", 5, 9, two), box.format("cat", 0, 9, ' rotation="30.0"')]
    image = f'<image id="0" name="a b.jpg" width="60" height="40">{"".join(shapes)}</image>'
    found = imported(run, write("annotations.xml", f"<annotations>{image}</annotations>"))
    assert table(root / "keypoints.csv")[1:] == [["cat/a b.jpg", "nose", "6", "7"]]  # its box is the smaller, of a cat
    assert table(root / "boxes.csv")[1:] == [["cat/a b.jpg", "5", "1", "9", "9"]]
    assert counts(found) == {"left out: shapes of the kind box": 1, "left out: further objects": 1}


def test_names_alone(run: Run, root: Path) -> None:
    """Where the export has no folders, a name that is there once is enough, and one that is there twice is not."""
    flat = {**COCO, "images": [{**COCO["images"][0], "file_name": "a b.jpg"}, COCO["images"][1]]}
    assert imported(run, write("coco.json", flat))["n_images"] == 2
    Image.new("RGB", (60, 40)).save(root / "dog" / "a b.jpg")
    assert "may be cat/a b.jpg or dog/a b.jpg; export it with its folder" in refusal(run, "coco.json")


def test_one_object_and_one_box_belong_together(run: Run, root: Path) -> None:
    """Without groups; of two boxes neither is taken."""
    loose = [{**shape, "group_id": None} for shape in LABELME["shapes"][:3]]
    imported(run, write("photographs/cat/a.json", {**LABELME, "shapes": loose}))
    assert table(root / "boxes.csv")[1:] == [["cat/a b.jpg", "2", "5", "50", "35"]]
    for file in root.glob("*.csv"):
        file.unlink()
    thin = {**loose[2], "points": [[2, 5], [2, 35]]}
    assert imported(run, write("photographs/cat/a.json", {**LABELME, "shapes": [*loose[:2], thin]}))["n_boxes"] == 0
    found = imported(run, write("photographs/cat/a.json", {**LABELME, "shapes": [*loose, loose[2]]}))
    assert not (root / "boxes.csv").exists()
    assert counts(found) == {"left out: boxes without area, or of no object with points": 2}


def changed(content: Mapping[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A copy with a change."""
    copy: dict[str, Any] = json.loads(json.dumps(content))
    change(copy)
    return copy


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotations><image name="&c;"/></annotations>'

DAMAGED = {
    "half a JSON": (json.dumps(COCO)[:200], "cannot be read"),
    "deep JSON": ("[" * 100_000, "cannot be read"),
    "half an XML": (CVAT[:900], "cannot be read"),
    "entities": (BOMB, "document type, DOCTYPE, which no such export has"),
    "a file": ('<?xml version="1.0"?><!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "DOCTYPE"),
    "another JSON": ({"a": 1}, "is no export of LabelMe, COCO keypoints or CVAT for images; name another file"),
    "a list": ([1], "is no export of"),
    "a video": (CVAT.replace("<version>", '<track id="0"/><version>'), "CVAT for video, not of CVAT for images 1.1"),
    "a word": (CVAT.replace("12.50", "abc"), "could not convert string to float: 'abc'"),
    "nan": (CVAT.replace("12.50", "nan"), "nan is no number of pixels"),
    "one number": (CVAT.replace("12.50,8.00", "12.50"), "could not convert string to float: ''"),
    "a size": (CVAT.replace('width="60"', 'width="600"'), "says 600x40 pixels where cat/a b.jpg has 60x40; annotate"),
    "no name": (CVAT.replace('label="nose"', 'label=" "'), "'' is no name of a point; rename it"),
    "twice": (CVAT.replace('label="nose"', 'label="left ear"'), "'left ear' stands twice in one object; give each"),
    "no shape": (changed(LABELME, lambda own: own["shapes"][0].pop("points")), "shapes[0].points is missing"),
    "a huge point": (changed(LABELME, lambda own: own["shapes"][0].update(points=[[1e9, 0]])), "not at most 1000000"),
    "three of a point": (changed(COCO, lambda own: own["annotations"][0]["keypoints"].pop()), "annotations[0] has 8"),
    "no category": (changed(COCO, lambda own: own["categories"].pop()), "annotations[0] is of an image or a category"),
    "no image": (changed(COCO, lambda own: own["images"].pop()), "annotations[3] is of an image or a category"),
    "a text": (
        changed(COCO, lambda own: own["annotations"][0].update(bbox="1,2,3,4")),
        "'1,2,3,4', not a list",
    ),
    "boxes": ({**COCO, "annotations": [{"image_id": 7, "category_id": 3}]}, "(left out: objects without points (1))"),
    "elsewhere": (
        {**COCO, "images": [{"id": 7, "file_name": "x"}, {"id": 8, "file_name": "y"}]},
        "not in photographs (2)",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_what_is_refused(run: Run, root: Path, content: Any, sentence: str) -> None:
    found = refusal(run, write("export.json", content))
    assert sentence in found
    assert "export.json" in found
    assert not list(root.glob("*.csv"))


def test_other_refusals(run: Run, root: Path) -> None:
    labelme = write("photographs/cat/a b.json", LABELME)
    assert "is an export of labelme; name another file, or another --format" in refusal(
        run, labelme, "--out", "photographs", "--format", "coco"
    )
    assert "does not exist" in refusal(run, labelme, "--out", "nowhere")
    assert "cannot be read (No such file" in refusal(run, "nothing.json")
    again = write("photographs/cat/again.json", LABELME)
    assert f"{again}: cat/a b.jpg is annotated a second time; import one of both." in refusal(run, "photographs")
    with ZipFile("task.zip", "w") as archive:
        archive.writestr("annotations.xml", CVAT)
    assert "task.zip is an archive; unpack it" in refusal(run, "task.zip")
    (root / "cat" / "a b.jpg").write_bytes(b"")
    assert "cat/a b" in refusal(run, labelme)
