"""--annotations: a data set in COCO's form is built, found again where it was moved, and scored."""

import json
from pathlib import Path

from tests.cli.conftest import Run


def write_coco(photographs: Path, root: Path) -> int:
    """The small photographs with two keypoints and a box each, and a crowd; how many there are."""
    files = sorted(own for own in photographs.rglob("*") if own.suffix in (".png", ".jpg"))
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number, file in enumerate(files, start=1):
        name = f"{number:012}{file.suffix}"
        (root / "images" / name).write_bytes(file.read_bytes())
        images.append({"id": number, "file_name": name})
        keypoints = [5 + number, 6, 2, 10, 12 + number, 1]
        annotations.append({"image_id": number, "category_id": 1, "bbox": [2, 2, 25, 25], "keypoints": keypoints})
    annotations.append({**annotations[0], "iscrowd": 1})
    categories = [{"id": 1, "name": "thing", "keypoints": ["left", "right"]}]
    (root / "a.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return len(files)


def test_coco_from_build_to_report(run: Run, photographs: Path, small_model: Path) -> None:
    count = write_coco(photographs, Path("coco"))
    build = ("cache", "build", "--t", "50,261", "--batch-size", "4")
    of_coco = ("--dataset", "coco", "--root", "coco", "--annotations", "coco/a.json")
    result = run(*build, *of_coco, "--model", str(small_model), "--size", "64")
    assert result.exit_code == 0, result.output
    header = json.loads(Path("dualsd.zarr/zarr.json").read_text())["attributes"]
    assert header["dataset"] == {"name": "coco", "root": str(Path("coco").resolve()), "annotations": "a.json"}
    assert f"{count} images of coco, 0 encoded, {count} skipped" in run(*build).output

    Path("coco").rename("moved")
    evaluated = run(
        *("eval", "--root", "moved", "--layers", "2", "--t", "261", "--prompt", "a {category}", "--ensemble", "1"),
        *("--readouts", "nn", "--out", "runs/a", "--json", "a.json"),
    )
    assert evaluated.exit_code == 0, evaluated.output
    found = json.loads(Path("a.json").read_text())
    assert (found["dataset"], found["split"], found["n_pairs"]) == ("coco", "test", count * (count - 1))
    assert found["n_points"] == 2 * found["n_pairs"]
    report = run("report", "runs/a", "--root", "moved")
    assert report.exit_code == 0, report.output
    assert "Their pictures cannot be shown" not in Path("runs/a/report.html").read_text()
    for page in ("report.html", "table.md"):  # what is odd about the list
        assert f"1 of {count + 1} objects in moved/a.json are left out" in Path("runs/a", page).read_text()
    Path("moved").rename("coco")
    assert run("eval", "--layers", "2", "--t", "261", "--prompt", "a {category}", "--readouts", "nn").exit_code == 0
