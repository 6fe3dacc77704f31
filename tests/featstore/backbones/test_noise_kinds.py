"""Noise of each kind of schedule that published models state, through the file in their folder, against its formula,
written here in float64 from the configuration alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.backbones.base import ModelLocation
from featstore.backbones.flow import read_flow
from featstore.backbones.noise import NoiseSchedule, noise, read_schedule
from tools.published import BETAS, SD15, SD21, TURBO, XL

Shares = NDArray[np.float64]
CLEAN, DRAWN = (noise(5, name, 0, 0, (4, 24, 24)) for name in ("clean", "drawn"))
TIMESTEPS = (0, 1, 50, 200, 261, 500, 999)


def kept(betas: Shares) -> Shares:
    """abar: what is left of the image's variance, by timestep."""
    return np.cumprod(1 - betas)


def scaled_linear() -> Shares:
    return np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


def zero_terminal(abar: Shares) -> Shares:
    """Lin et al. (WACV 2024), algorithm 1: sqrt(abar) shifted so that its last is 0, scaled so that its first stays."""
    roots = np.sqrt(abar)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def cosine() -> Shares:
    """Nichol and Dhariwal (2021), betas no larger than 0.999."""
    own = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - own[1:] / own[:-1], 0.999)


LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SIGMOID = {**LINEAR, "beta_schedule": "sigmoid"}
TRAINED = np.linspace(1e-4, 3e-2, 1000)
KINDS: dict[str, tuple[dict[str, Any], Callable[[], Shares]]] = {
    "SD 1.5, PNDM's": (dict(SD15["scheduler"]), lambda: kept(scaled_linear())),
    "SD 2-1, DDIM's, v-prediction": (dict(SD21["scheduler"]), lambda: kept(scaled_linear())),
    "SD-Turbo, Euler's": (dict(TURBO["scheduler"]), lambda: kept(scaled_linear())),
    "SDXL, Euler's": (dict(XL["scheduler"]), lambda: kept(scaled_linear())),
    "DDPM's linear": (
        {"_class_name": "DDPMScheduler", **LINEAR},
        lambda: kept(np.linspace(0.0001, 0.02, 1000)),
    ),
    "DDPM's sigmoid": (
        {"_class_name": "DDPMScheduler", **SIGMOID},
        lambda: kept(1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.02 - 0.0001) + 0.0001),
    ),
    "cosine": ({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"}, lambda: kept(cosine())),
    "trained betas": ({"_class_name": "DDIMScheduler", "trained_betas": TRAINED.tolist()}, lambda: kept(TRAINED)),
    "v-prediction, zero terminal SNR": (
        {**SD21["scheduler"], "rescale_betas_zero_snr": True},
        lambda: zero_terminal(kept(scaled_linear())),
    ),
}


def folder_of(tmp_path: Path, config: dict[str, Any]) -> ModelLocation:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return ModelLocation("m", None, tmp_path)


@pytest.mark.parametrize("name", [*KINDS])
def test_betas(name: str, tmp_path: Path) -> None:
    config, abar_of = KINDS[name]
    schedule, abar = read_schedule(folder_of(tmp_path, config)), abar_of()
    assert schedule.prediction_type == config.get("prediction_type", "epsilon")
    for timestep in TIMESTEPS:
        of_image, of_noise = np.sqrt(abar[timestep]), np.sqrt(1 - abar[timestep])
        exact = of_image * CLEAN.astype(np.float64) + of_noise * DRAWN.astype(np.float64)
        found = schedule.mix(CLEAN, DRAWN, timestep)
        # abar is a product of up to a thousand float32, whose roundings add up; near the end it is small
        np.testing.assert_allclose(found, exact, rtol=0, atol=4e-5)
        assert schedule.has_mixed(found.astype(np.float16), CLEAN, DRAWN, timestep)


def test_zero_terminal_snr_ends_in_noise_alone_and_begins_as_it_was(tmp_path: Path) -> None:
    config, _ = KINDS["v-prediction, zero terminal SNR"]
    schedule, usual = NoiseSchedule.parse(config, "here"), NoiseSchedule.parse(BETAS, "here")
    np.testing.assert_array_equal(schedule.mix(CLEAN, DRAWN, 999), DRAWN)
    np.testing.assert_allclose(schedule.mix(CLEAN, DRAWN, 0), usual.mix(CLEAN, DRAWN, 0), atol=1e-6)
    assert np.abs(schedule.mix(CLEAN, DRAWN, 500) - usual.mix(CLEAN, DRAWN, 500)).max() > 1e-2


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float, tmp_path: Path) -> None:
    """SD 3.5's and FLUX.1's, whatever shift their sampler has."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}
    schedule = read_flow(folder_of(tmp_path, config))
    for timestep in TIMESTEPS:
        share = np.float64(timestep) / 1000
        exact = (1 - share) * CLEAN.astype(np.float64) + share * DRAWN.astype(np.float64)
        np.testing.assert_allclose(schedule.mix(CLEAN, DRAWN, timestep), exact, rtol=0, atol=1e-6)
