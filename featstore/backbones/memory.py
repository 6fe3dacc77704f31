"""When memory runs out: a sentence with the batch size to try."""

import contextlib
from collections.abc import Iterator

import torch

from featstore.errors import ModelError


@contextlib.contextmanager
def saying_batch_size(batch_size: int) -> Iterator[None]:
    """Turn an out-of-memory error of the enclosed pass into a `ModelError` that names the batch size to try."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On the CPU torch raises a bare RuntimeError whose text names its allocator.
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        advice = (
            f"try --batch-size {batch_size // 2}"
            if batch_size > 1
            else "it does not fit at all: try --dtype float16, a smaller --size or another device"
        )
        raise ModelError(f"Memory ran out at batch size {batch_size}: {advice}.") from error
