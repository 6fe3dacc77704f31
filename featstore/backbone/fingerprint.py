"""A model's fingerprint: a hash of the files that shape its features, remembered so that gigabytes are read once."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from featstore.backbone.location import is_variant
from featstore.backbone.model_file import check_file

_HASHED = ("*.safetensors", "*.json", "*.txt")


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
            if is_variant(path):
                continue
            check_file(path)
            status = path.stat()
            key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            if key not in known:
                with path.open("rb") as file:
                    known[key] = hashlib.file_digest(file, "blake2b").hexdigest()
            digest.update(f"{component}/{path.name}={known[key]}\n".encode())
    if known != remembered:
        _remember(memory, known)
    return digest.hexdigest()


def pass_once(fingerprint: str, memory: Path, check: Callable[[], None]) -> None:
    """Run a check of weights, which takes seconds, unless the memory says that it was passed: for these contents and by
    these versions of the libraries that load them. What it raises is not remembered."""
    mark = "|".join(["weights 1", fingerprint, *map(version, ("diffusers", "transformers"))])
    if mark not in _recall(memory):
        check()
        _remember(memory, {**_recall(memory), mark: "passed"})


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
        partial = memory.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(memory)
    except OSError:
        return
