"""A run that is asked to stop finishes its step and saves itself first: Ctrl-C, SIGTERM, SIGUSR1 (preemption)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, signals are only noted: the function that is given says whether one came. A second Ctrl-C interrupts at
    once. Afterwards signals are handled as before."""
    asked = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield asked.is_set
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
