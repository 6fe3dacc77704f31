"""Values of JSON and TOML as what their types say: nothing is converted, nothing is unknown, every number is finite.

Types are checked by pydantic, whose errors become sentences of ours.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from featstore.plain_text import is_plain, shown

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
"""What every class that is read from a file goes by: as it comes, pydantic ignores a misspelled field and takes True
for 1, "1" for 1 and nan for a weight."""

_KINDS = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a finite number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "string_type": "a text",
    "path_type": "a path",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dataclass_type", "dict_type", "mapping_type", "model_type"), "a table"),
    "too_short": "a list of at least {min_length}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "above {gt}",
    "less_than": "below {lt}",
}
"""What a value is not, by pydantic's name of the error."""

MISSING = ("missing", "missing_keyword_only_argument")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

_LONGEST = 80
"""Characters of a value that a sentence quotes."""


def parse(kind: Any, value: Any, name: str) -> Any:
    """What a JSON or TOML file holds, as a `kind`.

    Args:
        kind: any type that pydantic knows: a dataclass of such types, an enum (by its value), `tuple[X, ...]`, ...
        value: what `json.loads` or `tomllib.loads` gave.
        name: what the value is called in the file; "" for all of it.

    Raises:
        ValueError: naming the first field that is missing, unknown or of another type.
    """
    try:
        (found,) = _adapter(kind).validate_json(json.dumps([value]))
    except ValidationError as error:
        raise ValueError(sentence_of(error, name, skipped=1)) from error
    return found


def parse_known(kind: Any, value: Mapping[str, Any]) -> Any:
    """`parse` of the fields that a dataclass has, from a file that may say more."""
    names = {field.name for field in fields(kind)}
    return parse(kind, {name: own for name, own in value.items() if name in names}, "")


def sentence_of(error: ValidationError, where: str, skipped: int = 0) -> str:
    """What pydantic found wrong first, as part of a sentence: `scoring.alphas[0] is nan, not a finite number`.

    Args:
        error: of any class, dataclass or adapter.
        where: what the value that was checked is called; "" for all of a file.
        skipped: first steps of pydantic's path that the file does not have.
    """
    errors = error.errors(include_url=False)
    # a misspelled field is missing as well, and the misspelling says more
    found = next((own for own in errors if own["type"] in UNKNOWN), errors[0])
    path = where
    for step in found["loc"][skipped:]:
        name = f"[{step}]" if isinstance(step, int) else step if is_plain(step) else shown(step)
        path += name if isinstance(step, int) or not path else f".{name}"
    return f"{path or 'it'} {what_is_wrong(found)}"


def what_is_wrong(found: ErrorDetails) -> str:
    """The end of a sentence whose subject is the field: `is 0, not at least 1`."""
    kind, context = found["type"], found.get("ctx", {})
    if kind in MISSING or kind in UNKNOWN:
        return "is missing" if kind in MISSING else "is unknown"
    if kind == "json_invalid":
        return f"cannot be read: {context['error']}"
    try:
        value = repr(found["input"])
    except ValueError:  # Python writes no number of more than 4300 digits
        value = "a number of thousands of digits"
    value = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
    if kind in _KINDS:
        return f"is {value}, not {_KINDS[kind].format(**context)}"
    if kind in ("enum", "literal_error"):
        return f"is {value}, not one of {context['expected'].replace(' or ', ', ')}"
    reason = str(context["error"]) if kind == "value_error" else found["msg"].replace("Input should", "it should")
    return f"is {value}: {reason}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # in a tuple, because an adapter of a dataclass takes no settings: plain ones inside take those of the whole
    return TypeAdapter(tuple[kind], config=STRICT)
