"""Small synthetic trees in the layouts in which the benchmarks are distributed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

WriteImage = Callable[[Path, tuple[int, int]], None]


def _write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


@pytest.fixture(scope="session")
def write_image() -> WriteImage:
    return _write_image


SPAIR_ANNOTATION: dict[str, Any] = {
    "filename": "000001-2008_002719-2008_004100:aeroplane",
    "src_imname": "2008_002719.jpg",
    "trg_imname": "2008_004100.jpg",
    "src_imsize": [40, 30, 3],
    "trg_imsize": [50, 20, 3],
    "src_bndbox": [1, 2, 30, 20],
    "trg_bndbox": [5, 3, 45, 18],
    "category": "aeroplane",
    "src_pose": "Left",
    "trg_pose": "Right",
    "src_kps": [[3, 4], [10, 12], [20, 15]],
    "trg_kps": [[6, 5], [22, 9], [40, 17]],
    "kps_ids": ["0", "3", "7"],
    "mirror": 0,
    "viewpoint_variation": 2,
    "scale_variation": 1,
    "truncation": 3,
    "occlusion": 0,
}


@pytest.fixture
def spair_annotation() -> dict[str, Any]:
    return dict(SPAIR_ANNOTATION)


@pytest.fixture
def spair_root(tmp_path: Path) -> Path:
    """Three images of two categories; one pair in test and in val, two in trn."""
    root = tmp_path / "spair"
    _write_image(root / "JPEGImages" / "aeroplane" / "2008_002719.jpg", (40, 30))
    _write_image(root / "JPEGImages" / "aeroplane" / "2008_004100.jpg", (50, 20))
    _write_image(root / "JPEGImages" / "cat" / "2009_000001.jpg", (10, 10))
    _write_image(root / "JPEGImages" / "cat" / "2009_000002.jpg", (10, 10))
    lines = {
        "test": ["000001-2008_002719-2008_004100:aeroplane"],
        "val": ["000001-2008_004100-2008_002719:aeroplane"],
        "trn": ["000001-2009_000001-2009_000002:cat", "000002-2009_000002-2009_000001:cat"],
    }
    (root / "Layout" / "large").mkdir(parents=True)
    for split, names in lines.items():
        (root / "Layout" / "large" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        folder = root / "PairAnnotation" / split
        folder.mkdir(parents=True)
        for name in names:
            pair, category = name.split(":")
            _, source, target = pair.split("-")
            images = {"src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg", "category": category}
            (folder / f"{name}.json").write_text(json.dumps({**SPAIR_ANNOTATION, "filename": name, **images}))
    return root


def write_mat(path: Path, variables: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(variables))


NAN = float("nan")

PASCAL_KEYPOINTS = {
    "2008_000001": [[1.5, 2.0], [NAN, NAN], [30.0, 10.0], [4.0, 4.0]],
    "2008_000002": [[7.0, 8.0], [9.0, 9.0], [11.0, 12.5], [NAN, NAN]],
}


def _pascal_images(folder: Path) -> None:
    _write_image(folder / "JPEGImages" / "2008_000001.jpg", (40, 30))
    _write_image(folder / "JPEGImages" / "2008_000002.jpg", (60, 20))
    for stem, points in PASCAL_KEYPOINTS.items():
        variables = {"kps": np.array(points), "bbox": np.array([[1.0, 2.0, 3.0, 4.0]])}
        write_mat(folder / "Annotations" / "aeroplane" / f"{stem}.mat", variables)


def _pascal_list(path: Path, header: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


_A, _B = (f"PF-dataset-PASCAL/JPEGImages/2008_00000{number}.jpg" for number in (1, 2))


@pytest.fixture
def pascal_root(tmp_path: Path) -> Path:
    """SD4Match's layout: two images, in trn also mirrored."""
    root = tmp_path / "pascal"
    _pascal_images(root / "PF-dataset-PASCAL")
    header = "source_image,target_image,class"
    _pascal_list(root / "trn_pairs.csv", f"{header},flip", [f"{_A},{_B},1,0", f"{_A},{_B},1,1"])
    _pascal_list(root / "val_pairs.csv", header, [f"{_B},{_A},1"])
    _pascal_list(root / "test_pairs.csv", header, [f"{_A},{_B},1"])
    return root


@pytest.fixture
def pascal_folder(tmp_path: Path) -> Path:
    """The layout with the lists inside PF-dataset-PASCAL, which is returned; test and val only."""
    folder = tmp_path / "zip" / "PF-dataset-PASCAL"
    _pascal_images(folder)
    header = "source_image,target_image,class,XA,YA,XB,YB"
    _pascal_list(folder / "val_pairs_pf_pascal.csv", header, [f"{_B},{_A},1.0,1;2,1;2,1;2,1;2"])
    _pascal_list(folder / "test_pairs_pf_pascal.csv", header, [f"{_A},{_B},1.0,1;2,1;2,1;2,1;2"])
    return folder


WILLOW_HEADER = ["imageA", "imageB"] + [f"{axis}{side}{n}" for side in "AB" for axis in "XY" for n in range(1, 11)]


