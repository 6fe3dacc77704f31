"""Annotations that contradict their pictures, through the commands that see both. Case numbers are those of
shared/cases, whose annotations lie in tests/cases; pictures are made here."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from featstore.pipeline.results import EvaluationRun
from tests.cli.conftest import Run

CASES = Path(__file__).parents[1] / "cases"
DATA = Path(__file__).parents[3] / "shared" / "data"
DATASETS = {"SPair-71k": "spair", "photos": "folder"}
SIDE = 128


def case(name: str, copy: Path, side: int = SIDE) -> tuple[str, Path, Path]:
    """A case's dataset with pictures of `side` pixels: (its name, its root, a file of features of every picture)."""
    shutil.copytree(CASES / name, copy)
    (root,) = (path for path in copy.iterdir() if path.is_dir())
    folder, suffix = (root / "JPEGImages", "jpg") if root.name == "SPair-71k" else (root, "png")
    (folder / "car").mkdir(parents=True)
    random, maps = np.random.default_rng(2), {}
    for number in range(4):
        noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "car" / f"test{number:04d}.{suffix}")
        maps[f"car/test{number:04d}|a"] = random.standard_normal((8, 16, 16)).astype(np.float32)
    save_file(maps, copy / "maps.safetensors")
    return DATASETS[root.name], root, copy / "maps.safetensors"


def evaluated(run: Run, dataset: str, root: Path, features: Path, size: int = SIDE) -> EvaluationRun:
    result = run(
        *("eval", "--features", str(features), "--dataset", dataset, "--root", str(root), "--layers", "a"),
        *("--size", str(size), "--readouts", "nn", "--out", "out"),
    )
    assert result.exit_code == 0, result.output
    return EvaluationRun.open(Path("out"))


