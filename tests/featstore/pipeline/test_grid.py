"""Grids on a store: cached or streamed, stopped and gone on with, and what they say they will take."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featstore.backbones.base import Compute
from featstore.backbones.models import open_model
from featstore.backbones.noise import Latents
from featstore.datasets.records import AnnotatedPairs, Dataset, Pair
from featstore.datasets.registry import open_dataset
from featstore.errors import StoreError
from featstore.pipeline.build import BuildRequest, build
from featstore.pipeline.features import EncodedMaps, MapStream
from featstore.pipeline.grid import (
    HIT_BYTES,
    Grid,
    GridCost,
    GridWork,
    cost_cached,
    cost_streamed,
    grid_ledger,
)
from featstore.pipeline.needed import MapsCost, open_stream, require_maps
from featstore.pipeline.pairs import choose_some, in_resized_frame
from featstore.pipeline.plan import MapRequest, extractor_of
from featstore.pipeline.sources import StoredMaps
from featstore.progress import Silent
from featstore.prompts.text import TextPrompt
from featstore.store.keys import Extractor
from featstore.store.rows import ENCODINGS
from featstore.store.store import Store, open_store
from matcher.configuration import LayerSpec, MatchSettings, all_layers_fused, one_layer_each
from matcher.grid import GridScores
from matcher.pairs import MatchingPair, Pairs
from matcher.sweep import TargetMatches, sweep
from tests.featstore.pictures import PAIRS, PICTURES, write_pictures
from tests.reference import evaluate_plainly, hits

SIZE = 64
TIMESTEPS = (50, 261)
DRAWS = 2
PROMPT = TextPrompt()
COMPUTE = Compute(torch.device("cpu"), torch.float32, 4)
SETTINGS = MatchSettings(SIZE)
STEPS = {"2": TIMESTEPS, "3": TIMESTEPS}
GRID = Grid(
    one_layer_each(STEPS, SETTINGS) + all_layers_fused(STEPS, [(0.8, 0.6), (1, 0), (0.3, 2)], SETTINGS),
    ("nn", "bilinear", "softmax", "window", "pixel"),
    (0.06, 0.12),
)
"""4 single layers and 2 x 2 x 3 fused ones."""
MAP_BYTES = {2: 128 * 8 * 8 * 2, 3: 64 * 16 * 16 * 2}
"""The small model's maps of 64 x 64 pixels in float16."""
LATENT_BYTES = 4 * 16 * 16 * 2
CHECKSUM = 4
FEATURES = {"extractor": "test"}


@dataclass(frozen=True)
class Built:
    """A store of the pictures with latents and noisy latents (one draw at `TIMESTEPS`), in a folder of its own."""

    folder: Path
    dataset: Dataset

    @property
    def pairs(self) -> AnnotatedPairs:
        return self.dataset.pairs("test")

    def copied(self, folder: Path, what: str = "latents.zarr") -> Store:
        shutil.copytree(self.folder / what, folder / what)
        return open_store(folder / what)


def extractor_for(store: Store, ensemble: int = DRAWS) -> Extractor:
    return extractor_of(store, PROMPT, ensemble, COMPUTE)


def framed(built: Built, store: Store) -> Pairs:
    return in_resized_frame(built.dataset, built.pairs, store.images.size, SIZE, Silent())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Built:
    """`latents.zarr`, and the same with all maps of the grid, `maps.zarr`."""
    folder = tmp_path_factory.mktemp("grid")
    dataset = open_dataset("folder", write_pictures(folder / "photographs"))
    request = BuildRequest(folder / "latents.zarr", folder / "photographs", SIZE, Latents.SAMPLE, 11, TIMESTEPS, 1)
    build(dataset, open_model(str(small_model)), request, COMPUTE, skip_bad=False, progress=Silent())
    shutil.copytree(folder / "latents.zarr", folder / "maps.zarr")
    store = open_store(folder / "maps.zarr")
    require_maps(store, dataset, range(len(store.images)), GRID.maps, MapRequest(PROMPT, DRAWS, COMPUTE), Silent())
    return Built(folder, dataset)


@pytest.fixture(scope="module")
def undisturbed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> GridScores:
    return cached(built, built.copied(tmp_path_factory.mktemp("whole"), "maps.zarr"))


class Interrupting(Silent):
    """Ctrl-C after so many pairs were matched."""

    def __init__(self, pairs: int) -> None:
        self.left = pairs
        self.matching = False

    def start(self, what: str, *_: object) -> None:
        self.matching = what.startswith("matching")

    def advance(self, count: int = 1) -> None:
        if self.matching:
            self.left -= count
            if self.left <= 0:
                raise KeyboardInterrupt


