"""Read what comes next while what came last is being computed."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(keys: Iterable[Key], load: Callable[[Key], Value]) -> Iterator[tuple[Key, Value]]:
    """Each key with what `load` gives for it, in order; the next one is loaded in a thread meanwhile. Exceptions of
    `load` come up where its value would have."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as reader:
        waiting: tuple[Key, Future[Value]] | None = None
        for key in keys:
            following = (key, reader.submit(load, key))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
