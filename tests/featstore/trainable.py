"""A small SPair-71k of noise: two categories of four pictures, all their pairs in trn, six of each category in val."""

import itertools
import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("cat", "dog")
PICTURES = 4
KEYPOINTS = 4
WIDTH, HEIGHT = 60, 40


def write_trainable(root: Path) -> None:
    """Writes it in SPair-71k's layout."""
    random = np.random.default_rng(5)
    names = {"trn": [], "val": [], "test": []}  # type: dict[str, list[str]]
    for category in CATEGORIES:
        folder = root / "JPEGImages" / category
        folder.mkdir(parents=True)
        points = {}
        for picture in range(PICTURES):
            pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{picture}.jpg")
            points[picture] = random.uniform((1, 1), (WIDTH - 2, HEIGHT - 2), (KEYPOINTS, 2)).round(1).tolist()
        for source, target in itertools.permutations(range(PICTURES), 2):
            for split in ("trn", "val", "test") if source < target else ("trn",):
                name = f"{len(names[split]):06d}-{source}-{target}:{category}"
                names[split].append(name)
                file = root / "PairAnnotation" / split / f"{name}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(_annotation(name, category, source, target, points)))
    layout = root / "Layout" / "large"
    layout.mkdir(parents=True)
    for split, own in names.items():
        (layout / f"{split}.txt").write_text("".join(f"{name}\n" for name in own))


def _annotation(
    name: str, category: str, source: int, target: int, points: dict[int, list[list[float]]]
) -> dict[str, object]:
    size, box = [WIDTH, HEIGHT, 3], [1, 1, WIDTH - 2, HEIGHT - 2]
    return {
        "filename": name,
        "src_imname": f"{source}.jpg",
        "trg_imname": f"{target}.jpg",
        "src_imsize": size,
        "trg_imsize": size,
        "src_bndbox": box,
        "trg_bndbox": box,
        "category": category,
        "src_pose": "Left",
        "trg_pose": "Right",
        "src_kps": points[source],
        "trg_kps": points[target],
        "kps_ids": [str(number) for number in range(KEYPOINTS)],
        "mirror": 0,
        "viewpoint_variation": 0,
        "scale_variation": 0,
        "truncation": 0,
        "occlusion": 0,
    }