def check_refused(run: Run, small_model: Path, found: tuple[str, Path, Path], *words: str) -> None:
    """By `cache build`, before anything is made, and by `eval --features`, in the same sentence."""
    dataset, root, features = found
    chosen = ("--dataset", dataset, "--root", str(root))
    for arguments in (
        ("cache", "build", *chosen, "--model", str(small_model), "--size", "64"),
        ("eval", "--features", str(features), *chosen, "--size", "128", "--layers", "a"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("\n") == 1
        for word in words:
            assert word in result.stderr
    assert not Path("dualsd.zarr").exists()


def test_case_08_spair_resized_images(run: Run, tmp_path: Path, small_model: Path) -> None:
    found = case("08-spair-resized-images", tmp_path / "case", side=256)
    first = "000000-test0000-test0001_car.json"
    words = (first, "of an image of 128x128 pixels", "car/test0000 (256x256 pixels)")
    check_refused(run, small_model, found, *words)


def test_case_08_with_its_own_images_has_theta_90(run: Run, tmp_path: Path) -> None:
    matched = evaluated(run, *case("08-spair-resized-images", tmp_path / "case")).matched
    assert matched[0].pair.theta == 90


def test_case_09_spair_box_inverted_x(run: Run, tmp_path: Path, small_model: Path) -> None:
    found = case("09-spair-box-inverted-x", tmp_path / "case")
    check_refused(run, small_model, found, "test0000_car.json", "the bounding box 122, 34, 9, 112 of car/test0000")


def test_case_09_in_order_has_the_theta_of_its_readme(run: Run, tmp_path: Path) -> None:
    dataset, root, features = case("09-spair-box-inverted-x", tmp_path / "case")
    for path in root.glob("PairAnnotation/test/*.json"):
        annotation = json.loads(path.read_text())
        left, top, right, bottom = annotation["trg_bndbox"]
        path.write_text(json.dumps({**annotation, "trg_bndbox": [right, top, left, bottom]}))
    thetas = {match.pair.target: match.pair.theta for match in evaluated(run, dataset, root, features).matched}
    assert thetas == {"car/test0001": 90, "car/test0002": 83, "car/test0000": 113}


def test_case_10_spair_box_beyond_image(run: Run, tmp_path: Path, small_model: Path) -> None:
    found = case("10-spair-box-beyond-image", tmp_path / "case")
    check_refused(
        run, small_model, found, ".json: the bounding box -50, -50, 500, 400 of car/test000", "beyond the image"
    )


def test_case_12_folder_normalised_coordinates(run: Run, tmp_path: Path, small_model: Path) -> None:
    found = case("12-folder-normalised-coordinates", tmp_path / "case")
    words = ("keypoints.csv, from line 2: all 10 keypoints of car/test0000", "within one pixel of its corner")
    check_refused(run, small_model, found, *words)


def test_case_13_folder_visibility_column(run: Run, tmp_path: Path) -> None:
    """Rows of visible = 0 count as rows that are not there."""
    dataset, root, features = case("13-folder-visibility-column", tmp_path / "case")
    found = evaluated(run, dataset, root, features).matched
    path = root / "keypoints.csv"
    lines = [line.rsplit(",", 1) for line in path.read_text().splitlines()]
    path.write_text("".join(f"{line}\n" for line, visible in lines if visible != "0"))
    shutil.rmtree("out")
    expected = evaluated(run, dataset, root, features).matched
    assert [match.pair.names for match in found] == [match.pair.names for match in expected]
    assert sum(len(match.pair.target_points) for match in found) == 84
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.pair.target_points, theirs.pair.target_points)
        assert (ours.pair.target_points > 1).all()


@pytest.mark.skipif(not DATA.is_dir(), reason="the PF-Willow data are not beside this checkout")
@pytest.mark.parametrize("pad", ["0", "-1", "nan", ""])
def test_case_14_willow_padding(run: Run, tmp_path: Path, pad: str) -> None:
    """make.py's list: 90 pairs, keypoint 10 padded. Points and theta are those of the nine others, by hand."""
    root = tmp_path / "willow"
    root.mkdir()
    (root / "PF-dataset").symlink_to(DATA / "pf-willow" / "PF-dataset")
    with (DATA / "pf-willow" / "test_pairs.csv").open(newline="") as stream:
        header, *rows = list(csv.reader(stream))[:91]
    padded = {header.index(f"{axis}{side}10") for axis in "XY" for side in "AB"}
    with (root / "test_pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([pad if place in padded else value for place, value in enumerate(row)] for row in rows)
    result = run(
        *("eval", "--features", str(DATA / "pf-willow-effnet-features.safetensors"), "--dataset", "pf-willow"),
        *("--root", str(root), "--size", "384", "--layers", "s16", "--readouts", "nn", "--out", "out"),
    )
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.replace("\n", " ").split("note: ") if "pad its lists" in line]
    assert len(notes) == (pad in ("0", "-1"))
    if notes:
        assert "10 keypoints of pf-willow" in notes[0]  # one per image
    for row, match in zip(rows, EvaluationRun.open(Path("out")).matched, strict=True):
        named = dict(zip(header, row, strict=True))
        points = np.array([[float(named[f"{axis}B{number}"]) for axis in "XY"] for number in range(1, 10)])
        scaled = points * 384 / match.pair.in_original_frame().target_size
        assert match.pair.theta == pytest.approx(np.ptp(scaled, axis=0).max())
        assert match.pair.names == tuple(map(str, range(1, 10)))
        np.testing.assert_allclose(match.pair.target_points, scaled, rtol=1e-5)


def test_a_folder_without_keypoints_is_built(run: Run, tmp_path: Path, small_model: Path) -> None:
    dataset, root, _ = case("12-folder-normalised-coordinates", tmp_path / "case")
    (root / "keypoints.csv").unlink()
    chosen = ("--dataset", dataset, "--root", str(root), "--model", str(small_model), "--size", "64", "--t", "50")
    result = run("cache", "build", *chosen)
    assert result.exit_code == 0, result.output


def test_eval_and_grid_refuse_before_maps_are_made(run: Run, store: Path, photographs: Path) -> None:
    """Annotations that changed after the store was built."""
    path = photographs / "keypoints.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    path.write_text("image,name,x,y\n" + "".join(f"{i},{n},{float(x) * 2},{float(y) * 2}\n" for i, n, x, y in rows))
    maps = set(store.glob("maps/**"))
    for arguments in (("eval", "--layers", "2", "--t", "261"), ("grid", "--layers", "2", "--t", "50", "--out", "g")):
        result = run(*arguments, "--ensemble", "1")
        assert result.exit_code == 2, result.output
        assert "keypoints of folder lie far outside their image" in result.stderr
    assert set(store.glob("maps/**")) == maps
