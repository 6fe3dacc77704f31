"""Hits of a grid that was stopped: found again by the same grid on the same pairs and images, and by no other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.backbones.noise import Latents
from featstore.errors import DiskFullError, StoreError
from featstore.pipeline.sources import StoredLedger, open_ledger
from featstore.progress import Silent
from featstore.store.images import ImageTable
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, create_store, open_store, update_images
from matcher.pairs import MatchingPair, OriginalFrame

HEADER = StoreHeader("folder", "/data", "owner/model", "main", "ab" * 16, 64, Latents.SAMPLE, {}, 7)
IMAGES = ("cat/a", "cat/b", "cat/c", "dog/d")
TABLE = ImageTable(IMAGES, ("cat", "cat", "cat", "dog"), ("k0", "k1", "k2", "k3"), np.full((4, 2), 50, dtype=np.int32))
SHAPE = (3, 2, 2)
"""Configurations, readouts, alphas."""
GRID = {"grid": "layers 2 and 3", "features": {"extractor": "0123", "ensemble": 8}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_store(tmp_path / "s.zarr", HEADER, TABLE, (4, 8, 8))


def make_pair(source: str, target: str, points: int = 4, seed: int = 0) -> MatchingPair:
    drawn = np.random.default_rng([seed, points]).uniform(1, 60, (2, points, 2)).astype(np.float32)
    original = OriginalFrame((50, 50), (50, 50), drawn[0], drawn[1], 40.0)
    return MatchingPair(source, target, source.split("/")[0], drawn[0], drawn[1], 30.0, original)


PAIRS = (make_pair("cat/a", "cat/b"), make_pair("cat/c", "cat/b"), make_pair("cat/b", "cat/a"))


def random_hits(pairs: int, most: int = 4, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, most + 1, (*SHAPE, pairs)).astype(np.uint16)


def opened(
    store: Store, pairs: Sequence[MatchingPair] = PAIRS, description: Mapping[str, Any] | None = None
) -> StoredLedger:
    return open_ledger(store, pairs, SHAPE, GRID if description is None else description)


def test_what_is_saved_is_loaded_by_the_next_run(store: Store) -> None:
    first = opened(store)
    assert first.done == frozenset()
    assert first.load("cat/b") is None
    hits = random_hits(2)
    first.save("cat/b", hits)
    again = opened(open_store(store.path))
    assert again.done == {"cat/b"}
    found = again.load("cat/b")
    assert found is not None
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, hits)
    assert again.load("cat/a") is None


def test_targets_of_few_and_of_many_pairs_keep_theirs(store: Store) -> None:
    """cat/b is the target of two pairs, cat/a of one: a row has room for the most."""
    ledger, hits = opened(store), random_hits(1, seed=1)
    ledger.save("cat/a", hits)
    ledger.save("cat/b", random_hits(2))
    found = opened(store).load("cat/a")
    assert found is not None
    assert found.shape == (*SHAPE, 1)
    np.testing.assert_array_equal(found, hits)


def test_no_hit_at_all_is_finished_too(store: Store) -> None:
    opened(store).save("cat/b", np.zeros((*SHAPE, 2), dtype=np.uint16))
    found = opened(store).load("cat/b")
    assert found is not None
    assert not found.any()


@pytest.mark.parametrize(
    "description",
    [
        {**GRID, "grid": "layer 2"},
        {**GRID, "features": {"extractor": "4567", "ensemble": 8}},
        {**GRID, "features": {"extractor": "0123", "ensemble": 1}},
    ],
)
def test_another_grid_or_other_features_start_afresh(store: Store, description: dict[str, Any]) -> None:
    opened(store).save("cat/b", random_hits(2))
    assert opened(store, description=description).done == frozenset()
    assert opened(store).done == {"cat/b"}


def moved(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last point half a pixel to the right."""
    changed = points.copy()
    changed[-1, 0] += 0.5
    return changed


OTHER_PAIRS: dict[str, Callable[[], tuple[MatchingPair, ...]]] = {
    "one fewer": lambda: PAIRS[:2],
    "one more": lambda: (*PAIRS, make_pair("cat/c", "cat/a")),
    "another order": lambda: (PAIRS[1], PAIRS[0], PAIRS[2]),
    "another source": lambda: (replace(PAIRS[0], source="cat/c"), *PAIRS[1:]),
    "source point": lambda: (replace(PAIRS[0], source_points=moved(PAIRS[0].source_points)), *PAIRS[1:]),
    "target point": lambda: (replace(PAIRS[0], target_points=moved(PAIRS[0].target_points)), *PAIRS[1:]),
    "theta": lambda: (replace(PAIRS[0], theta=30.5), *PAIRS[1:]),
}


