"""A folder of photographs and features of them: four keypoints shine in channels of their own, beside channels of noise
that are louder, so that maps match badly as they are and a small network can do better."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

CATEGORIES = ("car(M)", "car(S)", "duck(S)", "cup(S)")
PICTURES, KEYPOINTS, SIZE = 6, ("left_eye", "right_eye", "nose", "tail"), 64
LAYERS = {"coarse": 8, "fine": 16}


def write_drawn(folder: Path) -> None:
    """Writes `pictures`, a `folder` data set, and `features.safetensors`."""
    random = np.random.default_rng(4)
    rows, maps = ["image,name,x,y"], dict[str, torch.Tensor]()
    for category in CATEGORIES:
        (folder / "pictures" / category).mkdir(parents=True)
        for picture in range(PICTURES):
            pixels = random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / category / f"{picture}.png")
            points = random.uniform(4, SIZE - 5, (len(KEYPOINTS), 2)).round(2)
            rows += [f"{category}/{picture},{name},{x},{y}" for name, (x, y) in zip(KEYPOINTS, points, strict=True)]
            for layer, side in LAYERS.items():
                cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1) * (SIZE - 1) / (side - 1)
                apart = np.linalg.norm(cells - points[:, None, None], axis=-1)  # (keypoints, side, side)
                loud = random.normal(0, 2, (4, side, side))
                made = np.concatenate([np.exp(-((apart / 10) ** 2)), loud]).astype(np.float16)
                maps[f"{category}/{picture}|{layer}"] = torch.from_numpy(made)
    (folder / "pictures" / "keypoints.csv").write_text("\n".join(rows) + "\n")
    save_file(maps, folder / "features.safetensors")


TYPED = ("--features", "features.safetensors", "--dataset", "folder", "--root", "pictures", "--size", str(SIZE))
TYPED += ("--layers", "coarse,fine", "--weights", "0.6,0.8")
