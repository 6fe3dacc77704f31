"""Noise of flow matching against its formula in float64 and diffusers' scheduler, and as a store's header has it."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from featstore.backbones.flow import FlowSchedule, parse_schedule
from featstore.backbones.noise import noise
from featstore.errors import ModelError, StoreError
from featstore.store.schema import StoreHeader

CLEAN = noise(0, "clean", 0, 0, (16, 32, 32)) * np.float32(3)
DRAWN = noise(0, "drawn", 0, 0, (16, 32, 32))
TIMESTEPS = (0, 1, 50, 260, 500, 999)


@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_the_formula_in_float64(timestep: int) -> None:
    share = timestep / 1000
    exact = (1 - share) * CLEAN.astype(np.float64) + share * DRAWN.astype(np.float64)
    found = FlowSchedule().mix(CLEAN, DRAWN, timestep)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("place", [100, 400, 997])
def test_what_diffusers_adds_at_that_share(shift: float, place: int) -> None:
    """Whatever its shift, diffusers tells the network 1000 s of a mixture with a share s of noise."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    told = scheduler.timesteps[place]
    theirs = scheduler.scale_noise(torch.from_numpy(CLEAN)[None], told[None], torch.from_numpy(DRAWN)[None])[0].numpy()
    low = int(told)
    below, above = (FlowSchedule().mix(CLEAN, DRAWN, step) for step in (low, low + 1))
    part = float(told) - low  # between whole timesteps the mixture is as linear as they are
    np.testing.assert_allclose((1 - part) * below + part * above, theirs, atol=1e-5)


@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_stored_noise_is_recognised(timestep: int) -> None:
    schedule = FlowSchedule()
    kept = schedule.mix(CLEAN, DRAWN, timestep).astype(np.float16)
    assert schedule.has_mixed(kept, CLEAN, DRAWN, timestep)
    other = schedule.mix(CLEAN, DRAWN, (timestep + 5) % 1000).astype(np.float16)
    assert not schedule.has_mixed(other, CLEAN, DRAWN, timestep)
    by_betas = (np.float32(np.sqrt(1 - timestep / 1000)) * CLEAN + np.float32(np.sqrt(timestep / 1000)) * DRAWN)[:]
    assert schedule.has_mixed(by_betas.astype(np.float16), CLEAN, DRAWN, timestep) == (timestep == 0)


def test_timesteps_run_to_999() -> None:
    with pytest.raises(ModelError, match="no timestep 1000: this model's timesteps run from 0 to 999"):
        FlowSchedule().mix(CLEAN, DRAWN, 1000)


def test_a_header_states_it() -> None:
    """It prints itself and reads itself back; what is neither is refused, as it was."""
    described = FlowSchedule().describe()
    assert parse_schedule(described, "a header") == FlowSchedule()
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    assert parse_schedule(betas, "a header").describe() == {
        **betas,
        **{"num_train_timesteps": 1000, "rescale_betas_zero_snr": False, "prediction_type": "epsilon"},
    }
    with pytest.raises(ModelError, match="that process is flow matching, not noise by betas"):
        parse_schedule({**betas, "shift": 3.0}, "a header")
    with pytest.raises(ModelError, match="cannot be used"):
        parse_schedule({**described, "num_train_timesteps": 0}, "a header")


def header(scheduler: dict[str, object]) -> StoreHeader:
    own = {"dataset": "demo", "root": None}
    model = {"id": "m", "revision": None, "fingerprint": "0" * 32}
    attributes = {
        **{"format": "dualsd", "version": 3, "dataset": {"name": own["dataset"], "root": None}, "model": model},
        **{"preprocessing": {"size": 128, "resize": ""}, "latents": "sample", "scheduler": scheduler, "seed": 0},
        **{"dtype": "float16", "creator": "0"},
    }
    return StoreHeader.from_attributes(attributes, "a store")


def test_stores_of_both_processes_are_told_apart() -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    flow, diffusion = header(FlowSchedule().describe()), header(betas)
    assert flow.schedule == FlowSchedule()
    assert StoreHeader.from_attributes(flow.to_attributes(), "again").schedule == FlowSchedule()
    with pytest.raises(StoreError, match=r"noise schedule .*flow matching.*, not .*scaled_linear"):
        flow.check_same(diffusion, "s.zarr")
