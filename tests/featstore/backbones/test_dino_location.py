import json
import shutil
import socket
from pathlib import Path

import pytest

from featstore.backbones.base import ModelLocation
from featstore.backbones.dino import DinoShape, locate_dino, read_shape
from featstore.backbones.locate import locate
from featstore.errors import ModelError


@pytest.fixture
def model(small_model: Path) -> ModelLocation:
    return locate(str(small_model))


@pytest.fixture
def bare(small_model: Path, tmp_path: Path) -> ModelLocation:
    """A model that brings no DINOv2, as Stable Diffusion."""
    folder = tmp_path / "bare"
    shutil.copytree(small_model, folder)
    shutil.rmtree(folder / "dinov2")
    return locate(str(folder))


def cache_of(name: str, source: Path, cache: Path) -> Path:
    """A hub cache that has a model, as `huggingface_hub` lays it out: its snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("b" * 40)
    shutil.copytree(source, snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40)
    return snapshot


def test_the_models_own(model: ModelLocation, small_model: Path) -> None:
    name, folder = locate_dino(None, model)
    assert (name.id, folder) == (f"{small_model}/dinov2", small_model / "dinov2")
    assert read_shape(folder) == DinoShape(channels=(96,) * 4, strides=(14,) * 4, prefix=1, usual_size=224)


def test_a_folder(model: ModelLocation, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(small_model / "dinov2", tmp_path / "my dino")
    monkeypatch.chdir(tmp_path)
    name, folder = locate_dino("my dino", model)
    assert name.id == str(tmp_path / "my dino")
    assert folder.resolve() == tmp_path / "my dino"
    assert name.fingerprint == locate_dino(None, model)[0].fingerprint  # of contents


@pytest.mark.parametrize("name", ["owner/own-dino", None])
def test_a_hub_name_from_the_local_cache(
    bare: ModelLocation, small_model: Path, name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """None is DINOv2-B/14 where the model brings none."""
    from huggingface_hub import constants

    wanted = name or "facebook/dinov2-base"
    snapshot = cache_of(wanted, small_model / "dinov2", tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found, folder = locate_dino(name, bare)
    assert found.id == wanted
    assert folder.resolve() == snapshot.resolve()
    # a download that broke off is not taken for a DINOv2
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="not in the local cache and HF_HUB_OFFLINE is set"):
        locate_dino(name, bare)


def test_out_of_reach_names_the_way_out(bare: ModelLocation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"'facebook/dinov2-base'.*a folder with config.json.*--dino") as refused:
        locate_dino(None, bare)
    assert "Stable Diffusion" not in str(refused.value)
    with pytest.raises(ModelError, match="neither a folder nor a hub name"):
        locate_dino("dinov2", bare)


def test_a_folder_that_is_none(model: ModelLocation, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json, model\.safetensors is missing"):
        locate_dino(str(tmp_path), model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "dinov3_vit"}, "type 'dinov3_vit'.*DINOv2.*--dino"),
        ({"patch_size": None}, "patch_size is None, not a whole number"),
        ({"image_size": [224, 224]}, r"image_size is \[224, 224\], not a whole number"),
    ],
)
def test_a_configuration_of_something_else(
    small_model: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    config = json.loads((small_model / "dinov2" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=words):
        read_shape(tmp_path)
