import hashlib
import subprocess
import sys

import numpy as np

from featstore.backbones.noise import known_checksums, noise, posterior_noise

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
    """By hand."""

    def drawn(text: bytes) -> np.ndarray:
        key = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), dtype="<u8")
        return np.random.Generator(np.random.Philox(key=key)).standard_normal((4, 64, 64), dtype=np.float32)

    mixed = np.float32(0.8) * drawn(b"known latents") + np.float32(0.6) * drawn(b"known noise")
    expected = {"draw": drawn(b"known noise"), "mixture": mixed.astype(np.float16)}
    found = known_checksums()
    for name, values in expected.items():
        assert found[name] == hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
