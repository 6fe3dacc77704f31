"""Noise by the betas, whatever scheduler class a folder names: against the formula in float64 and diffusers' DDIM."""

import importlib
import inspect
import json
import math
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin
from numpy.typing import NDArray

from featstore.backbones.base import ModelLocation
from featstore.backbones.locate import demo_folder
from featstore.backbones.models import open_model
from featstore.backbones.noise import NoiseSchedule, read_schedule
from featstore.errors import ModelError

CASES = Path(__file__).parents[2] / "cases"
DEMO: dict[str, Any] = json.loads((demo_folder() / "scheduler" / "scheduler_config.json").read_text())
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMESTEPS = (50, 261, 600, 999)
SHAPE = (4, 16, 16)


def all_classes() -> dict[str, Any]:
    """Every scheduler of the installed diffusers by name: those of its modules, and names that stand for classes whose
    packages are missing here."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:  # one that needs a package which is not here
            continue
        found |= {
            name: member
            for name, member in members.items()
            if inspect.isclass(member) and issubclass(member, ConfigMixin) and member is not ConfigMixin
        }
    return found


CLASSES = all_classes()


def defaults(kind: Any) -> dict[str, Any]:
    """The configuration that a class writes of itself, as far as it has defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    kinds = (bool, int, float, str, type(None), list)
    return {one.name: one.default for one in parameters if isinstance(one.default, kinds) and one.default != -math.inf}


def formula(config: Mapping[str, Any], x: NDArray[Any], noise: NDArray[Any], timestep: int) -> NDArray[np.float64]:
    """sqrt(abar) x + sqrt(1 - abar) noise, in float64, from the configuration alone; only 1 - beta is rounded to
    float32, which is what all schedulers multiply."""
    count = config["num_train_timesteps"]
    match config["beta_schedule"]:
        case "linear":
            betas = np.linspace(config["beta_start"], config["beta_end"], count)
        case "scaled_linear":
            betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, count) ** 2
        case "squaredcos_cap_v2":
            cosine = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    abar = np.prod((1 - betas[: timestep + 1]).astype(np.float32).astype(np.float64))
    return np.asarray(np.sqrt(abar) * x.astype(np.float64) + np.sqrt(1 - abar) * noise.astype(np.float64))


def folder_of(tmp_path: Path, config: Mapping[str, Any]) -> ModelLocation:
    (tmp_path / "scheduler").mkdir(parents=True)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return ModelLocation("m", None, tmp_path)


def drawn() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(3)
    return random.standard_normal(SHAPE, dtype=np.float32), random.standard_normal(SHAPE, dtype=np.float32)


@pytest.mark.parametrize("own", [True, False], ids=["own-defaults", "demo-betas"])
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_scheduler_class_gives_the_formula_or_is_refused(name: str, own: bool, tmp_path: Path) -> None:
    config = {**defaults(CLASSES[name]), **({} if own else {**BETAS, "num_train_timesteps": 1000})}
    location = folder_of(tmp_path, {"_class_name": name, **config})
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    # one that stands for a class whose packages are missing takes anything; its configuration decides
    unknown = "args" in parameters and inspect.isclass(CLASSES[name]) and not own
    if not unknown and ("beta_schedule" not in parameters or "snr_shift_scale" in parameters):
        with pytest.raises(ModelError, match=name):
            read_schedule(location)
        return
    schedule = read_schedule(location)
    x, noise = drawn()
    for timestep in TIMESTEPS:
        np.testing.assert_allclose(
            schedule.mix(x, noise, timestep), formula(config, x, noise, timestep), rtol=0, atol=1e-6
        )


