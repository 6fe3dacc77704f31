"""Noise that is a function of its key alone: the same on any machine, in any order, batch, process or resumed run.
And which latents an image is given."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.backbones.model_file import stated
from featstore.errors import ModelError


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
            raise ModelError(
                f"{where} has shift_factor {stated(shift)}, which must be a number below {LARGEST:g}: restore the "
                "model's own file."
            )
        if not _is_number(factor) or factor <= 0:
            raise ModelError(
                f"{where} has scaling_factor {stated(factor)}, which must be a number above 0 and below {LARGEST:g}: "
                "restore the model's own file."
            )
        return cls(float(shift or 0), float(factor))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
