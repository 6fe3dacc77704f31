"""The layer `dino` as a user types it: alone, fused with a layer of the UNet, made beforehand."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from tests.cli.conftest import Run

FEW = ("--readouts", "nn,softmax", "--batch-size", "4", "--alphas", "0.1,0.5", "--json", "out.json")
FUSED = ("eval", "--layers", "2,dino", "--t", "261", "--ensemble", "1", *FEW)


def done(run: Run, *arguments: str) -> tuple[str, Any]:
    """Its output, and what it wrote to out.json."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(Path("out.json").read_text()) if "out.json" in arguments else None


def array_below(store: Path, pattern: str) -> NDArray[Any]:
    (folder,) = store.glob(pattern)
    array = zarr.open_array(folder, mode="r")
    return np.asarray(array[:]).astype(np.float32)


def test_dino_alone_needs_no_unet(run: Run, store: Path, small_model: Path) -> None:
    shutil.rmtree(store / "noisy")
    output, out = done(run, "eval", "--layers", "dino", *FEW)
    assert "layer dino: 96 channels, 16x16 cells of 14 pixels; images resized to 224 pixels" in output
    assert "UNet" not in output
    assert (out["layers"], out["t"], out["weights"]) == (["dino"], [None], [1.0])
    assert out["features"]["dino"] == f"{small_model}/dinov2"
    assert out["features"]["dino_size"] == 224
    assert not {"prompt", "ensemble", "model"} & set(out["features"])
    assert not (store / "noisy").exists()
    assert [array.parts[-2:] for array in store.glob("maps/*/*/*/")] == [("dino", "patches")]
    again, same = done(run, "eval", "--layers", "dino", *FEW)
    assert ("layer dino: 96" not in again, same["results"]) == (True, out["results"])


def test_eval_scores_the_maps_that_it_kept(run: Run, store: Path, photographs: Path) -> None:
    """PCK of nn, alone and fused with layer 2, from the stored maps and the keypoints, all in numpy and torch."""
    _, alone = done(run, "eval", "--layers", "dino", *FEW)
    _, fused = done(run, *FUSED)
    maps = {
        "dino": array_below(store, "maps/*/dino/patches"),
        "2": array_below(store, "maps/*/layer2/t0261"),
    }
    assert (maps["dino"].shape, maps["2"].shape) == ((6, 96, 16, 16), (6, 128, 8, 8))
    units = {}
    for name, raw in maps.items():
        up = torch.nn.functional.interpolate(
            torch.from_numpy(raw), (16, 16), mode="bicubic", align_corners=True
        ).numpy()
        units[name] = up / np.linalg.norm(up, axis=1, keepdims=True)
    ids = [str(image) for image in zarr.open_group(store, mode="r")["images/id"][:]]  # type: ignore[index]
    points: dict[str, list[tuple[float, float]]] = {image: [] for image in ids}
    widths = {image: (60 + 10 * int(image[-1]), 40 + 6 * int(image[-1])) for image in ids}
    for line in (photographs / "keypoints.csv").read_text().splitlines()[1:]:
        image, _, x, y = line.split(",")
        points[image].append((float(x) * 64 / widths[image][0], float(y) * 64 / widths[image][1]))
    for result, names in ((alone, ["dino"]), (fused, ["2", "dino"])):
        shares = []
        for source in ids:
            for target in ids:
                if source == target or source[:3] != target[:3]:
                    continue
                hits = []
                for start, truth in zip(points[source], points[target], strict=True):
                    raw = {"dino": maps["dino"]} if names == ["dino"] else units  # one layer is sampled raw
                    total = np.zeros((16, 16))
                    length = 0.0
                    for name in names:
                        u, v = (value * 15 / 63 for value in start)
                        left, top = int(u), int(v)
                        a, b = u - left, v - top
                        m = raw[name][ids.index(source)]
                        sampled = (1 - b) * ((1 - a) * m[:, top, left] + a * m[:, top, left + 1]) + b * (
                            (1 - a) * m[:, top + 1, left] + a * m[:, top + 1, left + 1]
                        )
                        length += float(sampled @ sampled)
                        total += np.einsum("c,chw->hw", sampled, units[name][ids.index(target)])
                    y, x = divmod(int((total / np.sqrt(length)).argmax()), 16)
                    error = np.hypot(x * 63 / 15 - truth[0], y * 63 / 15 - truth[1])
                    hits.append(error <= 0.5 * 64)  # theta of `folder` is the side of the image
                shares.append(np.mean(hits))
        assert result["results"]["nn"]["image"]["0.5"]["all"] == pytest.approx(np.mean(shares))


def test_fused_with_a_layer_of_the_unet(run: Run, store: Path) -> None:
    output, out = done(run, *FUSED)
    assert "layer 2 at t = 261 x 0.5 + layer dino x 0.5" in output
    assert (out["layers"], out["t"], out["weights"]) == ([2, "dino"], [261, None], [0.5, 0.5])
    assert out["features"]["prompt"] == "a photo of a {category}"
    assert out["features"]["dino_size"] == 224
    # equal weights are equal weights, and the order of layers does not matter
    for same in (("--layers", "2,dino", "--weights", "1,1"), ("--layers", "dino,2")):
        _, other = done(run, "eval", *same, "--t", "261", "--ensemble", "1", *FEW)
        assert other["results"] == out["results"]
    assert other["layers"] == ["dino", 2]
    assert other["t"] == [None, 261]
    _, three = done(run, "eval", "--layers", "2,3,dino", "--t", "261,50", "--weights", "1,1,1", "--ensemble", "1", *FEW)
    assert three["t"] == [261, 50, None]


