"""Noise that is a function of its key alone: the same on any machine, in any order, batch, process or resumed run."""

import hashlib

import numpy as np
from numpy.typing import NDArray


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