def test_the_classes_are_found() -> None:
    assert len(CLASSES) > 40
    assert {"EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "ScoreSdeVpScheduler"} <= CLASSES.keys()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((DDIMScheduler, {**BETAS, "beta_schedule": one}) for one in ("linear", "scaled_linear", "squaredcos_cap_v2")),
        (DDIMScheduler, {**BETAS, "rescale_betas_zero_snr": True}),
        (DDIMScheduler, {"trained_betas": [0.001, 0.01, 0.1], "num_train_timesteps": 3}),
        (DDIMScheduler, {**BETAS, "num_train_timesteps": 1}),
        (DDPMScheduler, {"beta_schedule": "sigmoid"}),
        (DDPMScheduler, {"beta_schedule": "laplace"}),
    ],
)
def test_it_is_diffusers_bit_for_bit(kind: Any, settings: dict[str, Any]) -> None:
    scheduler = kind(**settings)
    schedule = NoiseSchedule.parse(dict(scheduler.config), "here")
    np.testing.assert_array_equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy())
    x, noise = drawn()
    for timestep in {min(step, schedule.num_train_timesteps - 1) for step in (0, *TIMESTEPS)}:
        theirs = scheduler.add_noise(torch.from_numpy(x), torch.from_numpy(noise), torch.tensor([timestep]))
        np.testing.assert_array_equal(schedule.mix(x, noise, timestep), theirs.numpy())
    assert NoiseSchedule.parse(schedule.describe(), "a header") == schedule


def test_the_exponential_kind_is_heuns() -> None:
    scheduler = HeunDiscreteScheduler(beta_schedule="exp")
    schedule = NoiseSchedule.parse(dict(scheduler.config), "here")
    np.testing.assert_array_equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy())


def _case(name: str, tmp_path: Path) -> None:
    """The demo's model with the case's configuration is noised as DDIM does with the same betas: difference 0."""
    folder = shutil.copytree(demo_folder(), tmp_path / "model")
    shutil.copy(CASES / name / "scheduler" / "scheduler_config.json", folder / "scheduler")
    schedule = open_model(str(folder)).schedule
    reference = DDIMScheduler(**BETAS)
    x, noise = drawn()
    for timestep in (0, *TIMESTEPS):
        theirs = reference.add_noise(torch.from_numpy(x), torch.from_numpy(noise), torch.tensor([timestep])).numpy()
        assert float(np.abs(schedule.mix(x, noise, timestep) - theirs).max()) == 0
    assert schedule.spell() == "scaled_linear betas 0.00085 to 0.012, 1000 timesteps, v_prediction"


def test_case_01_sigma_scheduler(tmp_path: Path) -> None:
    _case("01-sigma-scheduler", tmp_path)


