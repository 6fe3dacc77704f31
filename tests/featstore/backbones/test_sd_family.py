"""Stable Diffusion 1 and 2 of either prediction, their fine-tunes and SD-Turbo, each at its own size: small random
models in the published layout against diffusers' own pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, SchedulerMixin, StableDiffusionPipeline

from benchmarks.flops import UNET
from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.backbones.stable_diffusion import StableDiffusion, layer_shape
from tests.featstore.backbones.small_families import hooked, write_small_sd

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS: dict[str, SchedulerMixin] = {
    # scheduler/scheduler_config.json of stabilityai/sd-turbo, stable-diffusion-v1-5 and stable-diffusion-2-1
    "sd-turbo": EulerDiscreteScheduler(**BETAS, prediction_type="epsilon", timestep_spacing="trailing"),
    "sd1-5": PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False),
    "sd2-1": DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
}
LAYERS = ("1", "2", "2.1", "3", "4.2")


@pytest.fixture(scope="module", params=SCHEDULERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "small"
    write_small_sd(path, SCHEDULERS[request.param])
    return path


def test_maps_are_its_pipelines(folder: Path) -> None:
    model = open_model(str(folder))
    assert isinstance(model, StableDiffusion)
    networks = model.load(Compute(torch.device("cpu"), torch.float32, 8))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    noisy = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    told = networks.text.encode_texts(["a photo of a bird", "a fish"])
    assert told.pooled is None
    for own, text in zip(told.embeddings, ("a photo of a bird", "a fish"), strict=True):
        theirs, _ = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
        torch.testing.assert_close(own, theirs[0], atol=1e-5, rtol=1e-5)
    truth = hooked(pipeline.unet, LAYERS, noisy, 261, encoder_hidden_states=told.embeddings)
    with torch.no_grad():
        ours = networks.features(noisy, 261, told, LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(ours[layer], truth[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("timestep", [0, 261, 999])
def test_noise_is_the_formulas_in_float64(folder: Path, timestep: int) -> None:
    clean, drawn = np.random.default_rng(timestep).standard_normal((2, 4, 32, 32), dtype=np.float32)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)[timestep]
    exact = np.sqrt(abar) * clean.astype(np.float64) + np.sqrt(1 - abar) * drawn.astype(np.float64)
    found = open_model(str(folder)).schedule.mix(clean, drawn, timestep)
    np.testing.assert_allclose(found, exact, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("size", "sides"), [(512, (16, 32, 64, 64)), (768, (24, 48, 96, 96))])
def test_layers_at_the_published_sizes(size: int, sides: tuple[int, ...]) -> None:
    """SD-Turbo's and SD 2-1 base's 512 pixels, SD 2-1's 768."""
    shapes = [layer_shape(layer, UNET, size // 8, size) for layer in (1, 2, 3, 4)]
    assert [own.map for own in shapes] == [
        (channels, side, side) for channels, side in zip((1280, 1280, 640, 320), sides, strict=True)
    ]
