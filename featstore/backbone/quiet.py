"""Silence for what diffusers and transformers print while they read or write weights."""

import contextlib
import logging
from collections.abc import Iterator

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No warnings of diffusers' and no progress bars of transformers' inside; afterwards both are as they were."""
    logger = logging.getLogger("diffusers")
    before = logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if bars:
            transformers_logging.enable_progress_bar()
