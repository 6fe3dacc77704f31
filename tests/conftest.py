"""A small model and a small folder of photographs that tests share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.backbone.small_model import write_small_model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 2-1's block structure with seeded random weights, as a diffusers folder."""
    folder = tmp_path_factory.mktemp("model") / "small"
    write_small_model(folder, seed=3)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Fingerprints are remembered in a folder of the tests' own."""
    import os

    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A `folder` dataset: 2 categories of 3 pictures each, 4 keypoints a picture, sizes 60x40 and so on."""
    root = tmp_path / "photographs"
    rows = ["image,name,x,y"]
    random = np.random.default_rng(5)
    for category in ("cat", "dog"):
        (root / category).mkdir(parents=True)
        for index in range(3):
            width, height = 60 + 10 * index, 40 + 6 * index
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / category / f"{index}.png")
            rows += [
                f"{category}/{index},k{point},{random.uniform(0, width - 1):.2f},{random.uniform(0, height - 1):.2f}"
                for point in range(4)
            ]
    (root / "keypoints.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no small file system can be mounted here: that takes the rights of an administrator")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
