import json
import shutil
import socket
from pathlib import Path

import pytest

from featstore.backbone.fingerprint import fingerprint
from featstore.backbone.location import COMPONENTS, locate
from featstore.backbone.model import open_model
from featstore.errors import ModelError


def test_a_folder(small_model: Path) -> None:
    model = open_model(str(small_model))
    assert model.location.folder == small_model
    assert (model.image_size, model.latent_factor, model.latent_channels) == (128, 4, 4)
    assert [model.shape(layer, 128).side for layer in (1, 2, 3, 4)] == [8, 16, 32, 32]


@pytest.mark.parametrize("size", [127, 130, 144, 0])
def test_sizes_whose_latents_do_not_fit(small_model: Path, size: int) -> None:
    with pytest.raises(ModelError, match="multiple of 32"):
        open_model(str(small_model)).latent_side(size)


def test_a_name_that_is_nothing() -> None:
    with pytest.raises(ModelError, match="neither a folder nor an alias"):
        locate("sd3")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder 'vae'"):
        locate(str(tmp_path))


def test_pickled_weights_are_refused(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(small_model, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="never pickles"):
        locate(str(copy))


def test_a_hub_that_cannot_be_reached_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be reached.*local folder.*sd2-community"):
        locate("sd2-1")


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelError, match="cannot be reached"):
            locate("sd2-1")


def test_a_download_that_broke_off_is_not_taken_for_a_model(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / ("a" * 40)
    shutil.copytree(small_model, snapshot)
    (tmp_path / "models--o--m" / "refs").mkdir()
    (tmp_path / "models--o--m" / "refs" / "main").write_text("a" * 40)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("o/m").folder.resolve() == snapshot.resolve()
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="not in the local cache"):
        locate("o/m")


def test_another_precision_alone_is_no_model(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    shutil.copytree(small_model, copy)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(copy / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ModelError, match=r"no diffusion_pytorch_model\.safetensors"):
        locate(str(copy))


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        locate("somebody/some-model")


def test_the_fingerprint_is_of_contents_and_remembered(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_model, copy)
    memory = tmp_path / "memory.json"
    first = fingerprint(copy, COMPONENTS, memory)
    assert first == fingerprint(small_model, COMPONENTS, tmp_path / "other.json")
    assert fingerprint(copy, COMPONENTS, memory) == first
    # what is remembered is used: a wrong memory shows
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(known, "00")))
    assert fingerprint(copy, COMPONENTS, memory) != first
    memory.write_text("not json")
    assert fingerprint(copy, COMPONENTS, memory) == first
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 32', '"sample_size": 64'))
    assert fingerprint(copy, COMPONENTS, memory) != first


def test_a_broken_component_is_named(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(small_model, copy)
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="unet"):
        open_model(str(copy))
