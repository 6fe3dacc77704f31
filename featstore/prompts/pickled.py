"""Tensors from the pickles that `torch.save` writes. Nothing in them is executed, and nothing but tensors accepted."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featstore.errors import PromptError

Keys = tuple[str, ...]
"""Where a tensor stands: the keys of the dictionaries that lead to it."""


def load_tensors(file: Path) -> dict[Keys, Tensor]:
    """All tensors of a file, on the CPU, by where they stand; those of a file that is one tensor stand at ().

    Raises `PromptError` for a file that is missing or damaged, or holds anything but tensors and dictionaries of them.
    """
    if not file.is_file():
        raise PromptError(f"There is no file {file}.")
    found: dict[Keys, Tensor] = {}
    left: list[tuple[Keys, Any]] = [((), _load(file))]
    seen: set[int] = set()  # a dictionary may hold itself
    while left:
        keys, value = left.pop()
        if isinstance(value, Tensor):
            found[keys] = value
        elif not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise PromptError(
                f"{file} is refused: it holds a {type(value).__name__} where tensors, or tensors by name, are expected"
                f"{f' (at {keys[-1]!r})' if keys else ''}."
            )
        elif id(value) not in seen:
            seen.add(id(value))
            left += [((*keys, key), own) for key, own in value.items()]
    return found


def _load(file: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the pickle is like; it is read or refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it comes upon
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "is no file of torch.save's, or a damaged one" if wanted is None else f"asks for {wanted.group(1)}"
        raise PromptError(
            f"{file} is refused: it {reason}; only tensors are read, and nothing in a pickle is executed."
        ) from error
