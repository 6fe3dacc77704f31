"""A model's fingerprint: a hash of the files that shape its features, remembered so that gigabytes are read once."""

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from featstore.backbones.location import is_variant
from featstore.backbones.model_file import check_file
from featstore.errors import StoreError
from featstore.files import write_whole

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


def forget(folder: Path, memory: Path) -> None:
    """Drop what is remembered of the files below a folder, so that they are read anew: a file whose bytes changed under
    the size and the date that it had is not told from the one that was hashed."""
    remembered = _recall(memory)
    below = f"{folder.resolve()}{os.sep}"
    # a hub's files are links to where their contents lie
    files = {str(file.resolve()) for file in folder.rglob("*")}
    kept = {
        key: digest
        for key, digest in remembered.items()
        if not key.startswith(below) and key.rsplit("|", 2)[0] not in files
    }
    if kept != remembered:
        _remember(memory, kept)


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