@pytest.fixture
def willow_root(tmp_path: Path) -> Path:
    """Two images of car(G), both ordered pairs."""
    root = tmp_path / "willow"
    _write_image(root / "PF-dataset" / "car(G)" / "Cars_006a.png", (40, 30))
    _write_image(root / "PF-dataset" / "car(G)" / "Cars_007a.png", (60, 20))
    a, b = "PF-dataset/car(G)/Cars_006a.png", "PF-dataset/car(G)/Cars_007a.png"
    ours = [str(n + 0.5) for n in range(10)] + [str(2 * n) for n in range(10)]
    theirs = [str(3 * n) for n in range(10)] + [str(n) for n in range(10)]
    lines = [",".join(WILLOW_HEADER), ",".join([a, b, *ours, *theirs]), ",".join([b, a, *theirs, *ours])]
    (root / "test_pairs.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder_root(tmp_path: Path) -> Path:
    """Three images of dog and one of cat, keypoints on two dogs and the cat, no pairs.csv."""
    root = tmp_path / "photos"
    for name in ("dog/a.jpg", "dog/b.PNG", "dog/c.d.webp", "cat/a.jpg"):
        _write_image(root / name, (20, 10))
    (root / "dog" / ".hidden.jpg").write_bytes(b"")
    (root / "dog" / "notes.txt").write_text("not an image")
    rows = ["dog/a.jpg,eye,1,2", "dog/a,nose,3.5,4", "dog/b.PNG,nose,5,6", "dog/b,tail,7,8", "cat/a,nose,1,1"]
    (root / "keypoints.csv").write_text("\n".join(["image,name,x,y", *rows]) + "\n")
    return root


COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "000000000007.jpg", "width": 40, "height": 30},
        {"id": 8, "file_name": "000000000008.jpg", "width": 50, "height": 20},
        {"id": 9, "file_name": "000000000009.jpg", "width": 20, "height": 20},
    ],
    "categories": [
        {"id": 1, "name": "person", "supercategory": "person", "keypoints": ["nose", "left_eye", "right_eye"]},
        {"id": 17, "name": "cat", "supercategory": "animal", "keypoints": ["nose", "tail"]},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 90.5, "num_keypoints": 2,
         "bbox": [1, 2, 30, 20], "keypoints": [3, 4, 2, 10, 12, 1, 0, 0, 0], "segmentation": [[1, 2, 3]]},
        {"id": 2, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 91, "num_keypoints": 3,
         "bbox": [2, 3, 31.5, 21], "keypoints": [5, 6, 2, 8, 9, 1, 20, 21, 2]},
        {"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 9999, "num_keypoints": 0,
         "bbox": [0, 0, 40, 30], "keypoints": [0] * 9},
        {"id": 4, "image_id": 7, "category_id": 1, "iscrowd": 1, "area": 9999, "num_keypoints": 1,
         "bbox": [0, 0, 40, 30], "keypoints": [1, 1, 2] * 3},
        {"id": 5, "image_id": 8, "category_id": 1, "iscrowd": 0, "area": 5, "num_keypoints": 1,
         "bbox": [0, 0, 50, 20], "keypoints": [0, 0, 0, 6, 5, 2, 0, 0, 0]},
        {"id": 6, "image_id": 9, "category_id": 1, "iscrowd": 0, "area": 5, "num_keypoints": 1,
         "bbox": [0, 0, 20, 20], "keypoints": [4, 3, 2, 0, 0, 0, 0, 0, 0]},
        {"id": 7, "image_id": 8, "category_id": 17, "iscrowd": 0,
         "bbox": [0, 0, 50, 20], "keypoints": [1, 2, 2, 0, 0, 0]},
        {"id": 8, "image_id": 9, "category_id": 17, "iscrowd": 0,
         "bbox": [0, 0, 20, 20], "keypoints": [0, 0, 0, 9, 9, 2]},
    ],
}  # fmt: skip


@pytest.fixture
def coco() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(COCO))
    return found


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """COCO's layout: three persons, of whom two pairs share a keypoint, and two cats, who share none."""
    root = tmp_path / "coco"
    for image in COCO["images"]:
        _write_image(root / "val2017" / image["file_name"], (image["width"], image["height"]))
    (root / "annotations").mkdir()
    (root / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(COCO))
    return root


@pytest.fixture
def cub_root(tmp_path: Path) -> Path:
    """Two birds to train on and two to test, of one species each."""
    root = tmp_path / "CUB_200_2011"
    files = [f"001.Black_footed_Albatross/Bird_{number}.jpg" for number in (1, 2)]
    files += [f"002.Laysan_Albatross/Bird_{number}.jpg" for number in (3, 4)]
    for number, file in enumerate(files, start=1):
        _write_image(root / "images" / file, (40 + number, 30))
    tables = {
        "images.txt": [f"{number} {file}" for number, file in enumerate(files, start=1)],
        "train_test_split.txt": ["1 1", "2 1", "3 0", "4 0"],
        "bounding_boxes.txt": [f"{number} {number}.0 2.0 30.0 20.0" for number in range(1, 5)],
        "parts/parts.txt": ["1 back", "2 left eye"],
        "parts/part_locs.txt": [
            *("1 1 3.0 4.0 1", "1 2 5.0 6.0 1", "2 1 0.0 0.0 0", "2 2 7.5 8.0 1"),
            *("3 1 3.0 4.0 1", "3 2 0.0 0.0 0", "4 1 9.0 4.0 1", "4 2 6.0 6.0 1"),
        ],
    }
    (root / "parts").mkdir()
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root
