"""Several processes that train together, of which one ends."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cli.train_processes import Processes, open_processes, run_folder, training_compute, when_main
from featstore.errors import DiskFullError, ProcessError
from featstore.tuning.run_folder import RunFolder
from featstore.tuning.state import sum_gradients, sum_numbers, wait_for_all
from tests.forked import together

CPU = torch.device("cpu")


def through_the_store(processes: Processes) -> None:
    with when_main(processes):
        pass


def made_run() -> RunFolder:
    raise DiskFullError("The disk is full.")


MEETINGS: dict[str, Callable[[Processes], object]] = {
    "gradients": lambda processes: sum_gradients([nn.Parameter(torch.ones(2))], processes.accelerator),
    "numbers": lambda processes: sum_numbers([1.0], processes.accelerator, CPU),
    "the end": lambda processes: wait_for_all(processes.accelerator),
    "the store": through_the_store,
    "the run's folder": lambda processes: run_folder(processes, made_run),
}


@pytest.mark.parametrize("where", MEETINGS)
def test_those_that_wait_for_one_that_ended_are_told(where: str) -> None:
    """The first fails, as where its disk is full; the other says so in a sentence, wherever it waits."""

    def task() -> None:
        processes = open_processes(training_compute("cpu", "float32", 1))
        assert sum_numbers([1.0, 2.0], processes.accelerator, CPU) == [2.0, 4.0]
        if processes.is_main:
            raise SystemExit(2)
        with pytest.raises(ProcessError, match="Another of the 2 processes failed"):
            MEETINGS[where](processes)

    assert together(2, task) == [2, 0]
