from dataclasses import replace

import pytest

from featstore.errors import TuningError
from featstore.prompts.base import Mode
from featstore.tuning.step import RandomPairs
from tests.featstore.tuning.conftest import SETTINGS


def test_every_pair_comes_once_an_epoch_however_batches_fall() -> None:
    sampler = RandomPairs(count=10, size=4, seed=3)
    drawn = [index for step in range(5) for index in sampler.batch(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert drawn[:10] != list(range(10))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = RandomPairs(42, 9, 0), RandomPairs(42, 9, 0)
    for step in range(5):
        first.batch(step)
    assert first.batch(7) == second.batch(7)
    assert first.batch(7) != first.batch(8)
    assert first.batch(7) != RandomPairs(42, 9, 1).batch(7)


def test_what_cannot_be() -> None:
    with pytest.raises(TuningError, match="25 \\+ 50 vectors"):
        replace(SETTINGS, mode=Mode.CPM, length=5)


def test_settings_survive_their_file() -> None:
    import json

    from featstore.tuning.settings import TuningSettings

    written = json.loads(json.dumps(SETTINGS.to_json()))
    assert TuningSettings.from_json(written) == SETTINGS
    assert TuningSettings.from_json({**written, "sampling": "pairs", "clique": 6}) == SETTINGS  # of dualsd 0.1
    with pytest.raises(ValueError, match="cliques"):
        TuningSettings.from_json({**written, "sampling": "cliques", "clique": 6})