@dataclass(frozen=True)
class BreakingMaps:
    """A source of maps that breaks, as a disk or a network may. given: how many maps of each image it hands out."""

    maps: StoredMaps
    given: Mapping[str, int]
    asked: Counter[str] = field(default_factory=Counter)

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        self.asked[image] += 1
        if self.asked[image] > self.given.get(image, 0):
            raise ConnectionError("the network is gone")
        return self.maps.load(image, layer)


def cached(
    built: Built, store: Store, progress: Silent | None = None, given: Mapping[str, int] | None = None
) -> GridScores:
    maps: Any = StoredMaps(store, extractor_for(store))
    if given is not None:
        maps = BreakingMaps(maps, given)
    pairs = framed(built, store)
    ledger = grid_ledger(store, pairs, GRID, FEATURES)
    return GridWork(pairs, GRID, ledger, COMPUTE.device, progress or Silent()).cached(maps)


def streamed(built: Built, store: Store, progress: Silent | None = None) -> GridScores:
    pairs = framed(built, store)
    ledger = grid_ledger(store, pairs, GRID, FEATURES)
    work = GridWork(pairs, GRID, ledger, COMPUTE.device, progress or Silent())
    return work.streamed(store, built.dataset, MapRequest(PROMPT, DRAWS, COMPUTE), lambda maps: maps)


