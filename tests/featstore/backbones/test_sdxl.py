"""SDXL: a small random model in the published layout against diffusers' own pipeline, and the published configuration
on the meta device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from featstore.backbones.base import Compute, Condition
from featstore.backbones.diffusion_networks import CutUNet
from featstore.backbones.flops import gradient_flops, pass_flops
from featstore.backbones.models import open_model
from featstore.backbones.sdxl import StableDiffusionXL
from featstore.backbones.sdxl_networks import XLNetworks
from featstore.backbones.stable_diffusion import layer_shape
from featstore.errors import ModelError
from tests.featstore.backbones.damaged import change_json, copied
from tests.featstore.backbones.small_families import FIRST_WIDTH, POOLED, SECOND_WIDTH, hooked, write_small_sdxl

CPU = Compute(torch.device("cpu"), torch.float32, 8)
TEXTS = ["a photo of a bird", "", "a photo of a photo of a car " * 20]
LAYERS = ("1", "1.2", "2", "2.1", "2.3", "3", "3.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sdxl") / "small"
    write_small_sdxl(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, dtype=torch.float32)


@pytest.fixture(scope="module")
def networks(folder: Path) -> XLNetworks:
    found = open_model(str(folder)).load(CPU)
    assert isinstance(found, XLNetworks)
    return found


def test_it_is_opened_as_what_it_is(folder: Path) -> None:
    model = open_model(str(folder))
    assert isinstance(model, StableDiffusionXL)
    assert (model.image_size, model.latent_shape(64), model.latent_scale.scaling_factor) == (64, (4, 16, 16), 0.13025)
    assert [(own.channels, own.side, own.stride) for own in model.layers(64).values()] == [
        (64, 8, 8),
        (32, 16, 4),
        (16, 16, 4),
    ]


def test_texts_are_told_as_its_pipeline_tells_them(networks: XLNetworks, pipeline: StableDiffusionXLPipeline) -> None:
    found = networks.text.encode_texts(TEXTS)
    for index, text in enumerate(TEXTS):
        embeddings, _, pooled, _ = pipeline.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(found.embeddings[index], embeddings[0], atol=1e-5, rtol=1e-5)
        assert found.pooled is not None
        torch.testing.assert_close(found.pooled[index], pooled[0], atol=1e-5, rtol=1e-5)
    assert found.embeddings.shape == (3, 77, FIRST_WIDTH + SECOND_WIDTH)
    assert not torch.allclose(found.embeddings[0], found.embeddings[1])


def test_the_image_size_is_told_as_its_pipeline_tells_it(
    networks: XLNetworks, pipeline: StableDiffusionXLPipeline
) -> None:
    for side in (64, 96):
        theirs = pipeline._get_add_time_ids((side, side), (0, 0), (side, side), torch.float32, POOLED)
        ours = networks.added(torch.zeros(2, 4, side // 4, side // 4), Condition(torch.zeros(2, 77, 96), POOLED_ZERO))
        torch.testing.assert_close(ours["time_ids"], theirs.expand(2, -1), rtol=0, atol=0)


POOLED_ZERO = torch.zeros(2, POOLED)


def test_maps_are_those_of_diffusers_whole_unet(networks: XLNetworks, pipeline: StableDiffusionXLPipeline) -> None:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    told = networks.text.encode_texts(["a photo of a bird", "a fish"])
    sizes = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, POOLED)
    added = {"text_embeds": told.pooled, "time_ids": sizes.expand(2, -1)}
    truth = hooked(pipeline.unet, LAYERS, noisy, 261, encoder_hidden_states=told.embeddings, added_cond_kwargs=added)
    with torch.no_grad():
        ours = networks.features(noisy, 261, told, LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(ours[layer], truth[layer], atol=1e-5, rtol=1e-5)


def test_pooled_embedding_and_image_size_change_the_maps(networks: XLNetworks) -> None:
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    told = networks.text.encode_texts(["a photo of a bird"])
    assert told.pooled is not None
    with torch.no_grad():
        one = networks.features(noisy, 261, told, ["1"])["1"]
        other = networks.features(noisy, 261, Condition(told.embeddings, told.pooled + 1), ["1"])["1"]
    assert (one - other).abs().max() > 1e-4


def test_learned_vectors_go_through_both_encoders(networks: XLNetworks, pipeline: StableDiffusionXLPipeline) -> None:
    """Vectors that are a text's own token embeddings tell what the text tells, padded with token 0: against the
    transformers library's encoders on the ids."""
    text = networks.text
    ids = pipeline.tokenizer("a photo of a bird").input_ids
    length = len(ids) - 2
    padded = torch.tensor([[*ids, *[0] * (77 - len(ids))]])
    rows = text.frame(length)
    rows[1 : length + 1] = text.embed(padded)[0, 1 : length + 1]
    with torch.no_grad():
        found = text.encode(rows[None], length)
        first = pipeline.text_encoder(padded, output_hidden_states=True)
        second = pipeline.text_encoder_2(padded, output_hidden_states=True)
    truth = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    torch.testing.assert_close(found.embeddings, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled, second.text_embeds, atol=1e-5, rtol=1e-5)
    assert text.length_of(rows) == length
    assert rows.shape == (text.positions, text.width)