def test_case_02_mirrored_timestep_scheduler(tmp_path: Path) -> None:
    _case("02-mirrored-timestep-scheduler", tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        # what published folders hold: SD 1.5 states no prediction type, SD-Turbo names Euler's class
        {"_class_name": "PNDMScheduler", **BETAS, "num_train_timesteps": 1000, "skip_prk_steps": True},
        {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_type": "discrete", "sigma_max": None},
        {"_class_name": "FlaxDDIMScheduler", **BETAS, "trained_betas": None},
        {"_class_name": "UniPCMultistepScheduler", **BETAS, "use_flow_sigmas": False, "flow_shift": 1.0},
        {"_class_name": "DPMSolverSDEScheduler", **BETAS},
        {"prediction_type": None, "num_train_timesteps": None, **BETAS},
    ],
)
def test_published_configurations_are_taken(config: dict[str, Any], tmp_path: Path) -> None:
    schedule = read_schedule(folder_of(tmp_path, config))
    assert schedule.spell() == "scaled_linear betas 0.00085 to 0.012, 1000 timesteps, epsilon"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "'FlowMatchEulerDiscreteScheduler'.*not known to add noise",
        ),
        ({"_class_name": "IPNDMScheduler", "trained_betas": [0.1] * 1000}, "IPNDMScheduler.*not known"),
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler.*name DDIMScheduler"),
        ({"_class_name": "SchedulerMixin"}, "SchedulerMixin.*not known"),
        ({"_class_name": ["\x1b[31m"]}, "x1b.*not known"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas true: that process is flow matching"),
        ({"prediction_type": "flow_prediction"}, 'prediction_type "flow_prediction": that process is flow matching'),
        ({"shift": 3.0}, "shift 3.0: that process is flow matching"),
        ({"sigma_data": 0.5}, "sigma_data 0.5: that process is EDM's"),
        ({"timestep_type": "continuous"}, "timestep_type.*EDM's"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale 3.0.*shifted signal-to-noise"),
        ({"beta_schedule": None}, "states no betas"),
        ({"beta_schedule": "bogus"}, "beta_schedule is 'bogus', not one of 'linear', 'scaled_linear'"),
        ({"beta_schedule": ["linear"]}, "beta_schedule is .*not one of"),
        ({"beta_start": None}, "has no beta_start, and betas are scaled_linear"),
        ({"beta_start": -0.1}, "beta_start is -0.1, not at least 0"),
        ({"beta_end": 1}, "beta_end is 1, not below 1"),
        ({"beta_end": math.nan}, "a value is NaN"),
        ({"beta_start": "0.00085"}, "beta_start is '0.00085'"),
        ({"beta_start": True}, "beta_start is True"),
        ({"beta_start": 10**400}, "beta_start is 1000"),
        ({"beta_start": 0.012, "beta_end": 0.00085}, "betas rise"),
        ({"beta_start": 0, "beta_end": 0}, "betas rise"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0, not at least 1"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps is 1000.0, not a whole number"),
        ({"num_train_timesteps": True}, "num_train_timesteps is True"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000, not at most 100000"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "must be more than 1"),
        ({"trained_betas": [0.1] * 10}, "10 trained_betas for 1000 timesteps"),
        ({"trained_betas": [0.1] * 999 + ["a"]}, r"trained_betas\[999\] is 'a'"),
        ({"trained_betas": [0.1] * 999 + [1.0]}, r"trained_betas\[999\] is 1.0, not below 1"),
        ({"trained_betas": [0] * 1000}, "trained_betas that are all 0"),
        ({"trained_betas": "abc"}, "not a list"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr is 'yes', not true or false"),
        ({"prediction_type": "bogus"}, "prediction_type is 'bogus', not one of 'epsilon'"),
    ],
)
def test_what_is_no_schedule_is_refused_in_a_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as refusal:
        read_schedule(folder_of(tmp_path, {**DEMO, **change}))
    assert str(tmp_path) in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_timesteps_are_the_models() -> None:
    schedule = NoiseSchedule.parse({**DEMO, "num_train_timesteps": 200}, "here")
    schedule.check_timesteps([0, 199])
    for timestep in (-1, 200):
        with pytest.raises(ModelError, match=f"no timestep {timestep}: this model's timesteps run from 0 to 199"):
            schedule.check_timesteps([timestep])
        with pytest.raises(ModelError):
            schedule.mix(*drawn(), timestep)


def test_stored_noise_is_told_from_other_noise() -> None:
    """Rounded to float16 it is known again; that of other timesteps and samplers, or one changed value, is not."""
    schedule = NoiseSchedule.parse(DEMO, "here")
    x, noise = drawn()
    for timestep in (0, 1, *TIMESTEPS):
        stored = schedule.mix(x, noise, timestep).astype(np.float16)
        assert schedule.has_mixed(stored, x, noise, timestep)
        abar = float(schedule.alphas_cumprod[timestep])
        euler = (x + noise * math.sqrt((1 - abar) / abar)).astype(np.float16)
        others = [euler, schedule.mix(x, noise, 999 - timestep).astype(np.float16), stored + 60000]
        others.append(schedule.mix(x, noise, timestep + (1 if timestep < 999 else -1)).astype(np.float16))
        changed = stored.copy()
        changed[0, 0, 0] = np.nextafter(np.nextafter(changed[0, 0, 0], np.float16(9)), np.float16(9))
        for other in (*others, changed):
            assert not schedule.has_mixed(other, x, noise, timestep)


def test_a_model_that_was_looked_at_before_opens_without_the_libraries() -> None:
    """They take seconds to load, and a `cache build` with nothing to do needs none of them."""
    open_model("demo")
    code = (
        "import sys\n"
        "from featstore.backbones.models import open_model\n"
        "open_model('demo')\n"
        "print(sorted({'diffusers', 'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
