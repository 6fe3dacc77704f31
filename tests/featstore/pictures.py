"""Photographs for grids: pictures of a category are crops of one texture, so that matching them finds some points and
misses others."""

from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = {"cat": 3, "dog": 4}
PAIRS = {"cat": 6, "dog": 12}
"""All ordered pairs of a category's pictures."""
KEYPOINTS = 5
"""Of which every picture after a category's first lacks one, another each."""

_SIDE = 120


def write_pictures(root: Path) -> Path:
    """A `folder` dataset: 7 pictures of 2 categories, of sizes 60x40 and so on."""
    rows = ["image,name,x,y"]
    random = np.random.default_rng(5)
    for category, count in PICTURES.items():
        (root / category).mkdir(parents=True)
        texture = Image.fromarray(random.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((_SIDE, _SIDE))
        marks = random.uniform(30, 90, (KEYPOINTS, 2))
        for index in range(count):
            left, top = random.uniform(0, 20, 2)
            size = np.array([60 + 10 * index, 40 + 6 * index])
            pixels = np.asarray(texture.resize(tuple(size.tolist()), box=(left, top, left + 100, top + 100)), float)
            noisy = np.clip(pixels + random.normal(0, 40, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / category / f"{index}.png")
            for mark, place in enumerate((marks - (left, top)) * size / 100):
                if index == 0 or mark != index:
                    rows.append(f"{category}/{index},k{mark},{place[0]:.2f},{place[1]:.2f}")
    (root / "keypoints.csv").write_text("\n".join(rows) + "\n")
    return root
