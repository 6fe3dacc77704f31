"""Processes that do one command together: who they are, what they gather, who matches which pairs."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from featstore.errors import ImageError, ProcessError
from featstore.pipeline.distributed import ALONE, Processes, by_category, by_target, in_blocks, join_processes, launched
from matcher.configuration import MODULES, LayerSpec, MatchSettings
from matcher.maps import MapsInMemory
from matcher.pairs import Pairs
from matcher.sweep import evaluate
from tests.featstore.evaluations import SIZE, many_pairs
from tests.forked import at_once, one_thread, together

READOUTS = tuple(MODULES)
LAYERS = (LayerSpec("2", 50, 0.8), LayerSpec("3", 261, 0.6))


def tell(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)


def test_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    assert launched() == ALONE
    tell(monkeypatch, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0")
    assert launched() == ALONE
    assert join_processes() is ALONE
    tell(monkeypatch, WORLD_SIZE="8", RANK="5", LOCAL_RANK="1")
    assert launched() == Processes(5, 8, 1)


@pytest.mark.parametrize("names", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "first"}])
def test_one_that_does_not_know_which_it_is(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    tell(monkeypatch, **names)
    with pytest.raises(ProcessError, match="start them with torchrun"):
        launched()


def test_one_that_cannot_find_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, WORLD_SIZE="2", RANK="0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ProcessError, match="do not find each other"):
        join_processes()


def test_one_alone_gathers_its_own() -> None:
    assert ALONE.gather("it") == ["it"]
    assert ALONE.is_main
    assert list(ALONE.part.of("abc")) == ["a", "b", "c"]


def test_all_get_what_each_hands_in() -> None:
    """Arrays and errors too, several times, in order of rank."""

    def task() -> None:
        processes = join_processes()
        rank = processes.rank
        assert processes.is_main == (rank == 0)
        processes.wait()
        found = processes.gather((rank, np.full((2, rank), rank), ImageError(f"cat/{rank}", "It is broken.")))
        assert [own[0] for own in found] == [0, 1, 2]
        assert [own[1].tolist() for own in found] == [[[], []], [[1], [1]], [[2, 2], [2, 2]]]
        assert [(own[2].image_id, str(own[2])) for own in found] == [(f"cat/{n}", "It is broken.") for n in range(3)]
        assert join_processes().gather(rank) == [0, 1, 2]

    assert together(3, task) == [0, 0, 0]


@pytest.mark.parametrize("end", ["error", "kill"])
def test_those_that_wait_for_one_that_ended_are_told(tmp_path: Path, end: str) -> None:
    def task() -> None:
        processes = join_processes()
        if processes.rank == 1:
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise SystemExit(2)
        with pytest.raises(ProcessError, match="Another of the 3 processes failed"):
            processes.gather(0)
        (tmp_path / str(processes.rank)).touch()

    assert together(3, task) == [0, -signal.SIGKILL if end == "kill" else 2, 0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "2"]


def test_one_that_is_left_before_all_have_met_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, where they meet, ends in the middle of it: the other is not told to start them with torchrun."""
    plain = torch.distributed.all_gather_object

    def leaving(*arguments: Any) -> Any:
        if launched().rank == 0:
            os._exit(2)
        return plain(*arguments)

    monkeypatch.setattr(torch.distributed, "all_gather_object", leaving)

    def task() -> None:
        with pytest.raises(ProcessError, match=r"Another of the 2 processes ended before all had met.* 127\.0\.0\.1:"):
            join_processes()

    assert together(2, task) == [2, 0]


def test_none_goes_on_before_all_have_met(tmp_path: Path) -> None:
    """One that ends at once afterwards does not take the others for ones that never came."""

    def task() -> None:
        processes = join_processes()
        if processes.rank == 0:
            os._exit(2)
        (tmp_path / str(processes.rank)).touch()

    for _ in range(3):
        assert together(3, task) == [2, 0, 0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1", "2"]


def test_what_is_not_the_same_is_noticed() -> None:
    def task() -> None:
        processes = join_processes()
        processes.check_same({"run": "r"}, "prompts")
        with pytest.raises(ProcessError, match="Of the 2 processes some found other prompts"):
            processes.check_same({"run": processes.rank}, "prompts")

    assert together(2, task) == [0, 0]


def test_processes_that_do_not_know_of_each_other_are_alone() -> None:
    assert at_once(join_processes, join_processes) == [0, 0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_all_pairs_once(count: int) -> None:
    listed = many_pairs(images=7, categories=("cat", "dog", "sheep"))
    np.random.default_rng(1).shuffle(listed)  # type: ignore[arg-type]
    pairs = Pairs.of(listed)
    for shares, key in ((by_target(pairs, count), "target"), (by_category(pairs, count), "category")):
        assert len(shares) == count
        assert sorted(index for share in shares for index in share) == list(range(len(pairs)))
        assert all(share == sorted(share) for share in shares)
        owners = Counter(one for share in shares for one in {getattr(pairs[index], key) for index in share})
        assert set(owners.values()) == {1}
    sizes = [len(share) for share in by_target(pairs, count)]
    assert max(sizes) - min(sizes) <= 2 * 6  # 6 pairs go into a target
    # of a category that is whole in one share the maps are read by one process only
    divided = Counter(one for share in by_target(pairs, count) for one in {pairs[index].category for index in share})
    assert sum(divided.values()) <= len(divided) + count - 1


def test_more_processes_than_groups() -> None:
    shares = in_blocks([[0, 1], [2]], [True, True], 4)
    assert sorted(index for share in shares for index in share) == [0, 1, 2]
    assert in_blocks([], [], 3) == [[], [], []]


def test_what_is_done_weighs_nothing() -> None:
    """Of the first category all is done, of the second one target image of 6: each of two takes half of what is left,
    and everything is still somebody's."""
    pairs = Pairs.of(many_pairs())
    done = {f"cat/{index}" for index in range(6)} | {"dog/0"}
    for shares, left in ((by_target(pairs, 2, done), [10, 15]), (by_category(pairs, 2, done), [0, 25])):
        assert sorted(index for share in shares for index in share) == list(range(len(pairs)))
        assert sorted(sum(pairs[index].target not in done for index in share) for share in shares) == left
    everything = by_target(pairs, 3, {pair.target for pair in pairs})
    assert sorted(index for share in everything for index in share) == list(range(len(pairs)))


def random_maps(pairs: Pairs) -> MapsInMemory:
    random = torch.Generator().manual_seed(0)
    images = sorted({image for pair in pairs for image in (pair.source, pair.target)})
    shapes = {LAYERS[0]: (24, 12, 12), LAYERS[1]: (16, 24, 24)}
    return MapsInMemory(
        {
            (image, spec.layer, spec.timestep): torch.randn(shape, generator=random).to(torch.float16)
            for image in images
            for spec, shape in shapes.items()
        }
    )


@pytest.mark.parametrize("count", [2, 3, 12])
def test_shares_predict_the_same_bits(count: int) -> None:
    """Every readout, two layers, with as few as one target image a share."""
    pairs = Pairs.of(many_pairs())
    maps, settings, device = random_maps(pairs), MatchSettings(SIZE), torch.device("cpu")
    with one_thread():
        whole = evaluate(pairs, maps, LAYERS, READOUTS, settings, device)
        for share in by_target(pairs, count):
            own = evaluate([pairs[index] for index in share], maps, LAYERS, READOUTS, settings, device)
            for index, found in zip(share, own, strict=True):
                for readout in READOUTS:
                    np.testing.assert_array_equal(found.predictions[readout], whole[index].predictions[readout])
