"""`dualsd doctor --model`: what it says of a model is what the model's own files and passes say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from featstore.backbones.flops import encode_flops, pass_flops
from featstore.backbones.models import open_model
from tests.cli.conftest import Run
from tests.cli.test_score import ok
from tests.featstore.backbones.small_families import write_small_sdxl
from tests.featstore.backbones.small_transformers import NAMES, written
from tests.featstore.backbones.test_dino_family import Make, convolutions, registers, transformer


def told(run: Run, *arguments: str) -> tuple[dict[str, Any], str]:
    """What the command says of a model, as JSON and on the terminal."""
    result = run("doctor", "--offline", "--json", "doctor.json", *arguments)
    ok(result)
    return json.loads(Path("doctor.json").read_text())["model"], result.output


def numbers_in(file: Path, without: tuple[str, ...] = ()) -> int:
    """Of all tensors of a file but those whose names begin so."""
    with safe_open(file, framework="pt") as tensors:
        names = [name for name in tensors.keys() if not name.startswith(without)]  # noqa: SIM118
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def test_a_stable_diffusion(run: Run, small_model: Path) -> None:
    said, printed = told(run, "--model", str(small_model))
    model = open_model(str(small_model))
    assert said["fingerprint"] == model.fingerprint
    assert said["noise"] == "scaled_linear betas 0.00085 to 0.012, 1000 timesteps, v_prediction"
    assert said["latent_shape"] == [4, 32, 32]
    assert said["encode_flops"] == encode_flops(model, 128)
    layers = {own["name"]: own for own in said["layers"]}
    assert [*layers] == [f"{block}{part}" for block in "1234" for part in (".1", ".2", "")]
    for name, shape in model.layers(128).items():
        own = layers[name]
        assert (own["channels"], own["cells"], own["stride"]) == (shape.channels, shape.side, shape.stride)
        assert own["bytes"] == 2 * math.prod(shape.map)
        assert own["flops"] == pass_flops(model, int(name), 128)
    for name, file, without in (
        ("unet", "unet/diffusion_pytorch_model.safetensors", ()),
        ("text_encoder", "text_encoder/model.safetensors", ()),
        ("vae", "vae/diffusion_pytorch_model.safetensors", ("decoder.", "post_quant_conv.")),
    ):
        assert said["parameters"][name] == numbers_in(small_model / file, without)
    assert (said["text"], said["tuning"], said["profile"]) == (True, True, "sd2-1")
    assert said["recommended"]["text_timesteps"]["value"] == {"2": 261, "3": 200}
    for words in ("learned prompts (`train`): yes", "the report, section 3.1", "UNet2DConditionModel"):
        assert words in printed


def test_a_unet_without_noise(run: Run, small_model: Path) -> None:
    unet = small_model / "unet"
    said, _ = told(run, "--model", str(small_model), "--unet", str(unet))
    assert said["noise"] == "none; told t = 261"
    recommended = said["recommended"]
    assert {own["value"] for name, own in recommended.items() if name.endswith("timesteps")} == {"none"}
    assert "for clean ones nobody has published any" in recommended["weights"]["source"]
    assert str(unet) in said["family"]


@pytest.mark.parametrize("make", [registers, transformer, convolutions], ids=lambda make: make.__name__)
def test_a_dino(run: Run, tmp_path: Path, small_model: Path, make: Make) -> None:
    folder, generation, _ = make(tmp_path / "dino", small_model)
    said, printed = told(run, "--model", str(folder))
    name = generation.layer
    assert said["layers"][-1]["name"] == name
    assert said["layers"][0]["name"] == f"{name}:1"
    assert (said["noise"], said["text"], said["tuning"]) == (None, False, False)
    assert said["parameters"]["network"] == numbers_in(folder / "model.safetensors")
    flops = [own["flops"] for own in said["layers"]]
    assert flops == sorted({*flops})
    assert "learned prompts (`train`): no" in printed


def test_an_sdxl(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "xl"
    write_small_sdxl(folder)
    said, _ = told(run, "--model", str(folder))
    assert [own["name"] for own in said["layers"] if own["name"].isdecimal()] == ["1", "2", "3"]
    assert {*said["parameters"]} == {"vae", "unet", "text_encoder", "text_encoder_2"}
    assert said["parameters"]["unet"] == numbers_in(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert (said["text"], said["tuning"]) == (True, True)
    assert said["family"] == "sdxl, a UNet of 3 up blocks"


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_transformer(run: Run, tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path / "model", kind)
    size = open_model(str(folder)).image_size
    said, printed = told(run, "--model", str(folder))
    assert [own["name"] for own in said["layers"]] == [*NAMES[kind]]
    assert {(own["channels"], own["cells"]) for own in said["layers"]} == {(24, size // 16)}
    assert said["parameters"]["transformer"] == numbers_in(
        folder / "transformer" / "diffusion_pytorch_model.safetensors", ("pos_embed.pos_embed",)
    )
    assert (said["text"], said["tuning"]) == (False, False)
    assert said["noise"].startswith("flow matching")
    assert "learned prompts (`train`): no" in printed


def test_what_is_no_model_is_refused_in_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name, words in (
        ("photos", "it has no folder 'vae'"),
        ("nowhere", "There is no model"),
        ("nobody/nothing", "local folder"),
    ):
        result = run("doctor", "--offline", "--model", name)
        assert result.exit_code == 2
        assert words in result.output, result.output
    config = tmp_path / "other" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_type": "bert"}))
    assert run("doctor", "--offline", "--model", "other").exit_code == 2


def test_what_nobody_has_published_is_called_unknown(run: Run, small_model: Path, unknown: None) -> None:
    said, printed = told(run, "--model", str(small_model))
    size = said["recommended"].pop("image_size")
    assert size["value"] == 128
    assert {own["value"] for own in said["recommended"].values()} == {"unknown"}
    assert "`dualsd grid` finds it" in printed
