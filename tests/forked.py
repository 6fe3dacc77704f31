"""Real processes at one instant, without the seconds that starting Python and its libraries takes: they are forked."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

import torch
from accelerate.state import AcceleratorState

SECONDS = 1800
"""After which a process that hangs is given up."""


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: more would not survive a fork, and other counts of them compute other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def at_once(*tasks: Callable[[], object]) -> list[int | None]:
    """The exit codes of processes that do one task each and start together: 0 done, 1 an exception, minus a signal,
    that of a `SystemExit`, None for one that hangs."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(tasks))
    with one_thread():
        running = [context.Process(target=_run, args=(task, barrier)) for task in tasks]
        for process in running:
            process.start()
    for process in running:
        process.join(SECONDS)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return codes


def together(count: int, task: Callable[[], object]) -> list[int | None]:
    """The same for one task of `count` processes that know of each other, as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def own(rank: int) -> Callable[[], object]:
        def run() -> object:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
            # what accelerate remembers of the process that it was forked from, which may have trained alone
            AcceleratorState._reset_state(reset_partial_state=True)
            return task()

        return run

    return at_once(*map(own, range(count)))


def _run(task: Callable[[], object], barrier: Barrier) -> None:
    torch.set_num_threads(1)
    barrier.wait(SECONDS)
    try:
        task()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def all_done(codes: Sequence[int | None]) -> bool:
    """Whether every process did its task."""
    return all(code == 0 for code in codes)
