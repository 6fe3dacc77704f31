"""Several processes that train together, of which one ends."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from featstore.errors import ProcessError
from featstore.pipeline.distributed import Processes, join_processes
from featstore.tuning.trainer import sum_gradients, sum_numbers
from tests.forked import together

CPU = torch.device("cpu")


def through_the_store(processes: Processes) -> None:
    with processes.main_first():
        pass


MEETINGS: dict[str, Callable[[Processes], object]] = {
    "gradients": lambda processes: sum_gradients([nn.Parameter(torch.ones(2))], processes),
    "numbers": lambda processes: sum_numbers([1.0], processes, CPU),
    "the end": lambda processes: processes.wait(),
    "the store": through_the_store,
    "the folder of the run": lambda processes: processes.gather(""),
}


@pytest.mark.parametrize("where", MEETINGS)
def test_those_that_wait_for_one_that_ended_are_told(where: str) -> None:
    """The first fails, as where its disk is full; the other says so in a sentence, wherever it waits."""

    def task() -> None:
        processes = join_processes()
        assert sum_numbers([1.0, 2.0], processes, CPU) == [2.0, 4.0]
        if processes.is_main:
            raise SystemExit(2)
        with pytest.raises(ProcessError, match="Another of the 2 processes failed"):
            MEETINGS[where](processes)

    assert together(2, task) == [2, 0]
