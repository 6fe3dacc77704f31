"""Read what comes next while what came last is being computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

AHEAD = 2
"""How many are read ahead, each in a thread of its own: one thread alone does not fill a disk's or a network's line."""


def read_ahead(keys: Iterable[Key], load: Callable[[Key], Value], ahead: int = AHEAD) -> Iterator[tuple[Key, Value]]:
    """Each key with what `load` gives for it, in order; the next `ahead` are loaded in threads meanwhile, none where it
    is 0. Exceptions of `load` come up where its value would have."""
    if ahead == 0:
        for key in keys:
            yield key, load(key)
        return
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="read-ahead") as readers:
        waiting: deque[tuple[Key, Future[Value]]] = deque()
        for key in keys:
            waiting.append((key, readers.submit(load, key)))
            if len(waiting) > ahead:
                first, value = waiting.popleft()
                yield first, value.result()
        while waiting:
            first, value = waiting.popleft()
            yield first, value.result()
