"""Photographs that ask to be turned: `match` takes them as a viewer shows them, a store as stored; both say so."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from featstore.pipeline.photos import open_photo
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


def test_match_takes_points_as_a_viewer_shows_them(run: Run, turned: Path, small_model: Path) -> None:
    options = ("--model", str(small_model), "--ensemble", "1", "--size", "64", "--json", "m.json")
    found = run("match", str(turned), str(turned), "--points", "20,50", *options)  # outside of what is stored
    assert found.exit_code == 0, found.output
    assert np.abs(np.array(json.loads(Path("m.json").read_text())["target_points"]) - [20, 50]).max() <= 2
    said = " ".join(found.stderr.split())  # a narrow terminal folds it
    assert "1 of 1 images, e.g. 0.png, are turned as a viewer shows them (EXIF orientation)" in said
    outside = run("match", str(turned), str(turned), "--points", "50,20", *options)
    assert (outside.exit_code, "which is 40x60 pixels" in outside.stderr) == (2, True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_ways_to_turn(tmp_path: Path, orientation: int) -> None:
    """As Pillow turns pictures, and so that a point stays on its pixel."""
    pixels = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    stored, exif = Image.fromarray(pixels), Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    photo = open_photo(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(photo.picture, ImageOps.exif_transpose(opened))
    assert (photo.orientation, photo.stored_size) == (orientation, (8, 5))
    points = np.array([[0, 0], [7, 0], [2, 3], [7, 4]], dtype=np.float32) + np.float32(0.5)  # pixels' middles
    found = photo.from_stored(points)
    shown = np.asarray(photo.picture)
    for (x, y), (column, row) in zip(points.astype(int), found.astype(int), strict=True):
        np.testing.assert_array_equal(shown[row, column], pixels[y, x])
    np.testing.assert_array_equal(photo.to_stored(found), points)


def test_a_store_keeps_sizes_as_stored(run: Run, turned: Path, photographs: Path, small_model: Path) -> None:
    arguments = ("--dataset", "folder", "--root", str(photographs), "--model", str(small_model))
    result = run("cache", "build", *arguments, "--size", "64", "--t", "50", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "1 images of folder, e.g. cat/0, ask to be turned when they are shown (EXIF orientation)" in said
    assert open_store(Path("dualsd.zarr")).images.size("cat/0") == (60, 40)
