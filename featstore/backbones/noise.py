"""The noise schedule that a model was trained with: its betas, whatever sampler its folder names.

A published folder names the class that samples best (SD-Turbo's is Euler's), and what diffusers' classes call
`add_noise` is what sampling needs: DPMSolver's counts timesteps backwards, Euler's does not scale the image. What the
UNet was trained on follows from the betas alone, and is what is computed here.

Noise itself is a function of its key alone: the same on any machine, in any order, batch, process or resumed run.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.base import ModelLocation
from featstore.backbones.model_file import read_config, stated
from featstore.errors import ModelError
from featstore.plain_text import shown

SPACED = ("linear", "scaled_linear", "sigmoid")
"""Kinds of betas that lie between `beta_start` and `beta_end`."""
KINDS = (*SPACED, "squaredcos_cap_v2", "laplace", "exp")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LARGEST_BETA = 0.999
"""Where the kinds end that are defined by abar, as in diffusers."""
MOST_TIMESTEPS = 100_000
RESTORE = "correct it, or restore the model's own file"

# What diffusers takes where a configuration is silent: in every class that has betas. The betas have no such default:
# classes differ there, and a folder that lost its betas would be given another model's.
_SILENT: Mapping[str, Any] = {
    "beta_schedule": None,
    "beta_start": None,
    "beta_end": None,
    "trained_betas": None,
    "num_train_timesteps": 1000,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes the noise, and what the model predicts, out of a scheduler's configuration, as it stands there; what
    diffusers takes where it is silent."""
    return {**_SILENT, **{key: config[key] for key in _SILENT if config.get(key) is not None}}


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule: noisy latents are sqrt(abar_t) x + sqrt(1 - abar_t) noise, with abar_t the
    product of 1 - beta up to t.

    kind: of `KINDS`, with `start` and `end` where betas are spaced between those, or "trained" with the `trained`
    betas. timesteps: how many there are. zero_snr: whether betas are rescaled so that nothing of the image is left at
    the last. prediction: what the UNet was trained to predict, of `PREDICTIONS`; for the record.
    """

    kind: str
    start: float
    end: float
    trained: tuple[float, ...]
    timesteps: int
    zero_snr: bool
    prediction: str

    @classmethod
    def parse(cls, config: Mapping[str, Any], where: str) -> Self:
        """Read a scheduler's configuration. where: the file, or the store whose header it is. Raises `ModelError` for
        one of another process than this, and for values that are none."""
        _check_process(config, where)
        found = settings_of(config)
        timesteps, zero_snr, prediction, kind = (
            found[key] for key in ("num_train_timesteps", "rescale_betas_zero_snr", "prediction_type", "beta_schedule")
        )
        own_betas = found["trained_betas"]
        if kind is None and own_betas is None:
            raise ModelError(
                f"{where} states no betas (beta_schedule or trained_betas), so how its model was noised is not known: "
                "take a model of Stable Diffusion's kind, or state the betas that it was trained with there."
            )
        whole = type(timesteps) is int and 1 <= timesteps <= MOST_TIMESTEPS
        for key, fits, what in (
            ("prediction_type", prediction in PREDICTIONS, f"one of {', '.join(PREDICTIONS)}"),
            ("num_train_timesteps", whole, f"a whole number from 1 to {MOST_TIMESTEPS}"),
            ("rescale_betas_zero_snr", type(zero_snr) is bool, "true or false"),
            ("num_train_timesteps", timesteps != 1 or not zero_snr, "more than 1 with rescale_betas_zero_snr"),
            ("beta_schedule", own_betas is not None or kind in KINDS, f"one of {', '.join(KINDS)}"),
        ):
            if not fits:
                raise _wrong(where, key, found[key], f"must be {what}")
        start, end, trained = 0.0, 0.0, tuple[float, ...]()
        if own_betas is not None:
            kind, trained = "trained", _trained(own_betas, timesteps, where)
        elif kind in SPACED:
            start, end = (_beta(found[key], key, where) for key in ("beta_start", "beta_end"))
            if start > end or end == 0:
                raise ModelError(
                    f"{where} has beta_start {start:g} and beta_end {end:g}, but betas rise from the first to the "
                    f"second: {RESTORE}."
                )
        return cls(kind, start, end, trained, timesteps, zero_snr, prediction)

    @cached_property
    def alphas_cumprod(self) -> NDArray[np.float32]:
        """abar of each timestep, (timesteps,): bit for bit diffusers' DDIM's, and so by torch's own operations."""
        import torch

        betas = self._betas()
        if self.zero_snr:
            root = torch.cumprod(1.0 - betas, dim=0).sqrt()
            first, last = root[0].clone(), root[-1].clone()
            root = (root - last) * (first / (first - last))
            squared = root**2
            betas = 1 - torch.cat([squared[:1], squared[1:] / squared[:-1]])
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

        match self.kind:
            case "trained":
                return torch.tensor(self.trained, dtype=torch.float32)
            case "linear":
                return torch.linspace(self.start, self.end, self.timesteps, dtype=torch.float32)
            case "scaled_linear":
                return torch.linspace(self.start**0.5, self.end**0.5, self.timesteps, dtype=torch.float32) ** 2
            case "sigmoid":
                return torch.sigmoid(torch.linspace(-6, 6, self.timesteps)) * (self.end - self.start) + self.start
        abar = [_ABAR[self.kind](step / self.timesteps) for step in range(self.timesteps + 1)]
        betas = [min(1 - after / before, LARGEST_BETA) for before, after in pairwise(abar)]
        return torch.tensor(betas, dtype=torch.float32)

    def mix(self, clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        """Noisy latents of clean ones and standard normal noise of the same shape.

        Product by product in numpy: a fused multiply-add (`torch.addcmul`) rounds some values to another float16.
        """
        self.check_timesteps([timestep])
        of_image, of_noise = self._roots[:, timestep]
        noisy: NDArray[np.float32] = of_image * clean + of_noise * drawn
        return noisy

    def has_mixed(
        self, noisy: NDArray[np.float16], clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int
    ) -> bool:
        """Whether stored noisy latents are the mixture of these, rounded to float16.

        Computed anew in float64, with room for what float32 lost: another machine's square roots may differ there, and
        rarely turn a rounding the other way.
        """
        abar = float(self.alphas_cumprod[timestep])
        parts = math.sqrt(abar) * clean.astype(np.float64), math.sqrt(1 - abar) * drawn.astype(np.float64)
        exact, size = parts[0] + parts[1], np.abs(parts[0]) + np.abs(parts[1])
        off = np.abs(noisy.astype(np.float64) - exact)
        half = np.spacing(np.abs(noisy)).astype(np.float64) / 2
        return bool((off <= half + 1e-5 * size).all())

    def check_timesteps(self, timesteps: Iterable[int]) -> None:
        """Raise `ModelError` for a timestep that the model does not have."""
        for timestep in timesteps:
            if not 0 <= timestep < self.timesteps:
                raise ModelError(
                    f"There is no timestep {timestep}: this model's timesteps run from 0 to {self.timesteps - 1}."
                )

    def describe(self) -> dict[str, Any]:
        """What is used, under diffusers' names: for a store's header."""
        spaced = {"beta_start": self.start, "beta_end": self.end} if self.kind in SPACED else {}
        betas = {"trained_betas": list(self.trained)} if self.trained else {"beta_schedule": self.kind, **spaced}
        return {
            **betas,
            "num_train_timesteps": self.timesteps,
            "rescale_betas_zero_snr": self.zero_snr,
            "prediction_type": self.prediction,
        }

    def spell(self) -> str:
        """In words, e.g. `scaled_linear betas 0.00085 to 0.012, 1000 timesteps, v_prediction`."""
        between = f" {self.start:g} to {self.end:g}" if self.kind in SPACED else ""
        rescaled = ", rescaled to zero terminal SNR" if self.zero_snr else ""
        return f"{self.kind} betas{between}{rescaled}, {self.timesteps} timesteps, {self.prediction}"


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


def _check_process(config: Mapping[str, Any], where: str) -> None:
    """Raise `ModelError` for a configuration that states another process than noise by betas, even beside betas, as one
    keeps them that was saved after its class was exchanged."""
    for process, key, tells in _OTHER_PROCESSES:
        if tells(config.get(key)):
            raise ModelError(
                f"{where} says {key} {stated(config[key])}: that process is {process}, not noise by betas alone; take "
                "a model that was trained on sqrt(abar) x + sqrt(1 - abar) noise."
            )


def _trained(betas: object, timesteps: int, where: str) -> tuple[float, ...]:
    if not isinstance(betas, list | tuple):
        raise _wrong(where, "trained_betas", betas, "must be a list of numbers")
    if len(betas) != timesteps:
        count = f"{len(betas)} trained_betas for {timesteps} timesteps (num_train_timesteps)"
        raise ModelError(f"{where} has {count}: {RESTORE}.")
    found = tuple(_beta(beta, f"trained_betas[{index}]", where) for index, beta in enumerate(betas))
    if not any(found):
        raise _wrong(where, "trained_betas", 0, "must not all be 0")
    return found


def _beta(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise _wrong(where, key, value, "must be a number from 0 to below 1")
    return float(value)


def _wrong(where: str, key: str, value: object, what: str) -> ModelError:
    return ModelError(f"{where} has {key} {stated(value)}, which {what}: {RESTORE}.")


def _laplace(share: float) -> float:
    odds = -0.5 * math.copysign(1, 0.5 - share) * math.log(1 - 2 * math.fabs(0.5 - share) + 1e-6)
    snr = math.exp(odds)
    return math.sqrt(snr / (1 + snr))


_ABAR: Mapping[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": lambda share: math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda share: math.exp(share * -12.0),
}
"""Of the share of the timesteps that is passed."""


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


def draw_checksum() -> str:
    """16 hex digits of one known draw: a numpy that gives others draws other noise."""
    return _checksum(_normal("known noise", _KNOWN).astype("<f4"))


def mixture_checksum(schedule: NoiseSchedule) -> str:
    """16 hex digits of one known mixture by a schedule's betas, rounded to float16 as noisy latents are: where others
    come out, what is derived would differ from what was kept."""
    clean, drawn = (_normal(key, _KNOWN) for key in ("known latents", "known noise"))
    return _checksum(schedule.mix(clean, drawn, schedule.timesteps // 2).astype("<f2"))


def _checksum(values: NDArray[Any]) -> str:
    return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()


USUAL_FACTOR = 0.18215
"""What a VAE's configuration means that states no `scaling_factor`: Stable Diffusion's first ones, and diffusers'
default."""

LARGEST = 1e6
"""What shifts and factors stay below: float16, in which latents are kept, ends there."""


class Latents(Enum):
    """SAMPLE: one seeded draw from the VAE's posterior an image, shared by all noise draws, as in SD4Match. MEAN: the
    posterior's mean."""

    SAMPLE = "sample"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class LatentScale:
    """From a VAE's latents z to those that the UNet was trained on: (z - shift) * factor."""

    shift: float
    factor: float

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
        shift, factor = config.get("shift_factor"), config.get("scaling_factor", USUAL_FACTOR)
        if shift is not None and not _is_number(shift):
            raise _wrong(where, "shift_factor", shift, f"must be a number below {LARGEST:g}")
        if not _is_number(factor) or factor <= 0:
            raise _wrong(where, "scaling_factor", factor, f"must be a number above 0 and below {LARGEST:g}")
        return cls(float(shift or 0), float(factor))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