def contents(store: Store) -> dict[str, bytes]:
    """Every file but the ledgers'."""
    files = {str(file.relative_to(store.path)): file for file in sorted(store.path.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith("grids")}


def assert_same(found: GridScores, expected: GridScores) -> None:
    assert [(pair.source, pair.target) for pair in found.pairs] == [
        (pair.source, pair.target) for pair in expected.pairs
    ]
    np.testing.assert_array_equal(found.hits, expected.hits)


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The target images that are matched, as each is."""
    targets: list[str] = []

    def noting(pairs: Sequence[MatchingPair], *arguments: Any) -> Iterator[TargetMatches]:
        for found in sweep(pairs, *arguments):
            targets.append(pairs[found.members[0]].target)
            yield found

    monkeypatch.setattr("matcher.grid.sweep", noting)
    return targets


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The images whose maps are made in memory, a list a category."""
    made: list[list[str]] = []
    plain = MapStream.maps_of

    def noting(self: MapStream, rows: Sequence[int], progress: Silent) -> Any:
        made.append([self.work.store.images.ids[row] for row in rows])
        return plain(self, rows, progress)

    monkeypatch.setattr(MapStream, "maps_of", noting)
    return made


TARGETS = [f"{category}/{index}" for category, count in PICTURES.items() for index in [*range(1, count), 0]]
"""In the order of the pairs, the first of which goes from a category's first picture to its second."""


def test_the_pictures_tell_configurations_apart(undisturbed: GridScores) -> None:
    """What the other tests stand on: hits that are neither all nor none and differ between almost all cells."""
    shares = undisturbed.hits.sum(axis=-1) / undisturbed.pairs.counts.sum()
    assert (shares > 0).all()
    assert (shares < 1).all()
    distinct = {cell.tobytes() for cell in undisturbed.hits}
    assert len(distinct) >= 14  # of 16


def test_the_maps_a_grid_needs() -> None:
    assert GRID.maps == (("2", 50), ("2", 261), ("3", 50), ("3", 261))
    assert replace(GRID, configurations=GRID.configurations[1:3]).maps == (("2", 261), ("3", 50))


def test_cells_are_the_plain_evaluation_of_their_configuration(
    built: Built, undisturbed: GridScores, tmp_path: Path
) -> None:
    """One fused map at a time, one pair at a time."""
    store = built.copied(tmp_path, "maps.zarr")
    maps, pairs = StoredMaps(store, extractor_for(store)), framed(built, store)
    assert undisturbed.pairs.counts.tolist() == [len(pair.names) for pair in built.pairs]
    for index in (0, 3, 5, 10, 12):
        layers = GRID.configurations[index].layers
        plain = evaluate_plainly(pairs, maps, layers, GRID.readouts, SETTINGS, COMPUTE.device)
        expected = np.array(
            [
                [[hits(match, readout, alpha).sum() for match in plain] for alpha in GRID.alphas]
                for readout in GRID.readouts
            ]
        )
        # rounding may move a match that lies on a threshold or between two equal cells
        assert (undisturbed.hits[index] != expected).mean() <= 0.01


def test_streaming_scores_what_the_cache_scores_and_writes_no_maps(
    built: Built, undisturbed: GridScores, tmp_path: Path, streams: list[list[str]]
) -> None:
    store = built.copied(tmp_path)
    before = contents(store)
    assert_same(streamed(built, store), undisturbed)
    assert streams == [["cat/0", "cat/1", "cat/2"], ["dog/0", "dog/1", "dog/2", "dog/3"]]
    assert contents(store) == before
    assert not (store.path / "maps").exists()


def test_streamed_maps_are_the_cached_ones(built: Built, tmp_path: Path) -> None:
    """To the last bit, also where they are made from noise that is not cached and in other batches."""
    store = built.copied(tmp_path, "maps.zarr")
    expected = StoredMaps(store, extractor_for(store))
    shutil.rmtree(store.path / "noisy")
    stream = open_stream(store, built.dataset, ("dog",), GRID.maps, MapRequest(PROMPT, DRAWS, COMPUTE))
    found = stream.maps_of([4, 6], Silent())
    for image in ("dog/1", "dog/3"):
        for layer, timestep in GRID.maps:
            spec = LayerSpec(str(layer), timestep)
            assert found.load(image, spec).dtype == torch.float16
            assert torch.equal(found.load(image, spec), expected.load(image, spec))


def test_streamed_maps_that_are_rounded_are_the_cached_ones(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path)
    rows = range(len(store.images))
    request = MapRequest(PROMPT, DRAWS, COMPUTE, "bitround3")
    made = require_maps(store, built.dataset, rows, GRID.maps, request, Silent())
    expected = StoredMaps(store, made.extractor)
    found = open_stream(store, built.dataset, ("dog",), GRID.maps, request).maps_of([4, 6], Silent())
    for image in ("dog/1", "dog/3"):
        for layer, timestep in GRID.maps:
            spec = LayerSpec(str(layer), timestep)
            assert torch.equal(found.load(image, spec), expected.load(image, spec))


@pytest.mark.parametrize("encoding", ["raw", "bitround3"])
def test_a_streamed_map_that_overflowed_is_refused(encoding: str) -> None:
    maps = EncodedMaps({("a", "2", 261): ENCODINGS[encoding].round(np.full((1, 2, 2), 1e6, dtype=np.float32))})
    with pytest.raises(StoreError, match=r"'a', layer 2 at t = 261, is not finite in float16"):
        maps.load("a", LayerSpec("2", 261))


def test_a_cached_grid_that_was_interrupted_goes_on(
    built: Built, undisturbed: GridScores, tmp_path: Path, matched: list[str]
) -> None:
    store = built.copied(tmp_path, "maps.zarr")
    with pytest.raises(KeyboardInterrupt):
        cached(built, store, Interrupting(8))  # cats are targets of 2 pairs, dogs of 3
    assert matched == TARGETS[:4]
    assert grid_ledger(store, framed(built, store), GRID, FEATURES).done == set(TARGETS[:4])
    matched.clear()
    assert_same(cached(built, store), undisturbed)
    assert matched == TARGETS[4:]


@pytest.mark.parametrize("broken", ["dog/2", "cat/0"])
def test_maps_that_fail_cost_only_the_targets_after_them(
    built: Built,
    undisturbed: GridScores,
    tmp_path: Path,
    matched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    """dog/2 fails when it is read as a source, cat/0 when it is read again, as the third target."""
    monkeypatch.setattr("matcher.sweep.KEPT_BYTES", 0)  # else no map would be read again
    store = built.copied(tmp_path, "maps.zarr")
    given = dict.fromkeys(TARGETS, 8) | {"dog/2": 0} | {broken: 4 if broken == "cat/0" else 0}
    with pytest.raises(ConnectionError):
        cached(built, store, given=given)
    done = 2 if broken == "cat/0" else 3
    assert matched == TARGETS[:done]
    matched.clear()
    assert_same(cached(built, store), undisturbed)
    assert matched == TARGETS[done:]


def test_a_grid_interrupted_at_every_target_ends_the_same(
    built: Built, undisturbed: GridScores, tmp_path: Path, matched: list[str]
) -> None:
    store = built.copied(tmp_path, "maps.zarr")
    done = 0
    for count in range(1, 8):
        with pytest.raises(KeyboardInterrupt):
            cached(built, store, Interrupting(done + 1))  # those that are done count too
        done += 2 if count <= 3 else 3
        assert len(matched) == count
    assert matched == TARGETS
    assert_same(cached(built, store), undisturbed)
    assert len(matched) == 7  # no target was left to match


def test_a_finished_grid_reads_no_map(built: Built, undisturbed: GridScores, tmp_path: Path) -> None:
    store = built.copied(tmp_path, "maps.zarr")
    cached(built, store)
    assert_same(cached(built, store, given={}), undisturbed)


def test_another_grid_does_not_take_over_what_one_has_finished(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path, "maps.zarr")
    cached(built, store)
    pairs = framed(built, store)
    other_alphas = replace(GRID, alphas=(0.1, 0.3))
    assert grid_ledger(store, pairs, GRID, FEATURES).done == set(TARGETS)
    assert grid_ledger(store, pairs, other_alphas, FEATURES).done == frozenset()
    assert grid_ledger(store, pairs[1:], GRID, FEATURES).done == frozenset()
    assert grid_ledger(store, pairs, GRID, {"extractor": "other"}).done == frozenset()


def test_a_finished_category_is_not_made_again(
    built: Built, undisturbed: GridScores, tmp_path: Path, matched: list[str], streams: list[list[str]]
) -> None:
    store = built.copied(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        streamed(built, store, Interrupting(PAIRS["cat"] + 6))  # two dogs are finished
    assert matched == TARGETS[:5]
    streams.clear()
    matched.clear()
    assert_same(streamed(built, store), undisturbed)
    assert streams == [["dog/0", "dog/1", "dog/2", "dog/3"]]
    assert matched == TARGETS[5:]


def test_a_category_interrupted_while_its_maps_are_made_is_made_whole(
    built: Built, undisturbed: GridScores, tmp_path: Path, streams: list[list[str]]
) -> None:
    class InTheSecond(Silent):
        def __init__(self) -> None:
            self.steps: list[str] = []

        def start(self, what: str, *_: object) -> None:
            self.steps.append(what)

        def advance(self, *_: object) -> None:
            if self.steps[-1] == "UNet passes" and self.steps.count("UNet passes") == 2:
                raise KeyboardInterrupt

    store = built.copied(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        streamed(built, store, InTheSecond())
    streams.clear()
    assert_same(streamed(built, store), undisturbed)
    assert [len(images) for images in streams] == [PICTURES["dog"]]


def test_a_finished_stream_loads_no_model(
    built: Built, undisturbed: GridScores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = built.copied(tmp_path)
    streamed(built, store)

    def fail(*_: object) -> None:
        raise AssertionError("a model was looked for")

    monkeypatch.setattr("featstore.pipeline.grid.open_stream", fail)
    assert_same(streamed(built, store), undisturbed)


def test_what_was_begun_from_the_cache_is_finished_in_memory(
    built: Built, undisturbed: GridScores, tmp_path: Path, streams: list[list[str]]
) -> None:
    store = built.copied(tmp_path, "maps.zarr")
    with pytest.raises(KeyboardInterrupt):
        cached(built, store, Interrupting(PAIRS["cat"]))
    shutil.rmtree(store.path / "maps")
    assert_same(streamed(built, store), undisturbed)
    assert [len(images) for images in streams] == [PICTURES["dog"]]


def costs(built: Built, store: Store, grid: Grid = GRID, ensemble: int = DRAWS) -> tuple[GridCost, GridCost]:
    extractor, pairs = extractor_for(store, ensemble), framed(built, store)
    return (
        cost_cached(store, extractor, pairs, grid, PROMPT, {}),
        cost_streamed(store, extractor, pairs, grid, PROMPT, {}),
    )


def test_what_a_grid_costs_where_no_map_is_there(built: Built, tmp_path: Path) -> None:
    """7 images, 2 timesteps of 2 draws; noise is derived."""
    store = built.copied(tmp_path)
    kept, memory = costs(built, store)
    assert (kept.images, memory.images) == (7, 7)
    maps = 7 * 2 * (MAP_BYTES[2] + CHECKSUM + MAP_BYTES[3] + CHECKSUM)
    assert kept.maps == MapsCost(0, 28, maps, 28)
    assert memory.maps == MapsCost(0, 28, 0, 0)


def test_layers_that_share_a_timestep_share_its_passes(built: Built, tmp_path: Path) -> None:
    """Layer 2 at 3 timesteps, layer 3 at one of them: 3 passes an image and draw, not 4."""
    store = built.copied(tmp_path)
    grid = Grid(one_layer_each({"2": (50, 261, 400), "3": (261,)}, SETTINGS), ("nn",), (0.1,))
    kept, memory = costs(built, store, grid, ensemble=1)
    maps = 7 * (3 * (MAP_BYTES[2] + CHECKSUM) + MAP_BYTES[3] + CHECKSUM)
    assert kept.maps == MapsCost(0, 21, maps, 28)
    assert memory.maps == MapsCost(0, 21, 0, 0)


def test_what_is_cached_costs_nothing(built: Built, tmp_path: Path) -> None:
    """But in memory all is made again."""
    store = built.copied(tmp_path, "maps.zarr")
    kept, memory = costs(built, store)
    assert kept.maps == MapsCost(0, 0, 0, 0)
    assert memory.maps == MapsCost(0, 28, 0, 0)
    for layer, row in ((2, 1), (3, 4)):
        array = store.maps(extractor_for(store), layer, 261)
        assert array is not None
        array.delete_rows([(row,)])
    kept, _ = costs(built, store)
    # a pass taps both layers for both rows
    assert kept.maps.passes == 2 * DRAWS


def test_lost_latents_are_encoded_again(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path)
    for row in (0, 5):
        store.latents().delete_rows([(row,)])
    kept, memory = costs(built, store)
    assert kept.maps.encode == 2
    assert memory.maps == MapsCost(2, 28, 2 * (LATENT_BYTES + CHECKSUM), 2)


def test_the_cost_is_what_is_written(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path)
    store.latents().delete_rows([(3,)])
    before = contents(store)
    cost, _ = costs(built, store)
    require_maps(store, built.dataset, range(7), GRID.maps, MapRequest(PROMPT, DRAWS, COMPUTE), Silent())
    made = {name: data for name, data in contents(store).items() if name not in before and "/c." in name}
    assert (len(made), sum(map(len, made.values()))) == (cost.maps.files_to_write, cost.maps.bytes_to_write)


def test_streaming_holds_the_largest_category(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path)
    extractor = extractor_for(store)
    pairs = framed(built, store)
    dogs, cats = (pairs.take(pairs.grouped("category")[category]) for category in ("dog", "cat"))
    both, alone, fewer = (cost_streamed(store, extractor, own, GRID, PROMPT, {}) for own in (pairs, dogs, cats))
    # of the other category nothing but its hits is held
    assert both.peak_bytes - alone.peak_bytes == math.prod(GRID.shape) * len(cats) * HIT_BYTES
    assert (alone.images, fewer.images) == (4, 3)
    image = 2 * (MAP_BYTES[2] + MAP_BYTES[3])
    assert alone.peak_bytes - fewer.peak_bytes >= image
    assert alone.peak_bytes >= 4 * image


def test_more_maps_take_more_memory(built: Built, tmp_path: Path) -> None:
    store = built.copied(tmp_path)
    less = replace(GRID, configurations=one_layer_each({"2": (50,)}, SETTINGS))
    for few, many in zip(costs(built, store, less), costs(built, store), strict=True):
        assert many.peak_bytes - few.peak_bytes >= 4 * (MAP_BYTES[2] + 2 * MAP_BYTES[3])


def numbered(count: int) -> AnnotatedPairs:
    points = np.ones((1, 2))
    ends = [(f"cat/{index}", f"cat/{index + 1}") for index in range(count)]
    return AnnotatedPairs.of(Pair(*own, "cat", points, points, ("eye",)) for own in ends)


def test_some_pairs_are_chosen_by_a_seed_in_their_order() -> None:
    pairs = numbered(200)
    chosen = choose_some(pairs, 40)
    places = [int(pair.source.removeprefix("cat/")) for pair in chosen]
    assert places == [int(pair.source.removeprefix("cat/")) for pair in choose_some(pairs, 40)]
    assert len(set(places)) == 40
    assert places == sorted(places)
    # from all over the list: a first or last 40 would lie in one half
    assert 8 <= sum(place < 100 for place in places) <= 32


@pytest.mark.parametrize("count", [None, 200, 201, 10**9])
def test_all_pairs_where_there_are_no_more(count: int | None) -> None:
    pairs = numbered(200)
    assert choose_some(pairs, count) is pairs


@pytest.mark.parametrize("run", [cached, streamed])
def test_progress_counts_every_pair_once_also_those_done_before(
    built: Built, tmp_path: Path, run: Callable[..., GridScores]
) -> None:
    class Counting(Silent):
        def __init__(self) -> None:
            self.totals: dict[str, int] = {}
            self.done: dict[str, int] = {}
            self.step = ""

        def start(self, what: str, total: int, *_: object) -> None:
            self.step = what
            self.totals[what] = total

        def advance(self, count: int = 1) -> None:
            self.done[self.step] = self.done.get(self.step, 0) + count

    store = built.copied(tmp_path, "maps.zarr")
    with pytest.raises(KeyboardInterrupt):
        run(built, store, Interrupting(8))
    watched = Counting()
    run(built, store, watched)
    matching = {what: total for what, total in watched.totals.items() if what.startswith("matching")}
    assert sum(matching.values()) == sum(PAIRS.values())
    assert {what: watched.done[what] for what in matching} == matching
