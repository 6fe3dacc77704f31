"""Read what comes next while what came last is being computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

AHEAD = 2
"""How many are read ahead, each in a thread of its own: one thread alone does not fill a disk's or a network's line."""


def read_ahead(keys: Iterable[Key], load: Callable[[Key], Value]) -> Iterator[tuple[Key, Value]]:
    """Each key with what `load` gives for it, in order; the next ones are loaded in threads meanwhile. Exceptions of
    `load` come up where its value would have."""
    with ThreadPoolExecutor(max_workers=AHEAD, thread_name_prefix="read-ahead") as readers:
        waiting: deque[tuple[Key, Future[Value]]] = deque()
        for key in keys:
            waiting.append((key, readers.submit(load, key)))
            if len(waiting) > AHEAD:
                first, value = waiting.popleft()
                yield first, value.result()
        while waiting:
            first, value = waiting.popleft()
            yield first, value.result()
