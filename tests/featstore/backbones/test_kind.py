"""Other kinds of models are refused when they are opened, each by what it is."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from featstore.backbones.locate import locate
from featstore.backbones.models import open_model
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import WEIGHTS, change_json, change_tensors, copied


def refusal(folder: Path) -> str:
    """What is said of a folder: one line, with the way out."""
    with pytest.raises(ModelError) as refused:
        locate(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_case_18_inpainting_unet(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "unet" / "config.json", in_channels=9)
    change_tensors(
        copy / WEIGHTS["unet"],
        lambda tensors: tensors.update(
            {"conv_in.weight": torch.cat([tensors["conv_in.weight"], torch.zeros(32, 5, 3, 3)], 1)}
        ),
    )
    with pytest.raises(ModelError, match=r"unet takes 9 channels, but the VAE's latents have 4: .*an inpainting model"):
        open_model(str(copy))


def test_case_19_mixed_text_encoder(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "text_encoder" / "config.json", hidden_size=128)
    with pytest.raises(ModelError, match=r"text embeddings of width 64 .* text encoder beside it makes 128"):
        open_model(str(copy))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 5}, "a depth model"),
        ({"in_channels": 7}, "an upscaler"),
        ({"in_channels": 8}, "InstructPix2Pix"),
        ({"in_channels": 3}, "pixels"),
        ({"in_channels": 6}, "takes 6 channels"),
        ({"class_embed_type": "projection"}, "class labels .*class_embed_type 'projection'"),
        ({"num_class_embeds": 1000}, "class labels .*num_class_embeds '1000'"),
        ({"addition_embed_type": "text_time"}, "as SDXL"),
        ({"encoder_hid_dim": 64}, "projects first"),
        ({"encoder_hid_dim_type": "image_proj"}, "projects first"),
        ({"time_cond_proj_dim": 256}, "LCM"),
        ({"time_embedding_type": "fourier"}, "logarithms of noise"),
        ({"cross_attention_dim": [64, 64, 64, 128]}, "width 128"),
        ({"_class_name": "UNet3DConditionModel"}, "class 'UNet3DConditionModel', not UNet2DConditionModel"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_unets_that_take_something_else(
    small_model: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "unet" / "config.json", **change)
    assert re.search(rf"copy/unet .*{words}", refusal(copy))


@pytest.mark.parametrize("same", [{"cross_attention_dim": [64, 64, 64, 64]}, {"sample_size": [32, 32]}])
def test_the_same_in_other_words(small_model: Path, tmp_path: Path, same: dict[str, object]) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "unet" / "config.json", **same)
    assert open_model(str(copy)).image_size == 128


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("vae", {"_class_name": "AutoencoderTiny"}, "class 'AutoencoderTiny', not AutoencoderKL"),
        ("vae", {"_class_name": "AsymmetricAutoencoderKL"}, "class 'AsymmetricAutoencoderKL'"),
        ("vae", {"_class_name": "ConsistencyDecoderVAE"}, "class 'ConsistencyDecoderVAE'"),
        ("vae", {"in_channels": 1}, "pictures of 1 channels"),
        ("text_encoder", {"model_type": "t5"}, "type 't5', not CLIP's text encoder"),
    ],
)
def test_other_vaes_and_text_encoders(
    small_model: Path, tmp_path: Path, component: str, change: dict[str, object], words: str
) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / component / "config.json", **change)
    assert words in refusal(copy)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("HunyuanDiTPipeline", "Hunyuan-DiT, a transformer"),
        ("PixArtSigmaPipeline", "PixArt, a transformer"),
        ("KandinskyV22Pipeline", "Kandinsky"),
        ("StableDiffusionDepth2ImgPipeline", "a depth model"),
        ("StableUnCLIPImg2ImgPipeline", "unCLIP"),
    ],
)
def test_other_pipelines(small_model: Path, tmp_path: Path, name: str, words: str) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "model_index.json", _class_name=name)
    assert words in refusal(copy)
    assert f"('{name}'): take a Stable Diffusion 1.x, 2.x or XL, e.g. --model sd2-1" in refusal(copy)


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "MyPipeline"])
def test_pipelines_of_the_same_networks(small_model: Path, tmp_path: Path, name: str) -> None:
    copy = copied(small_model, tmp_path / "copy")
    change_json(copy / "model_index.json", _class_name=name, image_encoder=["transformers", "CLIPVisionModel"])
    assert locate(str(copy)).folder == copy


def test_components_that_others_have(small_model: Path, tmp_path: Path) -> None:
    copy = copied(small_model, tmp_path / "copy")
    two = ["transformers", "CLIPTextModelWithProjection"]
    change_json(copy / "model_index.json", text_encoder_2=two)
    assert "two text encoders, as SDXL" in refusal(copy)
    change_json(copy / "model_index.json", text_encoder_2=[None, None], transformer=["diffusers", "SomeTransformer"])
    assert "a transformer, which has no UNet" in refusal(copy)
    (copy / "model_index.json").unlink()
    assert locate(str(copy)).folder == copy  # a list of components is not needed
    shutil.move(copy / "unet", copy / "transformer")
    assert "class 'UNet2DConditionModel', not SD3Transformer2DModel or FluxTransformer2DModel" in refusal(copy)
