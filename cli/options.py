"""A command's options from the fields of its config: names, types, defaults and meanings stand in
`featstore.config` alone; here what is typed becomes values, and values what could be typed."""

import inspect
import re
import shlex
from collections.abc import Callable, Collection
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer

from featstore.config import LAST_TIMESTEP, ConfigField, fields_of, from_file, from_json
from featstore.datasets.registry import ONE_OF
from featstore.store.keys import parse_location
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.store.keys import StoreLocation as StoreLocation

if not TYPE_CHECKING:
    StoreLocation = str  # typer takes no unions; what the option's parser gives is one

DEFAULT_STORE = Path("dualsd.zarr")
DEFAULT_ENSEMBLE = 8
DEFAULT_PROMPT = "a photo of a {category}"
DEFAULT_STORED = "float16"
DEFAULT_ALPHAS = "0.05,0.1,0.15"

StoreOption = Annotated[
    StoreLocation,
    typer.Option("--store", metavar="PLACE", parser=parse_location, help="The store's folder, or s3://bucket/prefix."),
]
RootOption = Annotated[Path | None, typer.Option("--root", help="The dataset's folder; default: as at `cache build`.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help=f"{ONE_OF}.", show_default="demo")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
        show_default="demo on the dataset demo; elsewhere it must be named",
    ),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a model on the hub.")]
SizeOption = Annotated[
    int | None,
    typer.Option("--size", help="Side S in pixels that images are resized to.", show_default="the model's own"),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="Decoder layers, 1 to 4 (diffusers' up_blocks index plus one), e.g. 2,3, and dino (DINOv2).",
        show_default="2,3, or those of the prompts",
    ),
]
TimestepsOption = Annotated[
    str | None,
    typer.Option(
        "--t",
        help="One timestep a layer of the UNet, e.g. 261,200.",
        show_default="261 for layer 2, 200 for 3; with learned prompts 50 and 200",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option("--weights", help="One weight a layer, e.g. 0.8,0.6.", show_default="0.8 for layer 2, 0.6 for 3"),
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="Text prompt; {category} stands for the image's category.",
        show_default=f"{DEFAULT_PROMPT}; where neither --layers, --t nor prompts are typed, see --prompts",
    ),
]
OnlySplitOption = Annotated[str | None, typer.Option("--split", help="Only images of a split.", show_default="all")]
CategoriesOption = Annotated[
    str | None, typer.Option("--categories", help="Only these, e.g. cat,dog.", show_default="all")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="RUN",
        help="Learned prompts: a run's folder, a .safetensors file of prompts, or newest: the newest finished run on "
        "the store that has exactly the layers used.",
        show_default="the newest finished run, where no --layers, --t or --prompt is typed and its layers are 2,3",
    ),
]
FallbackOption = Annotated[
    str | None,
    typer.Option(
        "--fallback",
        help="For categories without a learned prompt: text, or single (the newest finished run of that mode).",
    ),
]
DinoOption = Annotated[
    str | None,
    typer.Option(
        "--dino",
        help="DINOv2 for cpm and the layer dino: a folder or hub name.",
        show_default="the model's own, or B/14",
    ),
]
DinoSizeOption = Annotated[
    int | None,
    typer.Option(
        "--dino-size",
        metavar="PIXELS",
        help="Side that images are resized to for the layer dino, a multiple of its patch.",
        show_default="840, or what a small DINOv2 was trained on",
    ),
]
EnsembleOption = Annotated[int, typer.Option("--ensemble", min=1, help="Noise draws whose features are averaged.")]
ReadoutsOption = Annotated[
    str, typer.Option("--readouts", help="Of nn, bilinear, softmax, kernelsoftmax, window, pixel.")
]
AlphasOption = Annotated[
    str, typer.Option("--alphas", help="Thresholds as fractions of theta, e.g. 0.05,0.1 or 0.01..0.2:0.01.")
]
GeometryOption = Annotated[str, typer.Option("--geometry", help="Pixel to cell: corners (SD4Match) or half-pixel.")]
UpsampleOption = Annotated[str, typer.Option("--upsample", help="Upsample the finest map, bicubically, e.g. 2x.")]
AlignOption = Annotated[
    str | None,
    typer.Option("--upsample-align", help="Geometry of the upsampling.", show_default="as --geometry"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Precision of the networks: auto, float32, float16, bfloat16.")
]
StoredOption = Annotated[
    str, typer.Option("--stored", help="Precision that maps are kept in: float16, or int8 on half the disk.")
]
BatchOption = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images or noisy latents a pass; rows equal only for equal sizes.")
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Only the I-th of N equal shares of the images, for N jobs that fill one store.",
        show_default="all",
    ),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Go on past images that cannot be read and list them at the end.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result to FILE as JSON.", metavar="FILE")]
CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a row a number to FILE.")]
ByOption = Annotated[str, typer.Option("--by", help="Average: image or point.")]
FrameOption = Annotated[
    str | None,
    typer.Option(
        "--frame",
        help="Where distances and theta are measured: in resized or original images.",
        show_default="each readout's own: original for pixel, else resized",
    ),
]


CONFIG = typer.Option(
    "--config",
    metavar="FILE",
    help="Take settings from a run's run.json or a recipe (TOML); options typed beside it win.",
)


def taking(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function that takes a config.

    Args:
        kind: The config class, whose fields become options.

    Returns:
        A decorator for functions (config, *, further options), whose docstring is the command's help.
    """
    config_fields = {field.name: field for field in fields_of(kind)}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, config_file: Path | None, **values: Any) -> None:
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
        options = [*map(_parameter, config_fields.values()), file, *own]
        keywords = [context, *(parameter.replace(kind=keyword) for parameter in options)]
        run.__doc__, run.__name__ = function.__doc__, function.__name__
        run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
        return run

    return decorate


def _parameter(field: ConfigField) -> inspect.Parameter:
    """A field as typer takes it."""
    setting, default = field.setting, field.default
    kind: Any = field.kind if setting.form is None and field.kind in (int, float, bool, Path) else str
    named: dict[str, Any] = {"help": setting.meaning, "metavar": setting.metavar}
    if field.group is not None:
        named["rich_help_panel"] = field.group.rstrip(".")
    if field.is_needed:
        default = inspect.Parameter.empty
        option = typer.Argument(**named) if setting.metavar else typer.Option(field.flag, **named)
    elif kind is bool:
        option = typer.Option(f"{field.flag}/--no-{field.flag[2:]}", show_default=False, **named)
    elif default is None:
        kind, option = kind | None, typer.Option(field.flag, show_default=setting.unset or False, **named)
    else:
        default = _spell(default, setting.form) if kind is str else default
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
        elif field.is_needed and field.setting.metavar is not None:
            spelled.append(shlex.quote(str(value)))
        else:
            spelled += [field.flag, shlex.quote(_spell(value, field.setting.form))]
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
        return ",".join(f"{own:g}" if isinstance(own, float) else str(own) for own in value)
    return str(value)


def read_typed(field: ConfigField, text: Any) -> Any:
    """What was typed for a field, as JSON has it. Raises `InputError` for what cannot be read."""
    if not isinstance(text, str):
        return str(text) if isinstance(text, Path) else text
    match field.setting.form:
        case "timesteps":
            return parse_timesteps(text, field.flag)
        case "alphas":
            return parse_alphas(text, field.flag)
        case "factor":
            return parse_factor(text, field.flag)
        case "factors":
            return [parse_factor(part, field.flag) for part in text.split(",")]
        case "weightings":
            parts = text.split(",")
            return text if text == "sweep" else [parse_numbers(part, field.flag, ":") for part in parts]
        case "points":
            return [_point(part, text) for part in text.strip().strip(";").split(";")]
    if get_origin(field.kind) is not tuple:
        return text
    return (
        parse_numbers(text, field.flag) if float in get_args(field.kind) else [part.strip() for part in text.split(",")]
    )


def parse_numbers(text: str, option: str, separator: str = ",") -> list[float]:
    """`0.8,0.6` to numbers. Raises `InputError` for anything else."""
    try:
        return [float(part) for part in text.split(separator)]
    except ValueError:
        raise InputError(f"{option} takes numbers separated by commas, not {text!r}.") from None


STEP = 50


def parse_timesteps(text: str, option: str = "--t") -> list[int]:
    """`261`, `50,200`, `50..400` (step 50) or `50..400:25` to timesteps, each once. Raises `InputError` for anything
    else."""
    found: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"(\d{1,99})(?:\.\.(\d{1,99})(?::(\d{1,99}))?)?", part.strip())
        if matched is None:
            raise InputError(f"{option} takes timesteps like 261, 50,200, 50..400 or 50..400:25, not {text!r}.")
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


def _point(part: str, text: str) -> list[float]:
    numbers = part.split(",")
    if len(numbers) != 2 or not all(re.fullmatch(r"\s*-?\d+(\.\d+)?\s*", number) for number in numbers):
        raise InputError(f"--points takes 'x,y;x,y' in pixels of A, not {text!r}.")
    return [float(number) for number in numbers]