def test_a_photograph_matched_with_its_copy_is_found(run: Run, photographs: Path, store: Path) -> None:
    shutil.copy(photographs / "cat" / "0.png", photographs / "cat" / "1.png")
    (photographs / "pairs.csv").write_text("source,target\ncat/0,cat/1\n")
    marks = [row for row in (photographs / "keypoints.csv").read_text().splitlines() if not row.startswith("cat/1")]
    copied = [row.replace("cat/0", "cat/1") for row in marks if row.startswith("cat/0")]
    (photographs / "keypoints.csv").write_text("\n".join([*marks, *copied]) + "\n")
    assert run("cache", "build", "--t", "50,261").exit_code == 0
    for layers in (("--layers", "dino"), ("--layers", "2,dino", "--t", "261")):
        _, out = done(run, "eval", *layers, *FEW)
        assert out["results"]["nn"]["point"]["0.1"]["all"] == 1.0


def test_maps_made_beforehand_are_what_eval_needs(run: Run, store: Path, small_model: Path) -> None:
    maps = ("cache", "maps", "--layers", "2,dino", "--t", "261", "--ensemble", "1", "--batch-size", "4")
    before = {file: file.stat().st_size for file in store.rglob("c.*")}
    output, cost = done(run, *maps, "--dry-run", "--json", "out.json")
    assert "6 UNet passes, 6 DINOv2 passes" in output
    assert "layer dino: 96 channels, 16x16 cells" in output
    output, report = done(run, *maps, "--json", "out.json")
    made = {file: file.stat().st_size for file in store.rglob("c.*") if file not in before}
    assert (cost["files_to_write"], cost["bytes_to_write"]) == (len(made), sum(made.values()))
    assert (report["passes"], report["dino_passes"]) == (6, 6)
    assert "6 DINOv2 passes made" in output
    assert set(done(run, *maps, "--dry-run", "--json", "out.json")[1].values()) == {0}
    info, content = done(run, "cache", "info", "--json", "out.json")
    assert f"DINOv2 '{small_model}/dinov2', 224 pixels, float32" in info
    (array,) = (array for array in content["arrays"] if array["path"].endswith("/dino/patches"))
    assert array["path"] == f"maps/{report['dino_extractor']}/dino/patches"
    assert (array["row_shape"], array["present"]) == ([96, 16, 16], 6)
    # everything is cached: neither model is needed
    small_model.rename(small_model.parent / "aside")
    try:
        for evaluation in (("eval", "--layers", "dino", *FEW), FUSED):
            done(run, *evaluation)
        refused = run("eval", "--layers", "dino", "--dino-size", "70")
    finally:
        (small_model.parent / "aside").rename(small_model)
    assert refused.exit_code == 2


def test_dino_alone_beforehand(run: Run, store: Path) -> None:
    output, report = done(run, "cache", "maps", "--layers", "dino", "--dino-size", "56", "--json", "out.json")
    assert "layer dino: 96 channels, 4x4 cells of 14 pixels; images resized to 56 pixels" in output
    assert set(report) == {"images", "dino_passes", "dino_extractor"}
    assert "UNet" not in output
    output, out = done(run, "eval", "--layers", "dino", "--dino-size", "56", *FEW)
    assert out["features"]["dino_extractor"] == report["dino_extractor"]
    assert "layer dino: " not in output  # nothing was made


def test_another_dinov2_by_folder(run: Run, store: Path, small_model: Path, tmp_path: Path) -> None:
    shutil.copytree(small_model / "dinov2", tmp_path / "own")
    _, own = done(run, "eval", "--layers", "dino", "--dino", "own", *FEW)
    assert own["features"]["dino"] == str(tmp_path / "own")
    output, models = done(run, "eval", "--layers", "dino", *FEW)
    assert models["features"]["dino_extractor"] == own["features"]["dino_extractor"]  # the same weights
    assert "layer dino: " not in output


def test_an_image_that_broke_is_left_out_on_request(run: Run, photographs: Path, store: Path) -> None:
    (photographs / "cat" / "1.png").write_bytes(b"")
    assert run("cache", "build", "--t", "50,261", "--skip-bad").exit_code == 0
    refused = run("eval", "--layers", "dino")
    assert (refused.exit_code, "cat/1" in refused.stderr) == (2, True)
    for evaluation in (("eval", "--layers", "dino", *FEW), FUSED):
        output, out = done(run, *evaluation, "--skip-bad")
        assert output.count("1 image(s) could not be read") == 1
        assert "4 of 12 pairs are left out" in output
        assert out["n_pairs"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "--layers", "dino", "--dino", "dinov2"], "no DINOv2 'dinov2'"),
        (["eval", "--layers", "dino", "--dino-size", "600"], "--dino-size 602"),
        (["cache", "maps", "--layers", "dino", "--dino-size", "600"], "--dino-size 602"),
    ],
)
def test_a_store_and_a_dinov2_that_cannot_be_used(run: Run, store: Path, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (store / "maps").exists()
