"""Reading and writing while something else is computed, where a store is far away: on object storage a request takes
tens of milliseconds, however small the row."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featstore.store.keys import StoreLocation
from featstore.store.row_file import Row
from featstore.store.rows import RowArray

REQUESTS = 8
"""Requests under way at once, of reading ahead and of writing behind."""

AHEAD_BYTES = 256 * 2**20
"""Of rows that are read ahead, at most; two images are always."""

WriteRow = Callable[[RowArray, Row, NDArray[Any]], None]
"""Writes a row of an array, see `RowArray.write`; where it is behind, errors come up later."""


def reads_ahead(store: StoreLocation) -> int:
    """How many reads of small rows run ahead of what is computed; none on a local disk, which is faster than that."""
    return 0 if isinstance(store, Path) else REQUESTS


@contextmanager
def row_writer(store: StoreLocation) -> Iterator[WriteRow]:
    """Writes rows: at once on a local disk, else in threads, a few at a time. When it ends all are written, or what one
    of them raised is raised. Rows that were handed over must not be changed any more."""
    if isinstance(store, Path):
        yield RowArray.write
        return
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="write-behind") as writers:
        under_way: deque[Future[None]] = deque()

        def write(array: RowArray, row: Row, values: NDArray[Any]) -> None:
            while len(under_way) >= 2 * REQUESTS:
                under_way.popleft().result()
            under_way.append(writers.submit(array.write, row, values))

        yield write
        for written in under_way:
            written.result()
