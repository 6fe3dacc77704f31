"""The noise schedule that a model was trained with: its betas, whatever sampler its folder names.

A published folder names the class that samples best (SD-Turbo's is Euler's), and what diffusers' classes call
`add_noise` is what sampling needs: DPMSolver's counts timesteps backwards, Euler's does not scale the image. What the
UNet was trained on follows from the betas alone, and is what is computed here.

Noise itself is a function of its key alone: the same on any machine, in any order, batch, process or resumed run.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from featstore.backbones.base import ModelLocation
from featstore.backbones.model_file import RESTORE, parsed, read_config, stated
from featstore.errors import ModelError
from featstore.plain_text import shown

SPACED = ("linear", "scaled_linear", "sigmoid")
"""Kinds of betas that lie between `beta_start` and `beta_end`; the others are defined by abar."""
Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: noisy latents are sqrt(abar_t) x + sqrt(1 - abar_t) noise, with abar_t the
    product of 1 - beta up to t.

    Fields are those of diffusers' configurations, and so are their values where a configuration is silent. The betas
    have no such values: classes differ there, and a folder that lost its betas would be given another model's. What
    the betas do not depend on is None. `prediction_type` is for the record.
    """

    beta_schedule: Literal["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "laplace", "exp"] | None = None
    beta_start: Beta | None = None
    beta_end: Beta | None = None
    trained_betas: tuple[Beta, ...] | None = None
    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: str) -> Self:
        """Read a scheduler's configuration. where: the file, or the store whose header it is. Raises `ModelError` for
        one of another process than this, and for values that are none."""
        # even beside betas, as one keeps them that was saved after its class was exchanged
        for process, key, tells in _OTHER_PROCESSES:
            if tells(config.get(key)):
                raise ModelError(
                    f"{where} says {key} {stated(config[key])}: that process is {process}, not noise by betas alone; "
                    "take a model that was trained on sqrt(abar) x + sqrt(1 - abar) noise."
                )
        said = settings_of(config)
        if said["beta_schedule"] is None and said["trained_betas"] is None:
            raise ModelError(
                f"{where} states no betas (beta_schedule or trained_betas), so how its model was noised is not known: "
                "take a model of Stable Diffusion's kind, or state the betas that it was trained with there."
            )
        if said["trained_betas"] is not None:
            said["beta_schedule"] = None
        if said["beta_schedule"] not in SPACED:
            said["beta_start"] = said["beta_end"] = None
        schedule = parsed(cls, said, where)
        for fault in schedule._faults():
            raise ModelError(f"{where} has {fault}: {RESTORE}.")
        return schedule

    def _faults(self) -> Iterator[str]:
        """What does not go together."""
        count, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if count == 1 and self.rescale_betas_zero_snr:
            yield "num_train_timesteps 1, which must be more than 1 with rescale_betas_zero_snr"
        if self.trained_betas is not None:
            if len(self.trained_betas) != count:
                yield f"{len(self.trained_betas)} trained_betas for {count} timesteps (num_train_timesteps)"
            if not any(self.trained_betas):
                yield "trained_betas that are all 0"
        elif self.beta_schedule in SPACED:
            if start is None or end is None:
                yield f"no {'beta_start' if start is None else 'beta_end'}, and betas are {self.beta_schedule}"
            elif start > end or end == 0:
                yield f"beta_start {start:g} and beta_end {end:g}, but betas rise from the first to the second"

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float32]:
        """abar of each timestep, (timesteps,): bit for bit diffusers' DDIM's, and so by torch's own operations."""
        import torch

        betas = self._betas()
        if self.rescale_betas_zero_snr:
            # only now: diffusers takes seconds to load
            from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

            betas = rescale_zero_terminal_snr(betas)
        found: NDArray[np.float32] = torch.cumprod(1.0 - betas, dim=0).numpy()
        return found

    @cached_property
    def _roots(self) -> NDArray[np.float32]:
        """sqrt(abar) and sqrt(1 - abar) of each timestep, (2, timesteps): torch's, whose last bit is not numpy's."""
        import torch

        abar = torch.from_numpy(self.alphas_cumprod)
        found: NDArray[np.float32] = (torch.stack([abar, 1 - abar]) ** 0.5).numpy()
        return found

    def _betas(self) -> Any:
        """(timesteps,), a float32 tensor."""
        import torch

        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32)
        start, end, count = self.beta_start or 0.0, self.beta_end or 0.0, self.num_train_timesteps
        match self.beta_schedule:
            case "linear":
                return torch.linspace(start, end, count, dtype=torch.float32)
            case "scaled_linear":
                return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
            case "sigmoid":
                return torch.sigmoid(torch.linspace(-6, 6, count)) * (end - start) + start
        # only now: diffusers takes seconds to load
        from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

        kind = "cosine" if self.beta_schedule == "squaredcos_cap_v2" else self.beta_schedule
        return betas_for_alpha_bar(count, alpha_transform_type=kind)

    def mix(self, clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        """Noisy latents of clean ones and standard normal noise of the same shape.

        Product by product in numpy: a fused multiply-add (`torch.addcmul`) rounds some values to another float16.
        """
        self.check_timesteps([timestep])
        of_image, of_noise = self._roots[:, timestep]
        return mixed(clean, of_image, drawn, of_noise)

    def has_mixed(
        self, noisy: NDArray[np.float16], clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int
    ) -> bool:
        """Whether stored noisy latents are the mixture of these, rounded to float16."""
        abar = float(self.alphas_cumprod[timestep])
        return is_mixture(noisy, clean, math.sqrt(abar), drawn, math.sqrt(1 - abar))

    def check_timesteps(self, timesteps: Iterable[int]) -> None:
        """Raise `ModelError` for a timestep that the model does not have."""
        check_timesteps(timesteps, self.num_train_timesteps)

    def describe(self) -> dict[str, Any]:
        """What is used, under diffusers' names: for a store's header."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def spell(self) -> str:
        """In words, e.g. `scaled_linear betas 0.00085 to 0.012, 1000 timesteps, v_prediction`."""
        between = "" if self.beta_start is None else f" {self.beta_start:g} to {self.beta_end:g}"
        rescaled = ", rescaled to zero terminal SNR" if self.rescale_betas_zero_snr else ""
        kind = self.beta_schedule or "trained"
        return f"{kind} betas{between}{rescaled}, {self.num_train_timesteps} timesteps, {self.prediction_type}"


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes the noise, and what the model predicts, out of a scheduler's configuration, as it stands there; what
    diffusers takes where it is silent."""
    found = {one.name: config.get(one.name) for one in fields(NoiseSchedule)}
    return {one.name: one.default if found[one.name] is None else found[one.name] for one in fields(NoiseSchedule)}


def read_schedule(location: ModelLocation) -> NoiseSchedule:
    """The schedule of a model's folder. Raises `ModelError` for one that names a class of another process."""
    config = read_config(location, "scheduler")
    name = config.get("_class_name")
    file = f"{location.folder}/scheduler/scheduler_config.json"
    where = file if name is None else f"{file} (class {shown(str(name))})"
    schedule = NoiseSchedule.parse(config, where)
    if name is not None and not _has_betas(name):
        raise ModelError(
            f"{where} names a scheduler that is not known to add noise by betas: take a model that was trained on "
            "sqrt(abar) x + sqrt(1 - abar) noise, and where this one was, name DDIMScheduler there."
        )
    return schedule


_SAMPLERS = ("DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "DPMSolverMultistep")
"""What nearly all published folders name. Those are known to be built from betas; diffusers takes seconds to load."""


def _has_betas(name: object) -> bool:
    """Whether diffusers has a scheduler of this name, and builds it from betas. One that is not installed in full, for
    want of another package, is taken on its configuration's word."""
    if name in [f"{sampler}Scheduler" for sampler in _SAMPLERS]:
        return True
    import diffusers

    # a configuration that Flax wrote names its own class, which diffusers takes for this one
    kind = getattr(diffusers, str(name).removeprefix("Flax"), None)
    if not inspect.isclass(kind) or not hasattr(kind, "from_config"):
        return False
    parameters = inspect.signature(kind.__init__).parameters
    return "beta_schedule" in parameters or "args" in parameters


_OTHER_PROCESSES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("flow matching", "use_flow_sigmas", lambda value: value not in (None, False)),
    ("flow matching", "shift", lambda value: value not in (None, False)),
    ("flow matching", "prediction_type", lambda value: value == "flow_prediction"),
    ("EDM's", "sigma_data", lambda value: value is not None),
    ("EDM's", "timestep_type", lambda value: value not in (None, "discrete")),
    ("noise with a shifted signal-to-noise ratio", "snr_shift_scale", lambda value: value not in (None, 1)),
)
"""Of processes that are not noise by betas the settings that tell them."""


def mixed(
    clean: NDArray[np.float32], of_image: np.float32, drawn: NDArray[np.float32], of_noise: np.float32
) -> NDArray[np.float32]:
    """The sum of both, each times its factor."""
    noisy: NDArray[np.float32] = of_image * clean + of_noise * drawn
    return noisy


def is_mixture(
    noisy: NDArray[np.float16],
    clean: NDArray[np.float32],
    of_image: float,
    drawn: NDArray[np.float32],
    of_noise: float,
) -> bool:
    """Whether stored noisy latents are that sum, rounded to float16.

    Computed anew in float64, with room for what float32 lost: another machine's square roots may differ there, and
    rarely turn a rounding the other way.
    """
    parts = of_image * clean.astype(np.float64), of_noise * drawn.astype(np.float64)
    exact, size = parts[0] + parts[1], np.abs(parts[0]) + np.abs(parts[1])
    off = np.abs(noisy.astype(np.float64) - exact)
    half = np.spacing(np.abs(noisy)).astype(np.float64) / 2
    return bool((off <= half + 1e-5 * size).all())


def check_timesteps(timesteps: Iterable[int], count: int) -> None:
    """Raise `ModelError` for a timestep that a model of so many does not have."""
    for timestep in timesteps:
        if not 0 <= timestep < count:
            raise ModelError(f"There is no timestep {timestep}: this model's timesteps run from 0 to {count - 1}.")


def noise(seed: int, image_key: str, timestep: int, draw: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of a noisy latent: numpy's Philox keyed by (seed, image key, timestep, draw).

    torch.randn would differ between CPU instruction sets and between CPU and GPU.
    """
    return _normal(f"noise|{seed}|{image_key}|{timestep}|{draw}", shape)


def posterior_noise(seed: int, image_key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise with which an image's latents are drawn from the VAE's posterior."""
    return _normal(f"posterior|{seed}|{image_key}", shape)


def generator(key: str) -> np.random.Generator:
    """numpy's Philox, keyed by a hash of `key`."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def _normal(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return generator(key).standard_normal(shape, dtype=np.float32)


_KNOWN = (4, 64, 64)
"""The shape of what checksums are taken of."""


def known_checksums() -> dict[str, str]:
    """16 hex digits each of one known draw of noise and of one known mixture, rounded to float16 as noisy latents are.
    Where others come out, what is derived would differ from what was kept."""
    clean, drawn = (_normal(key, _KNOWN) for key in ("known latents", "known noise"))
    mixture = mixed(clean, np.float32(0.8), drawn, np.float32(0.6)).astype("<f2")
    return {"draw": _checksum(drawn.astype("<f4")), "mixture": _checksum(mixture)}


def _checksum(values: NDArray[Any]) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()


class Latents(Enum):
    """SAMPLE: one seeded draw from the VAE's posterior an image, shared by all noise draws, as in SD4Match. MEAN: the
    posterior's mean."""

    SAMPLE = "sample"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class LatentScale:
    """From a VAE's latents z to those that the UNet was trained on: (z - shift_factor) * scaling_factor.

    Both are below what float16 ends at, in which latents are kept. A configuration that states no `scaling_factor`
    means that of Stable Diffusion's first ones, diffusers' default.
    """

    shift_factor: Annotated[float, Field(gt=-1e6, lt=1e6)] | None = None
    scaling_factor: Annotated[float, Field(gt=0, lt=1e6)] = 0.18215

    @property
    def shift(self) -> float:
        """0 where the configuration states none."""
        return self.shift_factor or 0.0

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: str) -> Self:
        """Read a VAE's configuration. where: the file that it stands in. Raises `ModelError` for values that are no
        numbers, and for means and deviations of each channel, which would be needed as well."""
        for key in ("latents_mean", "latents_std"):
            if config.get(key) is not None:
                raise ModelError(
                    f"{where} states {key}: latents that are normalised by the channel are not supported; take a model "
                    "whose VAE has a scaling_factor alone."
                )
        return parsed(cls, config, where)
