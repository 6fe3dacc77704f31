"""The next step's noisy latents are read while this step is computed."""

import threading

import numpy as np
from numpy.typing import NDArray

from featstore.tuning.step import NoiseAhead


class Watched:
    """Latents that say what they are of; each is asked for once."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.all_of_next = threading.Event()

    def load(self, image: str, timestep: int, step: int) -> NDArray[np.float32]:
        self.asked.append((image, timestep, step))
        if sum(own[2] == 1 for own in self.asked) == 4:
            self.all_of_next.set()
        return np.full((4, 2, 2), len(image) * 1000 + timestep + step, dtype=np.float32)


def test_read_before_it_is_asked_for() -> None:
    source = Watched()
    ahead = NoiseAhead(source.load, (50, 261, 50))
    ahead.expect(["a", "bb", "a"], 0)
    ahead.expect(["bb", "ccc"], 1)
    assert ahead("a", 50, 0)[0, 0, 0] == 1050
    assert source.all_of_next.wait(timeout=300), "nobody has asked for step 1 yet"
    assert ahead("ccc", 261, 1)[0, 0, 0] == 3262
    assert sorted(source.asked) == sorted(
        [(image, timestep, 0) for image in ("a", "bb") for timestep in (50, 261)]
        + [(image, timestep, 1) for image in ("bb", "ccc") for timestep in (50, 261)]
    )


def test_what_was_not_expected_is_read_all_the_same() -> None:
    source = Watched()
    ahead = NoiseAhead(source.load, (50,))
    assert ahead("a", 50, 7)[0, 0, 0] == 1057
    ahead.expect(["a"], 0)
    ahead.expect(["a"], 2)
    ahead("a", 50, 0)
    assert source.asked.count(("a", 50, 0)) == 2, "step 0 was let go"
