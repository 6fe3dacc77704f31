import hashlib
import subprocess
import sys

import numpy as np
from diffusers import DDIMScheduler

from featstore.backbones.noise import NoiseSchedule, draw_checksum, mixture_checksum, noise, posterior_noise

SHAPE = (4, 8, 8)


def test_it_is_philox_keyed_by_a_hash() -> None:
    key = hashlib.blake2b(b"noise|7|abc|261|2", digest_size=16).digest()
    low, high = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    expected = np.random.Generator(np.random.Philox(key=np.array([low, high], dtype=np.uint64))).standard_normal(
        SHAPE, dtype=np.float32
    )
    np.testing.assert_array_equal(noise(7, "abc", 261, 2, SHAPE), expected)


def test_every_part_of_the_key_matters() -> None:
    draws = [noise(0, "a", 1, 0, SHAPE), noise(1, "a", 1, 0, SHAPE), noise(0, "b", 1, 0, SHAPE)]
    draws += [noise(0, "a", 2, 0, SHAPE), noise(0, "a", 1, 1, SHAPE), posterior_noise(0, "a", SHAPE)]
    for first in range(len(draws)):
        for second in range(first):
            assert abs(np.corrcoef(draws[first].ravel(), draws[second].ravel())[0, 1]) < 0.3


def test_it_is_standard_normal() -> None:
    values = noise(0, "many", 5, 0, (4, 96, 96))
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_another_process_draws_the_same() -> None:
    code = (
        "from featstore.backbones.noise import noise; import sys;"
        "sys.stdout.buffer.write(noise(3, 'x', 50, 1, (4, 8, 8)).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert other == noise(3, "x", 50, 1, SHAPE).tobytes()


def test_checksums_are_of_one_draw_and_one_mixture() -> None:
    """By hand, and by diffusers' scheduler."""

    def drawn(text: bytes) -> np.ndarray:
        key = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype="<u8")
        return np.random.Generator(np.random.Philox(key=key)).standard_normal((4, 64, 64), dtype=np.float32)

    assert draw_checksum() == hashlib.blake2b(drawn(b"known noise").tobytes(), digest_size=8).hexdigest()
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    abar = DDIMScheduler(**config).alphas_cumprod[500]
    mixed = (abar**0.5).numpy() * drawn(b"known latents") + ((1 - abar) ** 0.5).numpy() * drawn(b"known noise")
    expected = hashlib.blake2b(mixed.astype(np.float16).tobytes(), digest_size=8).hexdigest()
    assert mixture_checksum(NoiseSchedule.parse(config, "here")) == expected
    assert mixture_checksum(NoiseSchedule.parse(config | {"beta_end": 0.0121}, "here")) != expected