def test_latents_are_scaled_by_its_own_factor(networks: XLNetworks, pipeline: StableDiffusionXLPipeline) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        truth = pipeline.vae.encode(image).latent_dist.mean * 0.13025
    torch.testing.assert_close(networks.encode(image, None), truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("timestep", [0, 50, 261, 999])
def test_noise_is_what_its_unet_sees_in_float64(folder: Path, timestep: int) -> None:
    """The formula, and Euler's own way to it: add_noise x + sigma e, scaled by 1 / sqrt(sigma^2 + 1)."""
    random = np.random.default_rng(timestep)
    clean, drawn = random.standard_normal((2, 4, 16, 16), dtype=np.float32)
    found = open_model(str(folder)).schedule.mix(clean, drawn, timestep)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[timestep]
    exact = np.sqrt(abar) * clean.astype(np.float64) + np.sqrt(1 - abar) * drawn.astype(np.float64)
    np.testing.assert_allclose(found, exact, atol=2e-6, rtol=1e-6)
    euler = EulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    sigma = ((1 - euler.alphas_cumprod[timestep].double()) / euler.alphas_cumprod[timestep].double()) ** 0.5
    scaled = (torch.from_numpy(clean).double() + sigma * torch.from_numpy(drawn).double()) / (sigma**2 + 1) ** 0.5
    np.testing.assert_allclose(found, scaled.numpy(), atol=2e-6, rtol=1e-6)


# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
FULL: dict[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_the_published_configuration() -> None:
    """The published number of parameters (2.6 billion in SDXL's paper), shapes at 1024 pixels, TFLOP to each layer."""
    tera: list[float] = []
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL).eval().requires_grad_(False)
        assert sum(own.numel() for own in unet.parameters()) == 2_567_463_684
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        with FlopCounterMode(display=False) as counter:
            for block in unet.up_blocks:
                block.register_forward_hook(lambda *_: tera.append(counter.get_total_flops() / 1e12))
            inputs = torch.empty(1, 4, 128, 128), 261, torch.empty(1, 77, 2048)
            maps = CutUNet(unet, 3).tap(*inputs, ["1", "2", "2.1", "3"], added)
    assert tera == pytest.approx([5.36, 6.44, 6.76], abs=0.005)
    shapes = {layer: layer_shape(layer, FULL, latent_side=128, image_size=1024) for layer in maps}
    assert {layer: own.map for layer, own in shapes.items()} == {
        "1": (1280, 64, 64),
        "2": (640, 128, 128),
        "2.1": (640, 64, 64),
        "3": (320, 128, 128),
    }
    for layer, own in shapes.items():
        assert maps[layer].shape == (1, *own.map)
        assert own.stride == 1024 // own.side


def test_what_a_dry_run_counts(folder: Path) -> None:
    """Against a counter in diffusers' own forward pass."""
    model, tera = open_model(str(folder)), list[int]()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        for block in unet.up_blocks:
            block.register_forward_hook(lambda *_: tera.append(counter.get_total_flops()))
        added = {"text_embeds": torch.empty(1, POOLED), "time_ids": torch.empty(1, 6)}
        unet(torch.empty(1, 4, 16, 16), 0, torch.empty(1, 77, 96), added_cond_kwargs=added)
    assert [pass_flops(model, layer, 64) for layer in (1, 2, 3)] == tera
    assert gradient_flops(model, 2, 64) > 1.5 * pass_flops(model, 2, 64)


def test_a_size_that_its_unet_cannot_take(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"side is a multiple of 4: take a multiple of 16, e\.g\. --size 64"):
        open_model(str(folder)).latent_shape(72)


@pytest.mark.parametrize("layer", ["4", "4.1"])
def test_a_layer_that_it_does_not_have(folder: Path, layer: str) -> None:
    with pytest.raises(ModelError, match=rf"no layer {layer}: this UNet has the layers 1 to 3"):
        open_model(str(folder)).shape(layer, 64)


def test_a_folder_that_lacks_a_text_encoder(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "text_encoder_2").rename(tmp_path / "away")
    with pytest.raises(ModelError, match="is no SDXL in diffusers' layout: it has no folder 'text_encoder_2'"):
        open_model(str(copy))


def test_a_folder_without_its_list_of_components(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "model_index.json").unlink()
    assert isinstance(open_model(str(copy)), StableDiffusionXL)


@pytest.mark.parametrize(
    ("component", "change", "words"),
    [
        ("unet", {"addition_embed_type": None}, "takes no pooled text and image size, as SDXL's does"),
        ("unet", {"in_channels": 9}, "an inpainting model"),
        ("unet", {"time_cond_proj_dim": 256}, "distilled, as LCM"),
        ("unet", {"cross_attention_dim": 64}, r"width 64 .* text encoders beside it make 32 and 64: take UNet"),
        ("unet", {"block_out_channels": [16, 32, 64, 64]}, "of 4 up blocks; SDXL's has 3"),
        ("unet", {"projection_class_embeddings_input_dim": 64}, "1 of another shape"),
        ("text_encoder_2", {"model_type": "t5"}, "type 't5', not CLIP's text encoder"),
        ("text_encoder_2", {"projection_dim": 40}, "1 of another shape"),
    ],
)
def test_parts_that_do_not_belong_together(
    folder: Path, tmp_path: Path, component: str, change: dict[str, object], words: str
) -> None:
    copy = copied(folder, tmp_path / "copy")
    change_json(copy / component / "config.json", **change)
    with pytest.raises(ModelError, match=words):
        open_model(str(copy))
