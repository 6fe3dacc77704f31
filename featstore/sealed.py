"""Files that say what they hold: each carries a checksum of its content, and its values are what their fields can be.

A run's `run.json`, its prompts, checkpoint and predictions carry `checksum`, 32 hex digits (blake2b), among what they
say of themselves: of a JSON file over its values (spaces and the order of keys do not matter), of a safetensors file
over all its bytes with 32 zeros in the checksum's place. `sealed` says that there is one; files that earlier versions
of dualsd wrote have neither and are read without.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

_NAME, _SEALED = "checksum", {"sealed": "blake2b"}
_BLANK = "0" * 32


def seal(described: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file is to hold, with its checksum."""
    sealed = {**described, **_SEALED}
    return {**sealed, _NAME: _digest(_canonical(sealed))}


def check_seal(described: Mapping[str, Any]) -> None:
    """Raise ValueError where a JSON file does not hold what was sealed."""
    plain = {name: value for name, value in described.items() if name != _NAME}
    _check(described, lambda: _canonical(plain))


def seal_tensors(described: Mapping[str, Any], write: Callable[[dict[str, str]], bytes]) -> bytes:
    """A safetensors file with its checksum. write: makes the file with the metadata that it is given."""
    # first in what comes first in the file, so no other zeros come before it
    content = bytes(write({"dualsd": json.dumps({_NAME: _BLANK, **_SEALED, **described})}))
    return content.replace(_BLANK.encode(), _digest(content).encode(), 1)


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
    _check(described, lambda: content.replace(str(described[_NAME]).encode(), _BLANK.encode(), 1))


def _check(described: Mapping[str, Any], blanked: Callable[[], bytes]) -> None:
    if (_NAME in described) != (_SEALED.keys() <= described.keys()):
        raise ValueError("its checksum is missing")
    if _NAME in described and described[_NAME] != _digest(blanked()):
        raise ValueError("its checksum does not fit its content")


def _canonical(described: Mapping[str, Any]) -> bytes:
    return json.dumps(described, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def parse(kind: Any, value: Any, name: str) -> Any:
    """What a JSON file holds as a `kind`: a dataclass of such, an enum by its value, `tuple[X, ...]`, `X | None`, a
    mapping, str, int, or float, which is finite. Raises ValueError naming the field, `name`."""
    origin = get_origin(kind) or kind
    if origin is UnionType:
        (other,) = (own for own in get_args(kind) if own is not type(None))
        return None if value is None else parse(other, value, name)
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(parse(get_args(kind)[0], own, f"{name}[{place}]") for place, own in enumerate(value))
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = [member.value for member in kind]
        if value in known:
            return kind(value)
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(repr, known))}")
    if origin is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if origin is Mapping and isinstance(value, dict):
        return value
    if origin in (str, int) and type(value) is origin:
        return value
    words = {str: "a text", int: "a whole number", float: "a finite number", tuple: "a list"}
    raise ValueError(f"{name} is {value!r}, not {words.get(origin, 'a table')}")


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}, not a table")
    hints, own = get_type_hints(kind), {field.name: field for field in fields(kind)}
    prefix = f"{name}." if name else ""
    for unknown in sorted(value.keys() - own.keys()):
        raise ValueError(f"{prefix}{unknown} is unknown")
    for missing in [it.name for it in own.values() if it.name not in value and it.default is MISSING]:
        raise ValueError(f"{prefix}{missing} is missing")
    return kind(**{field: parse(hints[field], its, f"{prefix}{field}") for field, its in value.items()})


def parse_known(kind: Any, value: Mapping[str, Any]) -> Any:
    """`parse` of the fields that a dataclass has, from a file that may say more."""
    names = {field.name for field in fields(kind)}
    return parse(kind, {name: own for name, own in value.items() if name in names}, "")
