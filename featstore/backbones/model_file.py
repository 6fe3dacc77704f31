"""A model's files as other people's tools leave them: read only where they are regular files that say one thing, and
told apart by a fingerprint, which is remembered so that gigabytes are read once."""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from featstore.backbones.base import ModelLocation
from featstore.errors import ModelError, StoreError
from featstore.files import write_whole
from featstore.parsing import parse_known
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
        what = _KINDS.get(kind, "a device")
        raise ModelError(f"{path} is {what}, not a regular file: put the model's file in its place.")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds. what: it is, for the sentence, e.g. "a diffusers configuration". Raises
    `ModelError` where it cannot be read, or readers could differ on what it says (a key that stands twice, a NaN)."""
    check_file(path)
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError(f"it is longer than {_LONGEST_JSON} bytes")
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        _check_depth(found)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise ModelError(f"{path} cannot be read as {what}: {why}.") from error
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


def _check_depth(value: Any, levels: int = _DEEPEST) -> None:
    if levels == 0:
        raise RecursionError
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, levels - 1)


def read_config(location: ModelLocation, component: str) -> dict[str, Any]:
    """The configuration of a component. Raises `ModelError` where it cannot be read."""
    file = "scheduler_config.json" if component == "scheduler" else "config.json"
    return read_object(location.folder / component / file, "a diffusers configuration")


RESTORE = "correct it, or restore the model's own file"
Settings = TypeVar("Settings")
Whole = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def parsed(kind: type[Settings], config: Mapping[str, Any], where: object) -> Settings:
    """What a configuration says of the fields that a dataclass has, whose types say what they may be. where: the file.
    Raises `ModelError` for the first that is something else: every refusal of a setting's value has this form."""
    try:
        found: Settings = parse_known(kind, config)
    except ValueError as error:
        raise ModelError(f"{where} cannot be used: {error}; {RESTORE}.") from error
    return found


SAFETENSORS_ONLY = (
    "dualsd reads safetensors only, never pickles; convert the model once with diffusers' save_pretrained"
)


@dataclass(frozen=True, slots=True)
class _Shards:
    """weight_map: the file of each tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def read_shards(index: Path) -> dict[str, str]:
    """The file of each tensor, out of a list of shards; {} where there is none. Raises `ModelError` where it is damaged
    or names pickles, which the libraries would read."""
    if not index.exists():
        return {}
    listed = parsed(_Shards, read_object(index, "a list of weights"), index).weight_map
    if pickles := sorted(file for file in listed.values() if not file.endswith(".safetensors")):
        raise ModelError(f"{index} names {shown(pickles[0])}: {SAFETENSORS_ONLY}.")
    return listed


def stated(value: object) -> str:
    """A value as a configuration states it, short enough for a sentence."""
    return json.dumps(value, default=str)[:80]


_HASHED = ("*.safetensors", "*.json", "*.txt")


_VARIANTS = (".fp16.", ".fp16-", ".non_ema.", ".bf16.", ".bf16-")
"""In the names of weights of another precision than the one that is loaded, such as `....fp16.safetensors`."""


def fingerprint(folder: Path, components: tuple[str, ...], memory: Path) -> str:
    """32 hex digits of the contents of a model's component folders.

    memory: a JSON file in which hashes of files are remembered by path, size and time of change; unreadable or
    missing it is made anew. Raises `ModelError` for a file that cannot be read, such as a pipe.
    """
    remembered = _recall(memory)
    known = dict(remembered)
    digest = hashlib.blake2b(digest_size=16)
    for component in components:
        for path in sorted({path for pattern in _HASHED for path in (folder / component).glob(pattern)}):
            if any(variant in path.name for variant in _VARIANTS):
                continue
            digest.update(f"{component}/{path.name}={_hash_of(path, known)}\n".encode())
    if known != remembered:
        _remember(memory, known)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """32 hex digits of a file's contents, which are remembered as a folder's are. Raises `ModelError` for a file that
    cannot be read."""
    memory = default_memory()
    remembered = _recall(memory)
    known = dict(remembered)
    found = _hash_of(path, known)[:32]
    if known != remembered:
        _remember(memory, known)
    return found


def _hash_of(path: Path, known: dict[str, str]) -> str:
    """Of a file's contents; what is `known` is not read again."""
    check_file(path)
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "blake2b").hexdigest()
    return known[key]


def checked_fingerprint(folder: Path, components: tuple[str, ...], check: Callable[[], None]) -> str:
    """The fingerprint of a folder whose weights pass a check, see `check_once`."""
    found = fingerprint(folder, components, default_memory())
    check_once(found, check)
    return found


def check_once(of: str, check: Callable[[], None]) -> None:
    """Run a check, which takes seconds. It is not run again where the memory says that it was passed: for these
    contents, by their fingerprints, and by these versions of the libraries that load them. What it raises is not
    remembered."""
    memory = default_memory()
    mark = "|".join(["weights 1", of, *map(version, ("diffusers", "transformers"))])
    if mark not in _recall(memory):
        check()
        _remember(memory, {**_recall(memory), mark: "passed"})


def forget() -> None:
    """Drop what is remembered, so that files are read anew: one whose bytes changed under the size and the date that it
    had is not told from the one that was hashed."""
    with contextlib.suppress(OSError):
        default_memory().unlink()


def default_memory() -> Path:
    """Where fingerprints are remembered: `$XDG_CACHE_HOME/dualsd/fingerprints.json`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualsd" / "fingerprints.json"


def _recall(memory: Path) -> dict[str, str]:
    try:
        found = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(memory: Path, known: dict[str, str]) -> None:
    """Write the memory atomically; a home that cannot be written only costs the next command its time."""
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps(known).encode())
    except (OSError, StoreError):
        return
