"""A model's files as other people's tools leave them: read only where they are regular files that say one thing."""

import json
import stat
from pathlib import Path
from typing import Any

from featstore.errors import ModelError
from featstore.plain_text import one_line, shown

_LONGEST_JSON = 50_000_000
"""Bytes; the longest that are published, lists of shards, have a few hundred thousand."""

_DEEPEST = 50
"""Levels of a configuration; published ones have up to five."""

_LFS = b"version https://git-lfs"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_file(path: Path) -> None:
    """Raise `ModelError` unless this is a regular file that can be read, and not what git-lfs left in its place."""
    try:
        _check_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        lost = path.is_symlink() and not path.exists()
        why = f"it is a link to {path.readlink()}, where there is no file" if lost else one_line(error)
        raise ModelError(f"{path} cannot be read ({why}): download the model again.") from error
    if start == _LFS:
        raise ModelError(
            f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull` in the model's folder."
        )


def check_folder(folder: Path) -> None:
    """Raise `ModelError` where a folder has a pipe or a device, which a library might open: the one would be waited for
    for ever, the other has no end."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir():
            _check_regular(path)


def _check_regular(path: Path) -> None:
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise ModelError(
            f"{path} is {_KINDS.get(kind, 'a device')}, not a regular file: put the model's file in its place."
        )


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds. what: it is, for the sentence, e.g. "a diffusers configuration". Raises
    `ModelError` where it cannot be read."""
    try:
        return parse_object(path)
    except ValueError as error:
        raise ModelError(f"{path} cannot be read as {what}: {one_line(error)}.") from error


def parse_object(path: Path) -> dict[str, Any]:
    """`read_object` for sentences of other words: raises `ValueError` with the reason where the content is at fault, as
    where readers could differ on what it says (a key that stands twice, a NaN)."""
    check_file(path)
    if path.stat().st_size > _LONGEST_JSON:
        raise ValueError(f"it is longer than {_LONGEST_JSON} bytes")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        _check_depth(found)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("a value is NaN")
    return float(name)  # diffusers writes -Infinity for DPM-Solver's lambda_min_clipped


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise RecursionError
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
