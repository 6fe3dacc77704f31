"""Loading, networks and writing run at once: how far ahead, in which order, and what comes of errors."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from featstore.backbones.base import Compute, MapKey
from featstore.backbones.models import Model
from featstore.datasets.records import Dataset
from featstore.errors import StoreError
from featstore.pipeline import features, plan
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.features import LEAST_AHEAD, Pass, keep, loaded, on_device
from featstore.pipeline.needed import require_maps
from featstore.pipeline.plan import MapRequest
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.keys import Extractor
from featstore.store.rows import RowArray
from featstore.store.store import Store, open_store

EXTRACTOR = Extractor("0" * 32, {"kind": "text", "template": ""}, 1, "float32", 0)


@pytest.fixture
def store(dataset: Dataset, model: Model, request_: BuildRequest, compute: Compute) -> Store:
    build(dataset, model, request_, compute, skip_bad=False, progress=Silent())
    return open_store(request_.path)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("c.*")) if file.is_file()}


@pytest.mark.parametrize("at_once", [1, 8])
def test_inputs_are_loaded_ahead_of_the_networks_and_no_further(at_once: int) -> None:
    """Of a list of passes that never ends."""
    asked, enough = list[int](), threading.Semaphore(0)

    def planned() -> Iterator[Pass[int]]:
        start = 0
        while True:
            yield Pass(range(start, start + at_once), (), (0,), at_once, is_last=True)
            start += at_once

    def load(_: Pass[int], item: int) -> int:
        asked.append(item)
        enough.release()
        return item * item

    passes = loaded(planned(), load, at_once)
    most = at_once + max(2 * at_once, LEAST_AHEAD)
    for number in range(3):
        own, values = next(passes)
        assert values == [item * item for item in range(number * at_once, (number + 1) * at_once)]
        assert list(own.items) == [*range(number * at_once, (number + 1) * at_once)]
        for _ in range(most if number == 0 else at_once):
            assert enough.acquire(timeout=300)
        assert sorted(asked) == [*range(most + number * at_once)]


def test_rows_do_not_depend_on_the_order_of_threads(
    store: Store,
    dataset: Dataset,
    model: Model,
    photographs: Path,
    request_: BuildRequest,
    compute: Compute,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which of them waits, when it decodes, draws noise or writes, is left to chance."""

    def make(into: Store) -> None:
        request = MapRequest(TextPrompt(), 3, compute)
        require_maps(into, dataset, range(6), [("2", 261), ("3", 50)], request, Silent())

    make(store)
    chance = random.Random(0)

    def slowed(plain: Any) -> Any:
        def slow(*arguments: Any) -> Any:
            time.sleep(chance.random() / 20)
            return plain(*arguments)

        return slow

    monkeypatch.setattr(features, "resize_to_square", slowed(features.resize_to_square))
    monkeypatch.setattr(plan, "noise", slowed(plan.noise))
    monkeypatch.setattr(RowArray, "write", slowed(RowArray.write))
    other = replace(request_, path=tmp_path / "slow.zarr")
    build(dataset, model, other, compute, skip_bad=False, progress=Silent())
    make(open_store(other.path))
    assert contents(other.path) == contents(store.path)


def test_a_row_that_cannot_be_written_stops_the_networks(store: Store) -> None:
    """It is said with the next row or the one after, and not when all are done."""
    made = list[int]()

    def maps() -> Iterator[tuple[int, MapKey, torch.Tensor]]:
        for row in range(6):
            time.sleep(0.5)
            made.append(row)
            yield row, ("2", 50), torch.full((2, 4, 4), torch.inf if row == 1 else 1.0)

    with pytest.raises(StoreError, match=r"Row 1 of .* not finite in float16: the model overflowed"):
        keep(store, EXTRACTOR, maps())
    assert made[-1] < 5


def test_pictures_and_latents_on_a_device() -> None:
    """To the last bit what numpy makes of all levels; latents stay as they are."""
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(on_device(levels, torch.device("cpu")).numpy(), expected)
    latents: NDArray[np.float16] = np.linspace(-3, 3, 64, dtype=np.float16).reshape(1, 4, 4, 4)
    assert torch.equal(on_device(latents, torch.device("cpu")), torch.from_numpy(latents))
