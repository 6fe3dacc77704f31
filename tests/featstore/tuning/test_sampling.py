import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from featstore.errors import TuningError
from featstore.prompts.learned import Mode
from featstore.tuning.sampling import Cliques, RandomPairs, open_sampler
from featstore.tuning.settings import Sampling
from matcher.pairs import MatchingPair
from tests.featstore.tuning.conftest import SETTINGS

POINT = np.zeros((1, 2), dtype=np.float32)


def all_pairs(images: int, category: str) -> list[MatchingPair]:
    names = [f"{category}{index}" for index in range(images)]
    return [MatchingPair(a, b, category, POINT, POINT, 1.0) for a, b in itertools.permutations(names, 2)]


def test_every_pair_comes_once_an_epoch_however_batches_fall() -> None:
    sampler = RandomPairs(count=10, size=4, seed=3)
    drawn = [index for step in range(5) for index in sampler.batch(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert drawn[:10] != list(range(10))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    pairs = all_pairs(6, "a") + all_pairs(4, "b")
    for sampling in Sampling:
        settings = replace(SETTINGS, sampling=sampling)
        first, second = (open_sampler(pairs, settings) for _ in range(2))
        for step in range(5):
            first.batch(step)
        assert first.batch(7) == second.batch(7)
        assert first.batch(7) != first.batch(8)
        assert first.batch(7) != open_sampler(pairs, replace(settings, seed=1)).batch(7)


def test_a_clique_is_all_pairs_among_k_images_of_a_category() -> None:
    pairs = all_pairs(7, "a") + all_pairs(5, "b")
    sampler = Cliques(pairs, images=4, count=1, seed=0)
    for step in range(30):
        chosen = [pairs[index] for index in sampler.batch(step)]
        images = {pair.source for pair in chosen}
        assert len(images) == 4
        assert len({pair.category for pair in chosen}) == 1
        assert {(pair.source, pair.target) for pair in chosen} == set(itertools.permutations(images, 2))
        assert len(chosen) == 12


def test_only_listed_pairs_are_taken_and_small_categories_whole() -> None:
    pairs = [pair for pair in all_pairs(3, "a") if pair.source < pair.target]
    assert sorted(Cliques(pairs, images=5, count=2, seed=0).batch(0)) == [0, 0, 1, 1, 2, 2]


def test_a_category_comes_as_often_as_it_has_pairs() -> None:
    pairs = all_pairs(6, "a") + all_pairs(3, "b")  # 30 and 6
    sampler = Cliques(pairs, images=2, count=1, seed=0)
    count = Counter(pairs[sampler.batch(step)[0]].category for step in range(1200))
    assert count["b"] / 1200 == pytest.approx(6 / 36, abs=0.04)


def test_what_cannot_be() -> None:
    with pytest.raises(TuningError, match="25 \\+ 50 vectors"):
        replace(SETTINGS, mode=Mode.CPM, length=5)
    with pytest.raises(TuningError, match="belong to pairs"):
        replace(SETTINGS, mode=Mode.CPM, sampling=Sampling.CLIQUES)
    with pytest.raises(TuningError, match="at least 2 images"):
        replace(SETTINGS, sampling=Sampling.CLIQUES, clique=1)
    # pairs that share no image: two images drawn at random are hardly ever one
    lonely = [MatchingPair(f"s{i}", f"t{i}", "a", POINT, POINT, 1.0) for i in range(20000)]
    with pytest.raises(TuningError, match="too few"):
        Cliques(lonely, images=2, count=1, seed=0).batch(0)


def test_settings_survive_their_file() -> None:
    import json

    from featstore.tuning.settings import TuningSettings

    assert TuningSettings.from_json(json.loads(json.dumps(SETTINGS.to_json()))) == SETTINGS
