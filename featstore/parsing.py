"""Values of JSON and TOML as what their types say: nothing is converted, nothing is unknown, every number is finite.
And what a config is: a class whose fields are such values, each with what it means.

Types are checked by pydantic, whose errors become sentences of ours.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic.dataclasses
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from featstore.plain_text import is_plain, shown
from matcher.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
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


@dataclass(frozen=True, slots=True)
class Setting:
    """What a config's field means, for help texts and sentences.

    Args:
        meaning: One line.
        unset: What holds where the value is None.
        flag: Its option, where that is not the field's name.
        metavar: What stands for the value in help texts.
        also: Another spelling of the option.
    """

    meaning: str
    unset: str | None = None
    flag: str | None = None
    metavar: str | None = None
    also: str | None = None


class Form(str):
    """Noted on a type whose values are typed in a way that the type does not tell: `timesteps`, `alphas`, `factor`,
    `factors`, `weightings`, `points`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A config's field as the command line sees it.

    Args:
        name: Of the field.
        kind: Its type, without None and `Annotated`.
        form: How its value is typed, where the type does not tell.
        default: None where there is none.
        is_needed: Whether it has no default.
        setting: What it means.
    """

    name: str
    kind: Any
    form: Form | None
    default: Any
    is_needed: bool
    setting: Setting

    @property
    def flag(self) -> str:
        """`--batch-size`."""
        return self.setting.flag or f"--{self.name.replace('_', '-')}"

    @property
    def is_argument(self) -> bool:
        """Whether its value is typed without an option."""
        return self.setting.metavar is not None and (self.is_needed or self.setting.flag == self.setting.metavar)


def option(*meaning: str, default: Any, **more: str) -> Any:
    """A field with the arguments of its `Setting`, and its default."""
    return field(default=default, metadata={"setting": Setting(*meaning, **more)})


class _Made(type):
    """Makes every config class a pydantic dataclass; what one does not take is an `InputError`."""

    def __new__(cls, *parts: Any) -> Any:
        return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)(super().__new__(cls, *parts))

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            return super().__call__(*values, **named)
        except ValidationError as error:
            raise InputError(_refusal(error, cls.__name__, str)) from None


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
class Config(metaclass=_Made):
    """What makes a config of a class that inherits it: frozen, and strict in what it takes."""


AnyConfig = TypeVar("AnyConfig", bound=Config)


def fields_of(kind: type[Config]) -> Iterator[ConfigField]:
    """The fields of a config class, in order."""
    hints = get_type_hints(kind, include_extras=True)
    for own in fields(kind):  # type: ignore[arg-type]
        bare, notes = _bare(hints[own.name])
        setting = own.metadata.get("setting") or next(note for note in notes if isinstance(note, Setting))
        form = next((note for note in notes if isinstance(note, Form)), None)
        is_needed = own.default is REQUIRED
        yield ConfigField(own.name, bare, form, None if is_needed else own.default, is_needed, setting)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without `Annotated` and None, and what is noted on it."""
    notes: tuple[Any, ...] = ()
    while True:
        rest = [part for part in get_args(hint) if part is not type(None)]
        if get_origin(hint) is Annotated:
            notes += hint.__metadata__
        elif len(rest) != 1 or type(None) not in get_args(hint):
            return hint, notes
        hint = rest[0]


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON holds it: every field by name.

    Returns:
        What `from_json` takes back.
    """
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def from_json(kind: type[AnyConfig], values: Mapping[str, Any], where: str, spell: Callable[[str], str]) -> AnyConfig:
    """A config of values as JSON has them.

    Args:
        kind: A config class.
        values: By field name.
        where: What holds the values, as sentences name it.
        spell: How sentences name a field, e.g. as an option.

    Raises:
        InputError: Where a value is not known, is missing, or cannot be.
    """

    def refuse(value: object) -> None:
        raise InputError(f"{where} holds {value}, a {type(value).__name__}, which no setting is.")

    try:
        return TypeAdapter(kind).validate_json(json.dumps(dict(values), default=refuse))
    except ValidationError as error:
        raise InputError(_refusal(error, where, spell)) from None


def from_file(kind: type[Config], file: Path) -> dict[str, Any]:
    """The values that a file holds for a config class, as JSON has them: those that a run's `run.json` recorded, or
    those of a recipe (TOML), whose sections are named by command.

    Raises:
        InputError: Where the file cannot be read, or holds none.
    """
    command = kind.__name__.removesuffix("Config").lower()
    try:
        text = file.read_text(encoding="utf-8")
        content = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as a config: {' '.join(str(error).split())}.") from None
    section = content.get(command if file.suffix == ".toml" else "config") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise InputError(
            f"{file} holds no config of `dualsd {command}`: take the run.json of a run that recorded one, or a "
            f"recipe with a section [{command}]."
        )
    stated = {"value", "source"}
    return {
        name: own["value"] if isinstance(own, dict) and own.keys() == stated else own for name, own in section.items()
    }


def _refusal(error: ValidationError, where: str, spell: Callable[[str], str]) -> str:
    """The first of pydantic's complaints as a sentence of ours: `--ensemble is 0, not at least 1.`"""
    complaints = error.errors(include_url=False)
    first = next((own for own in complaints if own["type"] != "too_short" or not own["input"]), complaints[0])
    place = [str(part) for part in first["loc"]]
    if first["type"] in UNKNOWN:
        return f"{where} has {place[-1]!r}, which is no setting there."
    name = spell(place[0]) if place else where
    return f"{where} needs {name}." if first["type"] in MISSING else f"{name} {what_is_wrong(first)}."