@pytest.mark.parametrize("change", OTHER_PAIRS)
def test_other_pairs_start_afresh(store: Store, change: str) -> None:
    opened(store).save("cat/b", random_hits(2))
    assert opened(store, OTHER_PAIRS[change]()).done == frozenset()


@pytest.mark.parametrize("change", ["theta", "source point", "target point"])
def test_the_same_pairs_with_another_original_frame_start_afresh(store: Store, change: str) -> None:
    """The readout `pixel` is scored there: a box may grow in the original image and keep its longer side in the square
    one, and a point may be clamped in only one of the two."""
    opened(store).save("cat/b", random_hits(2))
    original = PAIRS[0].original
    assert original is not None
    changes: dict[str, dict[str, Any]] = {
        "theta": {"theta": 41.0},
        "source point": {"source_points": moved(original.source_points)},
        "target point": {"target_points": moved(original.target_points)},
    }
    pairs = (replace(PAIRS[0], original=replace(original, **changes[change])), *PAIRS[1:])
    assert opened(store, pairs).done == frozenset()


def with_another(store: Store, changed: str) -> Store:
    """The store, in which the bytes of an image are others."""
    now = [replace(entry, key="new") if entry.id == changed else entry for entry in map(TABLE.entry, range(len(TABLE)))]
    return update_images(store, now, Silent())


@pytest.mark.parametrize("changed", ["cat/b", "cat/c"])
def test_an_image_that_changed_starts_afresh(store: Store, changed: str) -> None:
    """Whether it is the target itself or a source of it."""
    opened(store).save("cat/b", random_hits(2))
    assert opened(with_another(store, changed)).done == frozenset()


def test_an_image_of_no_pair_may_change(store: Store) -> None:
    opened(store).save("cat/b", random_hits(2))
    assert opened(with_another(store, IMAGES[3])).done == {"cat/b"}


def test_a_ledger_that_is_forgotten_leaves_nothing_and_no_other_is_touched(store: Store) -> None:
    first, other = opened(store), opened(store, PAIRS[:2])
    first.save("cat/b", random_hits(2))
    other.save("cat/b", random_hits(2, seed=3))
    folder = store.path / first.path
    assert any(file.name.startswith("c.") for file in folder.iterdir())
    first.forget()
    assert not folder.exists()
    assert opened(store).done == frozenset()
    kept = opened(store, PAIRS[:2]).load("cat/b")
    assert kept is not None
    np.testing.assert_array_equal(kept, random_hits(2, seed=3))


def test_a_damaged_row_is_named(store: Store) -> None:
    ledger = opened(store)
    ledger.save("cat/b", random_hits(2))
    (row,) = (file for file in (store.path / ledger.path).iterdir() if file.name.startswith("c."))
    row.write_bytes(row.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"Row 1 of array 'grids/.*damaged"):
        opened(store).load("cat/b")


def test_every_count_up_to_2000_points_is_exact(store: Store) -> None:
    pairs = tuple(make_pair("cat/a", "cat/b", points=2000) for _ in range(200))
    hits = np.arange(2001).repeat(2)[: 200 * 20].reshape(1, 1, 20, 200).astype(np.uint16)
    hits[0, 0, -1, -1] = 2000
    open_ledger(store, pairs, (1, 1, 20), GRID).save("cat/b", hits)
    found = open_ledger(store, pairs, (1, 1, 20), GRID).load("cat/b")
    assert found is not None
    np.testing.assert_array_equal(found, hits)


@pytest.mark.parametrize("points", [2049, 5000])
def test_more_points_than_float16_counts_are_refused(store: Store, points: int) -> None:
    """2,049 is the first number that it does not hold."""
    with pytest.raises(StoreError, match="more than 2048 points"):
        opened(store, (*PAIRS, make_pair("cat/a", "cat/b", points=points)))


def test_a_full_disk_is_said_with_the_bytes_of_the_target(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(store)
    ledger.save("cat/a", random_hits(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr("featstore.files.free_bytes", lambda _: 100)
    # 3 x 2 x 2 numbers of 2 pairs and a checksum
    with pytest.raises(DiskFullError, match=r"Row 1 of .* the disk is full, 100 B are free, it takes 52 B; make room"):
        ledger.save("cat/b", random_hits(2))
    assert opened(open_store(store.path)).done == {"cat/a"}
