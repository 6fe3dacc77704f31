"""Photographs that ask to be turned: coordinates count in the pixels as stored, and the user is told so."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featstore.store.store import open_store
from tests.cli.conftest import Run


@pytest.fixture
def turned(photographs: Path) -> Path:
    """cat/0 of the photographs, 60x40 pixels as stored; a viewer shows it upright, 40x60."""
    path = photographs / "cat" / "0.png"
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(path) as opened:
        opened.save(path, exif=exif)
    return path


def test_match_takes_points_in_pixels_as_stored(run: Run, turned: Path, small_model: Path) -> None:
    options = ("--model", str(small_model), "--ensemble", "1", "--size", "64", "--json", "m.json")
    found = run("match", str(turned), str(turned), "--points", "50,20", *options)  # outside of what is shown
    assert found.exit_code == 0, found.output
    assert np.abs(np.array(json.loads(Path("m.json").read_text())["target_points"]) - [50, 20]).max() <= 2
    said = " ".join(found.stderr.split())  # a narrow terminal folds it
    assert (
        "0.png asks to be turned when it is shown (EXIF orientation 6); its pixels are taken as stored, 60x40" in said
    )
    outside = run("match", str(turned), str(turned), "--points", "20,50", *options)
    assert (outside.exit_code, "which is 60x40 pixels" in outside.stderr) == (2, True)


def test_a_store_keeps_sizes_as_stored(run: Run, turned: Path, photographs: Path, small_model: Path) -> None:
    arguments = ("--dataset", "folder", "--root", str(photographs), "--model", str(small_model))
    result = run("cache", "build", *arguments, "--size", "64", "--t", "50", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "1 images of folder, e.g. cat/0, ask to be turned when they are shown (EXIF orientation)" in said
    assert open_store(Path("dualsd.zarr")).images.size("cat/0") == (60, 40)
