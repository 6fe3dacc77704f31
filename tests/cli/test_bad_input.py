"""Whatever is wrong with the input: one sentence on stderr, exit code 2, no traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zarr

from tests.cli.conftest import Run

if TYPE_CHECKING:
    import torch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval"], "no store at dualsd.zarr"),
        (["eval", "--layers", "5"], "no layer 5"),
        (["eval", "--layers", "0,2"], "no layer 0"),
        (["eval", "--layers", "2,2"], "names a layer twice"),
        (["eval", "--layers", "two"], "from 1 to 4"),
        (["eval", "--t", "261,1000"], "no timestep 1000"),
        (["eval", "--layers", "2,3", "--t", "261"], "2 layer(s) but 1 timestep(s)"),
        (["eval", "--t", "400..50,1"], "empty range"),
        (["eval", "--t", "-5,3"], "--t takes timesteps"),
        (["eval", "--layers", "2,3", "--weights", "1"], "2 layer(s) but 1 weight(s)"),
        (["eval", "--weights", "a,b"], "--weights takes numbers"),
        (["eval", "--weights=nan,0.6"], "not a finite number"),
        (["eval", "--weights=inf,0.6"], "not a finite number"),
        (["eval", "--weights=0,0"], "one must be positive"),
        (["eval", "--t", "0..99999999999:1,5"], "no timestep 99999999999"),
        (["eval", "--json", "no/folder.json"], "no/folder.json cannot be written"),
        (["eval", "--layers", "2, 5"], "no layer 5"),
        (["cache", "build", "--model", "my models/sd21"], "no model 'my models/sd21'"),
        (["cache", "build", "--model", "a--b/sd21"], "no model 'a--b/sd21'"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2", "--readout", "nn,softmax"], "is 'nn,softmax', not one of 'nn'"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2", "--out", "no/m.png"], "no/m.png cannot be written"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2;" * 21, "--out", "m.png", "--heatmap"], "at most 20 points"),
        (["eval", "--layers", "1,2", "--t", "1,2"], "no default weights"),
        (["eval", "--layers", "dino,dino"], "names a layer twice"),
        (["eval", "--layers", "dino,5"], "no layer 5"),
        (["eval", "--layers", "dinov2"], "from 1 to 4"),
        (["eval", "--layers", "dino", "--t", "261"], "--t is for layers of the UNet, and --layers dino names none"),
        (["eval", "--layers", "dino", "--prompt", "a cat"], "--prompt is for layers of the UNet"),
        (["eval", "--layers", "dino", "--ensemble", "2"], "--ensemble is for layers of the UNet"),
        (["eval", "--layers", "2,dino", "--t", "261,200"], "1 layer(s) of the UNet (dino has none) but 2 timestep(s)"),
        (["eval", "--layers", "2,dino", "--weights", "1"], "2 layer(s) but 1 weight(s)"),
        (["eval", "--layers", "2,3,dino"], "no default weights for layers 2,3,dino"),
        (["eval", "--dino-size", "224"], "--dino-size goes with the layers dino and dinov3"),
        (["cache", "maps", "--layers", "2", "--dino", "x"], "--dino goes with the layers dino and dinov3"),
        (["cache", "maps", "--layers", "dino", "--t", "261"], "--t is for layers of the UNet"),
        (["grid", "--layers", "2,3,dino", "--t", "261", "--weights", "1:1"], "3 layer(s) but 2 weight(s)"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2", "--layers", "2,dino", "--t", "1,2"], "(dino has none)"),
        (["eval", "--alphas", "0,2"], "above 0 and at most 1"),
        (["eval", "--readouts", "nn,best"], "no readout 'best'"),
        (["eval", "--geometry", "round"], "not one of 'corners', 'half-pixel'"),
        (["eval", "--upsample", "0.5"], "--upsample"),
        (["eval", "--by", "keypoint"], "not one of 'image', 'point', 'category'"),
        (["eval", "--device", "tpu9"], "device 'tpu9'"),
        (["eval", "--dtype", "int4"], "--dtype"),
        (["eval", "--dataset", "spair"], "go with --features"),
        (["eval", "--features", "x.safetensors"], "needs --dataset"),
        (["eval", "--features", "x.safetensors", "--dataset", "demo", "--size", "64"], "needs --layers"),
        (
            ["eval", "--features", "x.safetensors", "--dataset", "demo", "--size", "64", "--layers", "a"],
            "no features file",
        ),
        (["cache", "build", "--dataset", "imagenet"], "imagenet"),
        (["cache", "build", "--annotations", "a.json"], "demo has its own annotations: leave out --annotations a.json"),
        (["cache", "build", "--dataset", "coco", "--root", "."], "give it with --annotations FILE.json"),
        (["eval", "--annotations", "a.json"], "go with --features"),
        (["cache", "build", "--dataset", "spair"], "--root"),
        (["cache", "build", "--dataset", "spair", "--root", "nowhere"], "nowhere"),
        (["cache", "build", "--model", "sd9"], "no model 'sd9'"),
        (["cache", "build", "--t", "1000"], "no timestep 1000"),
        (["cache", "build", "--latents", "mode"], "not one of 'sample', 'mean'"),
        (["cache", "info", "--store", "none.zarr"], "none.zarr"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2,3"], "--points"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2"], "a.jpg cannot be read"),
        (["match", "a.jpg", "b.jpg", "--points", "1,2", "--heatmap"], "--heatmap needs --out"),
    ],
)
def test_one_sentence_and_exit_code_2(run: Run, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert list(Path().iterdir()) == []  # nothing was left behind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "--split", "val"], "val"),
        (["eval", "--categories", "cow"], "cow"),
        (["eval", "--prompt", "a {thing}"], "brace"),
        (["cache", "build", "--dataset", "demo"], "dataset folder, not demo"),
        (["cache", "build", "--size", "128"], "image size 64, not 128"),
        (["cache", "build", "--seed", "5"], "seed 0, not 5"),
        (["cache", "build", "--latents", "mean"], "latents sample, not mean"),
        (["cache", "build", "--size", "65"], "multiple of 32"),
    ],
)
def test_asking_something_else_of_a_store(run: Run, store: Path, arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_stores_of_others(run: Run) -> None:
    zarr.create_group("other.zarr")
    zarr.create_group("newer.zarr", attributes={"format": "dualsd", "version": 99, "creator": "9.0"})
    for command in (["eval"], ["cache", "info"], ["cache", "build"], ["cache", "maps"]):
        other = run(*command, "--store", "other.zarr")
        assert (other.exit_code, "no dualsd store" in other.stderr) == (2, True)
        newer = run(*command, "--store", "newer.zarr")
        assert (newer.exit_code, "dualsd 9.0" in newer.stderr) == (2, True)


@pytest.mark.parametrize("column", ["width", "height", "key", "category", "id"])
def test_a_lost_column_of_the_image_table_shows(run: Run, tmp_path: Path, column: str) -> None:
    """Of a store without a log: it would read as sizes of 0 or empty keys, and every number would be wrong."""
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "store-v1", tmp_path / "old.zarr")
    (tmp_path / "old.zarr" / "images" / column / "c" / "0").unlink()
    result = run("cache", "info", "--store", str(tmp_path / "old.zarr"))
    assert (result.exit_code, "table of images" in result.stderr) == (2, True)


def test_damaged_metadata_and_stray_files(run: Run, store: Path) -> None:
    for name in ("c.x", "c.1.0.0.0.abc.partial", "notes.txt"):
        (store / "latents" / name).write_text("")
    assert run("cache", "info").exit_code == 0
    (store / "latents" / "zarr.json").write_text("{")
    result = run("cache", "info")
    assert (result.exit_code, "damaged metadata" in result.stderr) == (2, True)


def test_an_image_that_changed_is_not_matched_against_other_keypoints(run: Run, store: Path, photographs: Path) -> None:
    from PIL import Image

    assert run("eval", "--ensemble", "1").exit_code == 0
    Image.new("RGB", (30, 90)).save(photographs / "dog" / "1.png")
    assert "of dog/1 at" in run("cache", "build").stderr  # keypoints beyond it are refused
    Image.new("RGB", (70, 46)).save(photographs / "dog" / "1.png")
    for command in (["eval", "--ensemble", "1"], ["cache", "maps", "--ensemble", "1"]):
        result = run(*command)
        assert (result.exit_code, "'dog/1' has changed" in result.stderr) == (2, True)
    assert run("cache", "build", "--batch-size", "4").exit_code == 0
    assert run("eval", "--ensemble", "1").exit_code == 0


def test_a_pair_with_nothing_in_common(run: Run, store: Path, photographs: Path) -> None:
    (photographs / "keypoints.csv").write_text("image,name,x,y\ncat/0,ear,1,1\ncat/1,tail,2,2\n")
    (photographs / "pairs.csv").write_text("source,target\ncat/0,cat/1\n")
    result = run("eval")
    assert result.exit_code == 2
    assert "cat/0" in result.stderr
    assert "cat/1" in result.stderr


def test_features_that_do_not_fit(run: Run, photographs: Path) -> None:
    import torch
    from safetensors.torch import save_file

    arguments = ("--dataset", "folder", "--root", str(photographs), "--size", "64", "--layers", "s8")
    Path("junk.safetensors").write_bytes(b"not safetensors")
    assert "cannot be read as safetensors" in run("eval", "--features", "junk.safetensors", *arguments).stderr
    save_file({"cat/0|s8": torch.zeros(3, 4, 4)}, "few.safetensors")
    assert "no tensor 'cat/1|s8'" in run("eval", "--features", "few.safetensors", *arguments).stderr
    save_file({f"cat/{index}|s8": torch.full((3, 4, 4), torch.nan) for index in range(3)}, "nan.safetensors")
    result = run("eval", "--features", "nan.safetensors", "--categories", "cat", *arguments)
    assert (result.exit_code, "not finite" in result.stderr) == (2, True)
    for typed in (("--t", "1"), ("--fallback", "text"), ("--dino-size", "224"), ("--skip-bad",)):
        result = run("eval", "--features", "few.safetensors", *typed, *arguments)
        assert (result.exit_code, f"{typed[0]} goes with a store" in result.stderr) == (2, True)


FEATURES: list[tuple[Callable[["torch.Tensor"], "torch.Tensor"], str]] = [
    (lambda it: it.permute(1, 2, 0).contiguous(), "move the channels to the front"),
    (lambda it: it[:, :3].contiguous(), "as many cells both ways"),
    (lambda it: (100 * it).int(), "is int32"),
    (lambda it: 0 * it, "every cell is zero"),
    (lambda it: 0 * it + 1, "point the same way"),
    (lambda it: 1e-9 * it, "every cell is too small"),
    (lambda it: 1e25 * it, "larger than 1e+17"),
    (lambda it: it / 0, "not finite"),
    (lambda it: it[:7].contiguous(), "7 channels in float32, but f.safetensors: tensor 'cat/0|s8'"),
    (lambda it: it.half(), "8 channels in float16"),
]


@pytest.mark.parametrize(("change", "words"), FEATURES)
def test_features_that_cannot_be_matched(
    run: Run, photographs: Path, change: "Callable[[torch.Tensor], torch.Tensor]", words: str
) -> None:
    """Before anything is matched, the map is named."""
    import torch
    from safetensors.torch import save_file

    maps = {f"{category}/{index}|s8": torch.randn(8, 4, 4) for category in ("cat", "dog") for index in range(3)}
    maps["dog/2|s8"] = change(maps["dog/2|s8"])
    save_file(maps, "f.safetensors")
    arguments = ("--dataset", "folder", "--root", str(photographs), "--size", "64", "--layers", "s8")
    result = run("eval", "--features", "f.safetensors", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "f.safetensors: tensor 'dog/2|s8'" in result.stderr
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("weights", ["1e30,1e30", "nan,1", "inf,1", "-1,1", "0,0", "1e-30,1e-30"])
def test_weights_that_no_command_takes(run: Run, photographs: Path, weights: str) -> None:
    files = [str(photographs / "cat" / f"{index}.png") for index in range(2)]
    for command in (
        ("eval", "--layers", "2,3"),
        ("grid", "--t", "50"),
        ("match", *files, "--points", "3,3", "--model", "demo", "--layers", "2,3"),
        ("train", "--mode", "single"),
    ):
        typed = weights.replace(",", ":") if command[0] == "grid" else weights
        result = run(*command, f"--weights={typed}")
        said = "cannot be used" in result.stderr or "a finite number" in result.stderr
        assert (result.exit_code, said) == (2, True), (command, result.stderr)


@pytest.mark.parametrize("points", ["nan,3", "inf,3", "3", "3,4;nan,nan", "1e400,3", "-1,3"])
def test_points_that_no_image_has(run: Run, photographs: Path, points: str) -> None:
    file = str(photographs / "cat" / "0.png")
    result = run("match", file, file, f"--points={points}", "--model", "demo")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def test_case_06_match_not_finite(run: Run, photographs: Path, tmp_path: Path) -> None:
    """A UNet whose layer overflows: not two matches at (0, 0), but a sentence that names the map; or, where the weights
    themselves are beyond float16, one that names their file."""
    import torch
    from safetensors.torch import load_file, save_file

    from featstore.backbones.locate import demo_folder

    shutil.copytree(demo_folder(), tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensor = tensors["up_blocks.1.resnets.0.conv2.weight"]
    save_file({**tensors, "up_blocks.1.resnets.0.conv2.weight": tensor.float() * 1e30}, weights, {"format": "pt"})
    files = [str(photographs / "cat" / f"{index}.png") for index in range(2)]
    typed = ("--points", "6,6;10,8", "--layers", "2", "--t", "261", "--ensemble", "1", "--out", "m.png")
    result = run("match", *files, "--model", str(tmp_path / "model"), *typed)
    assert result.exit_code == 2
    assert "The map of 0.png, layer 2 at t = 261, is not finite in float32: the model overflowed" in result.stderr
    save_file({**tensors, "up_blocks.1.resnets.0.conv2.weight": tensor * torch.tensor(1e38)}, weights, {"format": "pt"})
    result = run("match", *files, "--model", str(tmp_path / "model"), *typed)
    assert result.exit_code == 2
    assert "holds 1 tensor(s) with values that are not finite ('up_blocks.1.resnets.0.conv2.weight')" in result.stderr
    assert not Path("m.png").exists()


def test_a_point_outside_the_image(run: Run, photographs: Path) -> None:
    file = str(photographs / "cat" / "0.png")
    result = run("match", file, file, "--points", "500,3")
    assert (result.exit_code, "60x40" in result.stderr) == (2, True)


def test_a_fault_of_ours_is_code_1_and_debug_shows_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("featstore.store.store.open_store", fail)
    result = run("cache", "info")
    assert result.exit_code == 1
    assert "fault of dualsd's own" in result.stderr
    assert isinstance(run("--debug", "cache", "info").exception, ZeroDivisionError)


def test_an_interrupt_is_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featstore.store.store.open_store", stop)
    result = run("cache", "info")
    assert result.exit_code == 130
    assert "complete is kept" in result.stderr
