"""A command's options from the fields of its config: names, types, defaults and meanings stand in
`featstore.config` alone; here what is typed becomes values, and values what could be typed."""

import inspect
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from cli.output import check_writable
from featstore.backbones.base import CLEAN
from featstore.config import LAST_TIMESTEP, ComputeConfig, TrainConfig
from featstore.parsing import Config, ConfigField, fields_of, from_file, from_json
from matcher.errors import InputError

JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result to FILE as JSON.", metavar="FILE")]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", help="Write the result to FILE as CSV, one row per number.", metavar="FILE")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")]
CONFIG = typer.Option(
    "--config",
    metavar="FILE",
    help="Take settings from a run's run.json or a recipe (TOML); options typed beside it win.",
)


def examples(*commands: str) -> str:
    """What stands at the end of a command's help."""
    return "\n\n".join(["Examples:", *commands])


def taking(kind: type[Config]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that takes a config.

    Args:
        kind: The config class, whose fields become options.

    Returns:
        A decorator for functions (config, *, further options), whose docstring is the command's help. Those that run
        networks take `--config`, too.
    """
    config_fields = {field.name: field for field in fields_of(kind)}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, config_file: Path | None = None, **values: Any) -> None:
            check_writable(values.get("json"), values.get("csv"))
            given = {name: values.pop(name) for name in config_fields}
            typed = [name for name in given if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
            read = {name: read_typed(config_fields[name], given[name]) for name in typed}
            kept = {} if config_file is None else from_file(kind, config_file)

            def spell(name: str) -> str:
                return config_fields[name].flag if config_file is None or name in read else f"{config_file}: {name}"

            function(from_json(kind, kept | read, str(config_file or function.__name__), spell), **values)

        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        keyword = inspect.Parameter.KEYWORD_ONLY
        context = inspect.Parameter("context", keyword, annotation=typer.Context)
        file = inspect.Parameter("config_file", keyword, default=None, annotation=Annotated[Path | None, CONFIG])
        files = [file] if issubclass(kind, ComputeConfig | TrainConfig) else []
        options = [*map(_parameter, config_fields.values()), *files, *own]
        keywords = [context, *(parameter.replace(kind=keyword) for parameter in options)]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
        return run

    return decorate


def _parameter(field: ConfigField) -> inspect.Parameter:
    """A field as typer takes it."""
    setting, default = field.setting, field.default
    kind: Any = field.kind if field.form is None and field.kind in (int, float, bool, Path) else str
    if field.is_needed and get_origin(field.kind) is tuple and field.form is None:
        kind = list[Path]
    named: dict[str, Any] = {"help": setting.meaning, "metavar": setting.metavar}
    if field.is_argument:
        default = inspect.Parameter.empty if field.is_needed else None
        kind, option = kind if field.is_needed else kind | None, typer.Argument(**named)
    elif field.is_needed:
        default, option = inspect.Parameter.empty, typer.Option(field.flag, **named)
    elif kind is bool:
        option = typer.Option(f"{field.flag}/--no-{field.flag[2:]}", show_default=False, **named)
    elif default is None:
        spellings = filter(None, (field.flag, setting.also))
        kind, option = kind | None, typer.Option(*spellings, show_default=setting.unset or False, **named)
    else:
        default = _spell(default, field.form) if kind is str else default
        option = typer.Option(field.flag, **named)
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def command_of(config: Any, *words: str, always: Collection[str] = ()) -> str:
    """What could be typed for a config: `dualsd eval --layers 2,3`, fit for a shell.

    Args:
        config: Whose values are spelled where they are not the defaults.
        words: The command.
        always: Fields that are spelled first, whatever their values.
    """
    spelled = ["dualsd", *words]
    for field in sorted(fields_of(type(config)), key=lambda field: field.name not in always):
        value = getattr(config, field.name)
        if value == field.default and field.name not in always:
            continue
        if field.kind is bool:
            spelled.append(field.flag if value else f"--no-{field.flag[2:]}")
        elif field.is_argument:
            spelled.append(shlex.quote(str(value)))
        else:
            spelled += [field.flag, shlex.quote(_spell(value, field.form))]
    return " ".join(spelled)


def _spell(value: Any, form: str | None) -> str:
    """A value as it may be typed."""
    match form:
        case "factor":
            return f"{value}x"
        case "factors":
            return ",".join(f"{own}x" for own in value)
        case "weightings" if value != "sweep":
            return ",".join(":".join(f"{weight:g}" for weight in own) for own in value)
        case "points":
            return ";".join(f"{x:g},{y:g}" for x, y in value)
    if isinstance(value, tuple):
        return ",".join(CLEAN if own is None else f"{own:g}" if isinstance(own, float) else str(own) for own in value)
    return str(value)


def read_typed(field: ConfigField, text: Any) -> Any:
    """What was typed for a field, as JSON has it. Raises `InputError` for what cannot be read."""
    if isinstance(text, list):
        return [*map(str, text)]
    if not isinstance(text, str):
        return str(text) if isinstance(text, Path) else text
    if field.form is not None:
        return READERS[field.form](text, field.flag)
    if get_origin(field.kind) is not tuple:
        return text
    of_numbers = float in get_args(field.kind)
    return parse_numbers(text, field.flag) if of_numbers else [part.strip() for part in text.split(",")]


def parse_numbers(text: str, option: str, separator: str = ",") -> list[float]:
    """`0.8,0.6` to numbers. Raises `InputError` for anything else."""
    try:
        return [float(part) for part in text.split(separator)]
    except ValueError:
        raise InputError(f"{option} takes numbers separated by commas, not {text!r}.") from None


STEP = 50


def parse_timesteps(text: str, option: str = "--t") -> list[int | None]:
    """`261`, `50,200`, `50..400` (step 50) or `50..400:25` to timesteps, `clean` to None. Raises `InputError` for
    anything else."""
    found: list[int | None] = []
    for part in text.split(","):
        if part.strip() == CLEAN:
            found.append(None)
            continue
        matched = re.fullmatch(r"(\d{1,99})(?:\.\.(\d{1,99})(?::(\d{1,99}))?)?", part.strip())
        if matched is None:
            raise InputError(
                f"{option} takes timesteps like 261, 50,200, 50..400 or 50..400:25, or clean, not {text!r}."
            )
        first, last, step = (None if number is None else int(number) for number in matched.groups())
        assert first is not None
        if last is None:
            found.append(first)
            continue
        if last < first or step == 0:
            raise InputError(f"{option} {part} is an empty range: it must rise, by at least 1.")
        # of those that there are not one will do for a sentence
        found.extend(range(first, min(last, LAST_TIMESTEP) + 1, step or STEP))
        found.extend([last] if last > LAST_TIMESTEP else [])
    return found


MOST_ALPHAS = 1000


def parse_alphas(text: str, option: str = "--alphas") -> list[float]:
    """Thresholds: `0.05,0.1`, or `0.01..0.2:0.01`, which is exactly those 20 decimals, each once. Raises `InputError`
    for anything else."""
    alphas: list[float] = []
    for part in text.split(","):
        alphas += _alphas_between(part, option) if ".." in part else parse_numbers(part, option)
    return list(dict.fromkeys(alphas))


def _alphas_between(part: str, option: str) -> list[float]:
    """`a..b:step` in decimal numbers: multiples of a float such as 0.01 would miss the floats that are typed."""
    matched = re.fullmatch(r"\s*([\d.]*?\d)\.\.([\d.]+):([\d.]+)\s*", part)
    try:
        if matched is None:
            raise InvalidOperation
        first, last, step = (Decimal(number) for number in matched.groups())
    except InvalidOperation:
        raise InputError(f"{option} {part} is no range: write one like 0.01..0.2:0.01, with its step.") from None
    if step <= 0 or last < first:
        raise InputError(f"{option} {part} is an empty range: it must rise, by a positive step.")
    if (last - first) / step >= MOST_ALPHAS:
        raise InputError(f"{option} {part} is more than {MOST_ALPHAS} thresholds: take a larger step.")
    return [float(first + place * step) for place in range(int((last - first) / step) + 1)]


def parse_factor(text: str, option: str = "--upsample") -> int:
    """`2x` to 2. Raises `InputError` for anything else."""
    matched = re.fullmatch(r"\s*([1-9]\d?)x?\s*", text)
    if matched is None:
        raise InputError(f"{option} takes a whole factor like 2x, not {text!r}.")
    return int(matched.group(1))


def _parse_factors(text: str, option: str) -> list[int]:
    return [parse_factor(part, option) for part in text.split(",")]


def _parse_weightings(text: str, option: str) -> str | list[list[float]]:
    return text if text == "sweep" else [parse_numbers(part, option, ":") for part in text.split(",")]


def _parse_points(text: str, option: str) -> list[list[float]]:
    number = r"\s*-?\d+(\.\d+)?\s*"
    points = text.strip().strip(";").split(";")
    if not all(re.fullmatch(f"{number},{number}", point) for point in points):
        raise InputError(f"{option} takes 'x,y;x,y' in pixels of A, not {text!r}.")
    return [[*map(float, point.split(","))] for point in points]


READERS: Mapping[str, Callable[[str, str], Any]] = {
    "timesteps": parse_timesteps,
    "alphas": parse_alphas,
    "factor": parse_factor,
    "factors": _parse_factors,
    "weightings": _parse_weightings,
    "points": _parse_points,
}
"""By form (`featstore.parsing.Form`): what was typed, and the option for sentences, to values as JSON has them."""
