"""Noise that no store keeps is derived when it is needed, bit for bit what a store would hold."""

from pathlib import Path

import numpy as np
import pytest
import torch

from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.backbones.noise import Latents, noise
from featstore.datasets.registry import open_dataset
from featstore.errors import ModelError, StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.distributed import parse_part
from featstore.pipeline.plan import Work, keep_noise, noisy_latents
from featstore.progress import Silent
from featstore.store.store import Store, open_store

TIMESTEPS, DRAWS = (50, 200, 261, 350), 8


@pytest.fixture
def demo(tmp_path: Path, compute: Compute) -> Store:
    """Latents and one draw at each of the method's timesteps, of 4 of the demo's images."""
    part = parse_part("3/96")
    request = BuildRequest(tmp_path / "demo.zarr", None, None, Latents.SAMPLE, 5, TIMESTEPS, 1, part)
    build(open_dataset("demo", None), open_model("demo"), request, compute, skip_bad=False, progress=Silent())
    return open_store(request.path)


def test_derived_is_what_a_store_holds(demo: Store, compute: Compute) -> None:
    """For all timesteps and 8 draws, of which none, one or all are kept; nothing is written for it."""
    rows = np.flatnonzero(demo.latents().present()).tolist()
    assert len(rows) == 4
    files = sorted(demo.path.rglob("c.*"))
    one_kept = noisy_latents(demo, TIMESTEPS)
    found = {(row, step): one_kept(row, step, range(DRAWS)) for row in rows for step in TIMESTEPS}
    assert sorted(demo.path.rglob("c.*")) == files
    work = Work(demo, open_dataset("demo", None), compute, Silent())
    assert keep_noise(work, one_kept, rows, TIMESTEPS, DRAWS) == 4 * 4 * (DRAWS - 1)
    for step in TIMESTEPS:
        array = demo.noisy(step)
        assert array is not None
        abar = torch.tensor(demo.header.schedule.alphas_cumprod[step])
        of_image, of_noise = (abar**0.5).numpy(), ((1 - abar) ** 0.5).numpy()
        for row in rows:
            kept = np.stack([array.read((row, draw)) for draw in range(DRAWS)])
            assert found[row, step].dtype == np.float16
            np.testing.assert_array_equal(found[row, step].view(np.uint16), kept.view(np.uint16))
            clean, key = demo.latents().read((row,)).astype(np.float32), demo.images.keys[row]
            drawn = np.stack([noise(5, key, step, draw, clean.shape) for draw in range(DRAWS)])
            np.testing.assert_array_equal(kept, (of_image * clean + of_noise * drawn).astype(np.float16))
    all_kept = noisy_latents(demo, TIMESTEPS)
    np.testing.assert_array_equal(all_kept(rows[1], 261, [6, 2]), found[rows[1], 261][[6, 2]])
    # some have gone since, and all of one timestep: those are derived again
    array.delete_rows([(row, draw) for row in rows for draw in (0, 5)])
    np.testing.assert_array_equal(noisy_latents(demo, [350])(rows[0], 350, range(DRAWS)), found[rows[0], 350])


def test_what_is_kept_is_what_is_read(demo: Store) -> None:
    """Also bits that only the store has; noise that is not by the betas is refused where it would be read."""
    row = int(np.flatnonzero(demo.latents().present())[0])
    array = demo.noisy(261)
    assert array is not None
    noisy = noisy_latents(demo, [261])
    kept = array.read((row, 0))
    moved = kept.copy()
    moved[0, 0, 0] = 3
    array.write((row, 0), moved)
    np.testing.assert_array_equal(noisy(row, 261, [0])[0], moved)
    for other in np.flatnonzero(demo.latents().present()).tolist():
        array.write((other, 0), array.read((other, 0))[:, ::-1])
    with pytest.raises(StoreError, match=r"noisy latents of .* at t = 261 are not noise by its betas"):
        noisy_latents(demo, [50, 261])
    noisy_latents(demo, [50])
    with pytest.raises(ModelError, match="no timestep 1000"):
        noisy_latents(demo, [1000])
