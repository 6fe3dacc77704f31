import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from featstore.backbones.diffusion_networks import load_text_encoder, load_unet, load_vae_encoder
from featstore.backbones.dino import load_dino
from featstore.backbones.kinds import STABLE_DIFFUSION
from featstore.backbones.locate import demo_folder, locate
from featstore.backbones.model_file import fingerprint
from featstore.backbones.models import open_model
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


WEIGHTS = pytest.mark.parametrize(
    ("component", "weights", "pickled"),
    [
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model", "pytorch_model.bin"),
    ],
)


@WEIGHTS
def test_pickled_weights_are_refused(
    small_model: Path, tmp_path: Path, component: str, weights: str, pickled: str
) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(small_model, copy)
    folder = copy / component
    (folder / f"{weights}.safetensors").rename(folder / pickled)
    with pytest.raises(ModelError, match=rf"{component} has no {weights}\.safetensors: .*never pickles"):
        locate(str(copy))


def malicious(path: Path, marker: Path) -> None:
    """A pickle as torch.save writes it, which makes `marker` where somebody unpickles it."""

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(marker),)

    torch.save({"a": Payload()}, path)


@WEIGHTS
def test_no_trick_gets_a_pickle_read(
    small_model: Path, tmp_path: Path, component: str, weights: str, pickled: str
) -> None:
    """Under safetensors' name; beside other safetensors; named by a list of shards."""
    marker = tmp_path / "unpickled"
    loader = {"unet": load_unet, "vae": load_vae_encoder, "text_encoder": load_text_encoder}[component]
    for trick in ("disguised", "beside", "listed"):
        copy = tmp_path / trick
        shutil.copytree(small_model, copy)
        file = copy / component / f"{weights}.safetensors"
        if trick == "disguised":
            malicious(file, marker)
        else:
            file.rename(file.with_name(f"{weights}-old.safetensors"))
            malicious(file.with_name(pickled), marker)
        if trick == "listed":
            index = {"metadata": {"total_size": 1}, "weight_map": {"a": pickled}}
            file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
        words = {
            "disguised": f"{component} cannot be loaded",
            "beside": f"{component} has no {weights}.safetensors: dualsd reads safetensors only",
            "listed": f"index.json names '{pickled}': dualsd reads",
        }[trick]
        with pytest.raises(ModelError, match=words):
            loader(locate(str(copy)), torch.device("cpu"), torch.float32)
        assert not marker.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}', "{}", "[" * 100_000])
def test_a_damaged_list_of_shards(small_model: Path, tmp_path: Path, content: str) -> None:
    copy = tmp_path / "sharded"
    shutil.copytree(small_model, copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index\.json cannot be (read as a list of weights: |used: weight_map is )"):
        locate(str(copy))


def test_truncated_weights_are_named(small_model: Path, tmp_path: Path) -> None:
    """As a full disk leaves them."""
    for component, weights, loader in (
        ("unet", "diffusion_pytorch_model", load_unet),
        ("vae", "diffusion_pytorch_model", load_vae_encoder),
        ("text_encoder", "model", load_text_encoder),
    ):
        copy = tmp_path / component
        shutil.copytree(small_model, copy)
        file = copy / component / f"{weights}.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ModelError, match=f"{component} cannot be loaded"):
            loader(locate(str(copy)), torch.device("cpu"), torch.float32)


def test_a_truncated_dino_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "dino"
    shutil.copytree(demo_folder() / "dinov2", copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"dino cannot be loaded \(Error while deserializing"):
        load_dino(copy, torch.device("cpu"), torch.float32)


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


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder"])
def test_another_precision_alone_is_no_model(small_model: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "half"
    shutil.copytree(small_model, copy)
    weights = "model" if name == "text_encoder" else "diffusion_pytorch_model"
    (copy / name / f"{weights}.safetensors").rename(copy / name / f"{weights}.fp16.safetensors")
    words = (
        rf"no {weights}\.safetensors: it has the variant 'fp16' only .* rename it to {weights}\.safetensors, or write"
    )
    with pytest.raises(ModelError, match=words):
        locate(str(copy))
    (copy / name / f"{weights}.fp16.safetensors").rename(copy / name / f"{weights}.safetensors")
    assert open_model(str(copy)).fingerprint == open_model(str(small_model)).fingerprint  # the first way out


def test_the_ways_out_of_variants_and_pickles(small_model: Path, tmp_path: Path) -> None:
    """What the sentences tell to type."""
    from diffusers import StableDiffusionPipeline

    copy = tmp_path / "half"
    StableDiffusionPipeline.from_pretrained(small_model, dtype=torch.float16).save_pretrained(copy, variant="fp16")
    with pytest.raises(ModelError) as refused:
        locate(str(copy))
    assert f"`StableDiffusionPipeline.from_pretrained('{copy}', variant='fp16').save_pretrained(" in str(refused.value)
    StableDiffusionPipeline.from_pretrained(str(copy), variant="fp16").save_pretrained(tmp_path / "new")
    assert open_model(str(tmp_path / "new")).image_size == 128


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        locate("somebody/some-model")


def test_the_fingerprint_is_of_contents_and_remembered(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_model, copy)
    memory = tmp_path / "memory.json"
    first = fingerprint(copy, STABLE_DIFFUSION.components, memory)
    assert first == fingerprint(small_model, STABLE_DIFFUSION.components, tmp_path / "other.json")
    assert fingerprint(copy, STABLE_DIFFUSION.components, memory) == first
    # what is remembered is used: a wrong memory shows
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(known, "00")))
    assert fingerprint(copy, STABLE_DIFFUSION.components, memory) != first
    memory.write_text("not json")
    assert fingerprint(copy, STABLE_DIFFUSION.components, memory) == first
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 32', '"sample_size": 64'))
    assert fingerprint(copy, STABLE_DIFFUSION.components, memory) != first


def test_a_broken_component_is_named(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(small_model, copy)
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="unet"):
        open_model(str(copy))
