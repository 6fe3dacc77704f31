"""A map that is another image's is told from its image's latents, without a network."""

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.pipeline.recompute import by_suspicion
from featstore.progress import Silent

IMAGES = 24


def latents(row: int) -> NDArray[np.float32]:
    return np.random.default_rng(row).normal(size=(4, 32, 32)).astype(np.float32)


def map_of(row: int, side: int) -> NDArray[np.float32]:
    """Something of its latents, averaged to `side` cells, and much that is not."""
    random = np.random.default_rng(1000 + row)
    cells = latents(row).reshape(4, side, 32 // side, side, 32 // side).mean((2, 4))
    mixed = np.einsum("kc,chw->khw", np.random.default_rng(1).normal(size=(24, 4)), np.tanh(cells)).astype(np.float32)
    return mixed + random.normal(size=mixed.shape).astype(np.float32) * mixed.std()


@pytest.mark.parametrize("side", [32, 16])
@pytest.mark.parametrize(("one", "other"), [(3, 21), (0, 1)])
def test_two_swapped_maps_are_suspected_most(side: int, one: int, other: int) -> None:
    swapped = {one: other, other: one}
    order = by_suspicion(range(IMAGES), latents, lambda row: map_of(swapped.get(row, row), side), Silent())
    assert set(order[:2]) == {one, other}
    assert sorted(order) == list(range(IMAGES))


def test_tokens_are_cells_after_the_class_token() -> None:
    def tokens(row: int) -> NDArray[np.float32]:
        cells = map_of(row, 16).reshape(24, -1).T
        return np.concatenate([np.full((1, 24), 9, dtype=np.float32), cells])

    swapped = {3: 21, 21: 3}
    order = by_suspicion(range(IMAGES), latents, lambda row: tokens(swapped.get(row, row)), Silent())
    assert set(order[:2]) == {3, 21}


def test_of_two_images_none_can_be_told() -> None:
    assert by_suspicion([5, 2], latents, latents, Silent()) == [5, 2]
