"""From the VAE's latents to those that the UNet was trained on, against a pipeline of diffusers' that knows a shift."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline

from featstore.backbones.diffusion_networks import encode, load_vae_encoder
from featstore.backbones.models import open_model
from featstore.backbones.noise import LatentScale
from featstore.errors import ModelError


def with_vae(small_model: Path, tmp_path: Path, change: dict[str, Any]) -> Path:
    folder = shutil.copytree(small_model, tmp_path / "model")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return folder


@pytest.mark.parametrize("change", [{}, {"shift_factor": 0.1159, "scaling_factor": 0.3611}, {"shift_factor": -2}])
def test_latents_are_diffusers(change: dict[str, Any], small_model: Path, tmp_path: Path) -> None:
    model = open_model(str(with_vae(small_model, tmp_path, change)))
    vae = load_vae_encoder(model.location, torch.device("cpu"), torch.float32)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    drawn = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    sampled = SimpleNamespace(latents=posterior.mean + posterior.std * drawn)
    stated = SimpleNamespace(**vae.config | {"shift_factor": vae.config.shift_factor or 0})  # which the pipeline takes
    pipeline = SimpleNamespace(
        vae=SimpleNamespace(config=stated, encode=lambda _: sampled),
        scheduler=SimpleNamespace(scale_noise=lambda clean, *_: clean),
    )
    theirs = StableDiffusion3Img2ImgPipeline.prepare_latents(
        pipeline, images, None, 2, 1, torch.float32, torch.device("cpu")
    )
    torch.testing.assert_close(encode(vae, images, drawn), theirs, rtol=1e-6, atol=1e-6)
    assert (model.latent_scale.shift, model.latent_scale.scaling_factor) == (stated.shift_factor, stated.scaling_factor)


def test_a_configuration_without_a_factor_means_stable_diffusions_first() -> None:
    scale = LatentScale.parse({"shift_factor": None}, "here")
    assert (scale.shift, scale.scaling_factor) == (0, 0.18215)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scaling_factor": None}, "scaling_factor is None, not a finite number"),
        ({"scaling_factor": "0.18"}, "scaling_factor is '0.18'"),
        ({"scaling_factor": math.nan}, "a value is NaN"),
        ({"scaling_factor": 0}, "scaling_factor is 0, not above 0"),
        ({"scaling_factor": -0.18215}, "scaling_factor is -0.18215"),
        ({"scaling_factor": True}, "scaling_factor is True"),
        ({"scaling_factor": 10**400}, "scaling_factor is 1000"),
        ({"shift_factor": "0.1"}, "shift_factor is '0.1', not a finite number"),
        ({"shift_factor": -math.inf}, "shift_factor is -inf"),
        ({"shift_factor": False}, "shift_factor is False"),
        ({"latents_mean": [0, 0, 0, 0]}, "latents_mean"),
        ({"latents_std": [1, 1, 1, 1]}, "latents_std"),
    ],
)
def test_what_is_no_scale_is_refused_when_the_model_is_opened(
    change: dict[str, Any], words: str, small_model: Path, tmp_path: Path
) -> None:
    folder = with_vae(small_model, tmp_path, change)
    with pytest.raises(ModelError, match=words) as refusal:
        open_model(str(folder))
    assert str(folder / "vae" / "config.json") in str(refusal.value)
