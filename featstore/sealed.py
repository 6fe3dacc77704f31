"""Files that say what they hold: each carries a checksum of its content.

A run's `run.json`, its prompts, checkpoint and predictions carry `checksum`, 32 hex digits (blake2b), among what they
say of themselves: of a JSON file over its values (spaces and the order of keys do not matter), of a safetensors file
over all its bytes with 32 zeros in the checksum's place. `sealed` says that there is one; files that earlier versions
of dualsd wrote have neither and are read without.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from featstore.store.schema import creator_version
from matcher.errors import InputError

_NAME, _SEALED = "checksum", {"sealed": "blake2b"}
_BLANK = "0" * 32


def seal(described: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file is to hold, with its checksum."""
    sealed = {**described, **_SEALED}
    return {**sealed, _NAME: _digest(_canonical(sealed))}


def check_seal(described: Mapping[str, Any]) -> None:
    """Raise ValueError where a JSON file does not hold what was sealed."""
    plain = {name: value for name, value in described.items() if name != _NAME}
    _check(described, lambda: [_canonical(plain)])


def check_version(described: Mapping[str, Any], known: int, where: str, refused: type[InputError]) -> None:
    """Raise a `refused` for what a newer dualsd wrote, naming that. known: the newest version that is read. where: what
    holds it."""
    found = described.get("version")
    if not isinstance(found, int) or found > known:
        raise refused(
            f"{where} has version {found}, written by dualsd {described.get('creator')}; this dualsd "
            f"{creator_version()} reads up to version {known}: upgrade it."
        )


def seal_tensors(described: Mapping[str, Any], write: Callable[[dict[str, str]], bytes]) -> bytes:
    """A safetensors file with its checksum. write: makes the file with the metadata that it is given."""

    def written(checksum: str) -> bytes:
        return bytes(write({"dualsd": json.dumps({_NAME: checksum, **_SEALED, **described})}))

    return written(_digest(written(_BLANK)))  # made twice, so that a large file is held once


def read_tensors(file: Path) -> tuple[bytes, Any]:
    """A safetensors file, and what its metadata say of it; {} where they say nothing. Raises OSError, or ValueError for
    what is none."""
    content = file.read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return content, json.loads(header.get("__metadata__", {}).get("dualsd", "{}"))
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError("its header cannot be read") from error


def check_tensors_seal(content: bytes, described: Mapping[str, Any]) -> None:
    """Raise ValueError where a safetensors file does not hold what was sealed."""

    def blanked() -> tuple[memoryview | bytes, ...]:
        # first in what comes first in the file, so nothing like it comes before
        checksum, whole = str(described[_NAME]).encode(), memoryview(content)
        at = content.find(checksum)
        return (whole[:at], _BLANK.encode(), whole[at + len(checksum) :]) if at >= 0 else (whole,)

    _check(described, blanked)


def _check(described: Mapping[str, Any], blanked: Callable[[], Iterable[bytes | memoryview]]) -> None:
    if (_NAME in described) != (_SEALED.keys() <= described.keys()):
        raise ValueError("its checksum is missing")
    if _NAME in described and described[_NAME] != _digest(*blanked()):
        raise ValueError("its checksum does not fit its content")


def _canonical(described: Mapping[str, Any]) -> bytes:
    return json.dumps(described, sort_keys=True).encode()


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
