"""Every setting once: its type, its default, what it means, and what it may be.

A config is what Python hands to a run function, what the command line fills from its options, what a recipe's TOML
holds, what a run's `run.json` records and what `--config FILE` takes back. Values are checked strictly: no field that
is not known, no True for 1, no number that is not finite; what cannot be is an `InputError` in one sentence.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from featstore.datasets.registry import ONE_OF
from featstore.pipeline.defaults import check_layers_of, check_of_use
from matcher.configuration import MODULES
from matcher.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
Config = TypeVar("Config")
LAST_TIMESTEP = 999


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field means, for help texts and sentences.

    Args:
        meaning: One line.
        flag: Its option, where that is not the field's name.
        unset: What holds where the value is None.
        form: How its text is read where the type does not say: `timesteps`, `alphas`, `factor`, `factors`,
            `weightings`, `points`.
        metavar: What stands for the value in help texts.
    """

    meaning: str
    flag: str | None = None
    unset: str | None = None
    form: str | None = None
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class ConfigField:
    """A config's field as the command line sees it.

    Args:
        name: Of the field.
        kind: Its type, without None and `Annotated`.
        default: None where there is none.
        is_needed: Whether it has no default.
        setting: What it means.
        group: What the class says of itself from which the field comes, where several config classes share that one.
    """

    name: str
    kind: Any
    default: Any
    is_needed: bool
    setting: Setting
    group: str | None

    @property
    def flag(self) -> str:
        """`--batch-size`."""
        return self.setting.flag or f"--{self.name.replace('_', '-')}"


class _Constructed(type):
    """Of config classes: what they do not take is an `InputError`."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            return super().__call__(*values, **named)
        except ValidationError as error:
            raise InputError(sentence_of(error, cls.__name__, str)) from None


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: type[Config]) -> type[Config]:
    """Make a config class: a frozen, strict pydantic dataclass."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)(kind)
    return made


def _check_timesteps(timesteps: tuple[int, ...]) -> tuple[int, ...]:
    for timestep in timesteps:
        if not 0 <= timestep <= LAST_TIMESTEP:
            raise InputError(f"There is no timestep {timestep}: timesteps run from 0 to {LAST_TIMESTEP}.")
    return timesteps


def _check_fractions(alphas: tuple[float, ...]) -> tuple[float, ...]:
    for alpha in alphas:
        if not 0 < alpha <= 1:
            raise InputError(f"Alphas are fractions of theta, above 0 and at most 1, not {alpha:g}.")
    return alphas


Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Steps = Annotated[tuple[int, ...], Field(strict=False, min_length=1), AfterValidator(_check_timesteps)]
Fractions = Annotated[tuple[float, ...], Field(strict=False, min_length=1), AfterValidator(_check_fractions)]
Place = Annotated[Path, Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Factor = Annotated[int, Field(ge=1, le=99)]
GeometryName = Literal["corners", "half-pixel"]
Weightings = Annotated[tuple[Numbers, ...], Field(strict=False, min_length=1)]
PLACE = "PLACE"

StoreSetting = Annotated[str, Setting("The store's folder, or s3://bucket/prefix.", metavar=PLACE)]
Root = Annotated[Place | None, Setting("The data set's folder.", unset="as at `cache build`")]
Dataset = Annotated[str | None, Setting(f"{ONE_OF}.", unset="demo")]
Model = Annotated[
    str | None,
    Setting(
        "sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
        unset="demo on the data set demo; elsewhere it must be named",
    ),
]
Revision = Annotated[str | None, Setting("Branch, tag or commit of a model on the hub.")]
Size = Annotated[Positive | None, Setting("Side S in pixels that images are resized to.", unset="the model's own")]
Seed = Annotated[int | None, Setting("Seed of all noise.", unset="0")]
Split = Annotated[str | None, Setting("trn, val or test.", unset="test")]
Categories = Annotated[Texts | None, Setting("Only pairs of these categories, e.g. cat,dog.", unset="all")]
Layers = Annotated[
    Texts | None,
    Setting(
        "Decoder layers, 1 to 4 (diffusers' up_blocks index plus one), e.g. 2,3, and dino (DINOv2).",
        unset="2,3, or those of the prompts",
    ),
]
Timesteps = Annotated[
    Steps | None,
    Setting(
        "One timestep per layer of the UNet, e.g. 261,200.",
        flag="--t",
        unset="261 for layer 2, 200 for 3; with learned prompts 50 and 200",
        form="timesteps",
    ),
]
Weights = Annotated[Numbers | None, Setting("One weight per layer, e.g. 0.8,0.6.", unset="0.8 for layer 2, 0.6 for 3")]
Upsample = Annotated[Factor, Setting("Upsample the finest map, bicubically, e.g. 2x.", form="factor")]
UpsampleAlign = Annotated[GeometryName | None, Setting("Geometry of the upsampling.", unset="as --geometry")]
Geometry = Annotated[GeometryName, Setting("From pixels to cells: corners (SD4Match) or half-pixel.")]
Readouts = Annotated[Texts, Setting(f"Some of {', '.join(MODULES)}.")]
Alphas = Annotated[
    Fractions, Setting("Thresholds as fractions of theta, e.g. 0.05,0.1 or 0.01..0.2:0.01.", form="alphas")
]
AverageName = Annotated[Literal["image", "point"], Setting("Average of printed tables: image or point.", flag="--by")]
Prompt = Annotated[
    str | None,
    Setting(
        "Text prompt; {category} stands for the image's category.",
        unset="a photo of a {category}; where neither --layers, --t nor prompts are typed, see --prompts",
    ),
]
Prompts = Annotated[
    Place | None,
    Setting(
        "Learned prompts: a run's folder, a .safetensors file of prompts, or newest: the newest finished run on the "
        "store that has exactly the layers used.",
        unset="the newest finished run, where no --layers, --t or --prompt is typed and its layers are 2,3",
        metavar="RUN",
    ),
]
Fallback = Annotated[
    Literal["text", "single"] | None,
    Setting("For categories without a learned prompt: text, or single (the newest finished run of that mode)."),
]
Dino = Annotated[
    str | None,
    Setting("DINOv2 for cpm and the layer dino: a folder or hub name.", unset="the model's own, or B/14"),
]
DinoSize = Annotated[
    Positive | None,
    Setting(
        "Side that images are resized to for the layer dino, a multiple of its patch.",
        unset="840, or what a small DINOv2 was trained on",
        metavar="PIXELS",
    ),
]
Ensemble = Annotated[Positive, Setting("Noise draws whose features are averaged.")]
Device = Annotated[str, Setting("auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[
    Literal["auto", "float32", "float16", "bfloat16", "float64"],
    Setting("Precision of the networks: auto, float32, float16, bfloat16."),
]
Stored = Annotated[
    Literal["float16", "int8"], Setting("Precision that maps are kept in: float16, or int8 on half the disk.")
]
BatchSize = Annotated[
    Positive,
    Setting("Images, or noisy latents, that go through a network together; the last bits of a map depend on it."),
]
Part = Annotated[
    str | None,
    Setting(
        "Only the I-th of N equal shares of the images, for N jobs that fill one store.", unset="all", metavar="I/N"
    ),
]
SkipBad = Annotated[bool, Setting("Go on past images that cannot be read, and list them at the end.")]
DEFAULT_STORE = "dualsd.zarr"
ALPHAS = (0.05, 0.1, 0.15)
ENSEMBLE = 8


OF_THE_UNET = ("timesteps", "prompt", "prompts", "fallback")


def given_options(config: Any, names: Sequence[str]) -> list[str]:
    """The options among some that were given."""
    flags = {"timesteps": "--t", "dino_size": "--dino-size"}
    return [flags.get(name, f"--{name}") for name in names if getattr(config, name) is not None]


@settings
class ComputeConfig(metaclass=_Constructed):
    """Where networks run."""

    device: Device = "auto"
    dtype: Dtype = "auto"
    batch_size: BatchSize = 8


@settings
class BuildConfig(ComputeConfig):
    """`dualsd cache build`: latents and noisy latents of every image of a data set."""

    dataset: Dataset = None
    root: Annotated[Place | None, Setting("The data set's folder.", unset="as the store says")] = None
    model: Model = None
    revision: Revision = None
    store: StoreSetting = DEFAULT_STORE
    timesteps: Annotated[
        Steps,
        Setting("Timesteps to noise at, e.g. 261 or 50,200 or 50..400 or 50..400:25.", flag="--t", form="timesteps"),
    ] = (50, 200, 261, 350)
    ensemble: Annotated[Positive, Setting("Noise draws per timestep; more can follow.")] = 1
    size: Size = None
    latents: Annotated[
        Literal["sample", "mean"] | None,
        Setting("What is taken of the VAE's posterior: sample (seeded) or mean.", unset="sample"),
    ] = None
    seed: Seed = None
    part: Part = None
    skip_bad: SkipBad = False


@settings
class PromptConfig(metaclass=_Constructed):
    """What the networks are told."""

    prompt: Prompt = None
    prompts: Prompts = None
    fallback: Fallback = None
    dino: Dino = None
    dino_size: DinoSize = None


@settings
class MapsConfig(PromptConfig, ComputeConfig):
    """`dualsd cache maps`: feature maps, kept."""

    store: StoreSetting = DEFAULT_STORE
    root: Root = None
    layers: Layers = None
    timesteps: Timesteps = None
    ensemble: Ensemble = ENSEMBLE
    split: Annotated[str | None, Setting("Only images of a split.", unset="all")] = None
    stored: Stored = "float16"
    part: Part = None
    skip_bad: SkipBad = False

    def __post_init__(self) -> None:
        check_of_use(self.layers, given_options(self, ["dino", "dino_size"]), given_options(self, OF_THE_UNET))
        check_layers_of(self.layers, self.timesteps, None if self.layers is None else [1.0] * len(self.layers))


@settings
class EvalConfig(PromptConfig, ComputeConfig):
    """`dualsd eval`: PCK of a split's pairs, from a store's maps or from anybody's features."""

    store: StoreSetting = DEFAULT_STORE
    dataset: Dataset = None
    root: Root = None
    split: Split = None
    categories: Categories = None
    layers: Annotated[
        Texts | None,
        Setting(
            "Decoder layers 1 to 4, e.g. 2,3, and dino (DINOv2); with --features the file's layer names.",
            unset="2,3, or those of the prompts",
        ),
    ] = None
    timesteps: Timesteps = None
    weights: Weights = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readouts: Readouts = ("nn", "bilinear", "softmax", "kernelsoftmax")
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    ensemble: Annotated[Positive | None, Setting("Noise draws whose features are averaged.", unset=str(ENSEMBLE))] = (
        None
    )
    features: Annotated[
        Place | None, Setting("Your own maps: safetensors '<image id>|<layer>', (C, h, w).", metavar="FILE")
    ] = None
    size: Annotated[Positive | None, Setting("With --features: side in pixels of the images they were made from.")] = (
        None
    )
    stored: Stored = "float16"
    skip_bad: SkipBad = False
    out: Annotated[
        Place | None,
        Setting(
            "Folder that keeps settings, predictions and results, for score and compare.",
            unset="runs/eval-2+3-001 and so on",
            metavar="DIR",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.features is None:
            check_of_use(
                self.layers, given_options(self, ["dino_size"]), given_options(self, [*OF_THE_UNET, "ensemble"])
            )
            check_layers_of(self.layers, self.timesteps, self.weights)


@settings
class GridConfig(PromptConfig, ComputeConfig):
    """`dualsd grid`: every layer at every timestep, and all layers together."""

    store: StoreSetting = DEFAULT_STORE
    root: Root = None
    layers: Annotated[Texts, Setting("Layers, e.g. 2,3: decoder layers 1 to 4, and dino (DINOv2).")] = ("2", "3")
    timesteps: Annotated[
        Steps | None,
        Setting(
            "Timesteps tried for every layer: 50..400 (step 50), 50..400:25 or 50,200,261.",
            flag="--t",
            form="timesteps",
        ),
    ] = None
    weightings: Annotated[
        Weightings | Literal["sweep"] | None,
        Setting(
            "Weightings tried, e.g. 0.8:0.6,1:1; sweep: 11 angles from one layer to the other.",
            flag="--weights",
            unset="0.8:0.6 for layers 2,3",
            form="weightings",
        ),
    ] = None
    split: Annotated[str | None, Setting("trn, val or test.", unset="val")] = None
    categories: Categories = None
    max_pairs: Annotated[Positive | None, Setting("A seeded choice of so many pairs.", unset="all")] = None
    readouts: Readouts = ("nn",)
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    geometries: Annotated[
        tuple[GeometryName, ...],
        Field(strict=False, min_length=1),
        Setting("corners, half-pixel, or corners,half-pixel for both.", flag="--geometry"),
    ] = ("corners",)
    upsamples: Annotated[
        tuple[Factor, ...],
        Field(strict=False, min_length=1),
        Setting("Factors on the finest map, e.g. 1x,2x.", flag="--upsample", form="factors"),
    ] = (1,)
    upsample_align: UpsampleAlign = None
    ensemble: Ensemble = ENSEMBLE
    stream: Annotated[bool, Setting("Keep maps in memory only, a category at a time: nothing large is written.")] = (
        False
    )
    out: Annotated[Place, Setting("Folder for the report, its tables and pictures.", metavar="DIR")] = Path("grid")
    stored: Stored = "float16"
    skip_bad: SkipBad = False


@settings
class TrainConfig(metaclass=_Constructed):
    """`dualsd train`: prompts learned from the cache. None: as published, or on the demo its short default."""

    mode: Annotated[str | None, Setting("single (one prompt), class (one per category) or cpm (one per pair).")] = None
    store: Annotated[
        str | None,
        Setting("The store's folder, or s3://bucket/prefix.", unset="dualsd.zarr, or the run's own", metavar=PLACE),
    ] = None
    root: Root = None
    layers: Annotated[Texts | None, Setting("One layer or more.", unset="2,3")] = None
    timesteps: Annotated[
        Steps | None,
        Setting(
            "One timestep per layer to learn at.",
            flag="--t",
            unset="261 for layer 2, 350 for layer 3",
            form="timesteps",
        ),
    ] = None
    weights: Weights = None
    steps: Annotated[
        Positive | None, Setting("Number of optimiser steps.", unset="the published epochs; on the demo 300")
    ] = None
    batch: Annotated[Positive | None, Setting("Pairs per optimiser step.", unset="9; on the demo 3")] = None
    accumulate: Annotated[Positive | None, Setting("Parts that a batch is taken in.", unset="1")] = None
    rate: Annotated[Rate | None, Setting("Learning rate of the vectors.", flag="--lr", unset="0.01")] = None
    network_rate: Annotated[
        Rate | None, Setting("Learning rate of a cpm's linear maps.", flag="--network-lr", unset="0.001")
    ] = None
    length: Annotated[Positive | None, Setting("Learned vectors per prompt, N.", unset="75")] = None
    kernel: Annotated[
        int | None, Setting("Side of the loss's kernel, in cells.", unset="7 on maps of 48 cells and more, else 3")
    ] = None
    noise: Annotated[
        Literal["cached", "fresh"] | None,
        Setting("cached (one of the store's draws) or fresh at each step.", unset="cached"),
    ] = None
    draws: Annotated[Positive | None, Setting("Cached noise draws per timestep.", unset="4")] = None
    validate_every: Annotated[
        Positive | None, Setting("Steps between validations.", flag="--val-every", unset="a tenth of all")
    ] = None
    validation_pairs: Annotated[
        Positive | None,
        Setting("Pairs of val, a fixed choice.", flag="--val-pairs", unset="500; for cpm on the demo 100"),
    ] = None
    validation_timesteps: Annotated[
        Steps | None,
        Setting("One timestep per layer to validate at.", flag="--val-t", unset="as --t", form="timesteps"),
    ] = None
    checkpoint_every: Annotated[Positive | None, Setting("Steps between checkpoints.", unset="100")] = None
    geometry: Annotated[
        GeometryName | None, Setting("From pixels to cells: corners or half-pixel.", unset="corners")
    ] = None
    upsample_align: UpsampleAlign = None
    seed: Annotated[int | None, Setting("Seed of the first prompts and of the batches.", unset="0")] = None
    dino: Annotated[
        str | None, Setting("DINOv2 for cpm: a folder or hub name.", unset="the model's own, or DINOv2-B/14")
    ] = None
    name: Annotated[str | None, Setting("Name of the run's folder.", unset="<mode>-<layers>-<number>")] = None
    runs: Annotated[Place, Setting("Folder that the run's folder is made in.", metavar="DIR")] = Path("runs")
    resume: Annotated[Place | None, Setting("Go on with a run that was stopped or killed.", metavar="RUN")] = None
    device: Device = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "float64"] | None,
        Setting("Precision: float32, float16, bfloat16, float64.", unset="float32 on a CPU"),
    ] = None
    batch_size: Annotated[Positive, Setting("Images per pass in validation.")] = 8
    gradient_checkpointing: Annotated[bool, Setting("Half the memory, a third more time.")] = False
    compile: Annotated[bool, Setting("Compile the networks first (torch.compile).")] = False


@settings
class MatchConfig(ComputeConfig):
    """`dualsd match`: points of one photograph found in another."""

    source: Annotated[Place, Setting("The image with the points.", metavar="A")]
    target: Annotated[Place, Setting("The image to find them in.", metavar="B")]
    points: Annotated[
        tuple[tuple[float, float], ...],
        Field(strict=False, min_length=1),
        Setting("'x,y;x,y' in pixels of A.", form="points"),
    ]
    category: Annotated[str | None, Setting("What both show, e.g. cat: fills in the prompt.")] = None
    prompt: Annotated[str | None, Setting("Text prompt.", unset="a photo of a {category}; without one, a photo")] = None
    prompts: Prompts = None
    dino: Dino = None
    dino_size: DinoSize = None
    store: Annotated[str | None, Setting("Take model, size, latents and seed from this store.", metavar=PLACE)] = None
    model: Annotated[
        str | None,
        Setting(
            "sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
            unset="the store's; without --store it must be named",
        ),
    ] = None
    revision: Revision = None
    size: Size = None
    layers: Layers = None
    timesteps: Timesteps = None
    weights: Weights = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readout: Annotated[str, Setting("nn, bilinear, softmax, kernelsoftmax or window.")] = "nn"
    ensemble: Ensemble = ENSEMBLE
    seed: Seed = None

    def __post_init__(self) -> None:
        check_layers_of(self.layers, self.timesteps, self.weights)
        check_of_use(self.layers, given_options(self, ["dino_size"]), given_options(self, OF_THE_UNET[:3]))
        if self.readout not in ("nn", "bilinear", "softmax", "kernelsoftmax", "window"):
            raise InputError(
                f"--readout takes one readout: nn, bilinear, softmax, kernelsoftmax or window, not {self.readout!r}."
            )


@settings
class ReproduceConfig(ComputeConfig):
    """`dualsd reproduce`: the report's tables, run and set beside its figures."""

    what: Annotated[str, Setting("table1, table2, table3, table4, table5 or figure2.", metavar="WHAT")]
    dataset_root: Annotated[
        Place | None, Setting("Folder in which SPair-71k, pf-pascal and pf-willow lie, or some of them.", metavar="DIR")
    ] = None
    on: Annotated[
        str | None, Setting("demo: its own data set in place of each that is not at hand.", metavar="demo")
    ] = None
    model: Annotated[
        str | None,
        Setting(
            "sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
            unset="sd2-1; with --on demo, demo",
        ),
    ] = None
    revision: Revision = None
    rows: Annotated[
        Texts | None,
        Setting("Only these rows, e.g. dift,dual-single@spair; other recipes too.", unset="all"),
    ] = None
    train_steps: Annotated[
        Positive | None,
        Setting("Steps to which trainings are cut short.", unset="the published epochs; on the demo 300"),
    ] = None
    work: Annotated[Place, Setting("Folder of its stores, runs, results and tables.", metavar="DIR")] = Path(
        "reproduce"
    )
    dino: Dino = None
    accumulate: Annotated[Positive, Setting("Parts that a training batch is taken in.")] = 1
    gradient_checkpointing: Annotated[bool, Setting("Train in half the memory, a third more time.")] = False


def fields_of(kind: type) -> Iterator[ConfigField]:
    """The fields of a config class, in order."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        metadata = getattr(hints[field.name], "__metadata__", ())
        setting = next(entry for entry in metadata if isinstance(entry, Setting))
        needed = field.default is MISSING
        group = next(
            (base.__doc__ for base in kind.__mro__[1:] if field.name in vars(base).get("__annotations__", {})), None
        )
        yield ConfigField(
            field.name, _bare(hints[field.name]), None if needed else field.default, needed, setting, group
        )


def _bare(hint: Any) -> Any:
    """A type without `Annotated` and None."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    rest = [part for part in get_args(hint) if part is not type(None)]
    if type(None) in get_args(hint) and len(rest) == 1:
        return _bare(rest[0])
    return hint


def to_json(config: Any) -> dict[str, Any]:
    """A config as JSON holds it: every field by name.

    Returns:
        What `from_json` takes back.
    """
    found: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return found


def from_json(kind: type[Config], values: Mapping[str, Any], where: str, spell: Callable[[str], str]) -> Config:
    """A config of values as JSON has them.

    Args:
        kind: A config class.
        values: By field name.
        where: What holds the values, as sentences name it.
        spell: How sentences name a field, e.g. as an option.

    Raises:
        InputError: Where a value is not known, is missing, or cannot be.
    """
    try:
        found: Config = TypeAdapter(kind).validate_json(json.dumps(dict(values), allow_nan=True))
    except ValidationError as error:
        raise InputError(sentence_of(error, where, spell)) from None
    return found


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
    sourced = {"value", "source"}
    return {
        name: own["value"] if isinstance(own, dict) and own.keys() == sourced else own for name, own in section.items()
    }


_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "a list that is not empty",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "above {gt}",
    "literal_error": "{expected}",
}
"""What pydantic asks for, by its name of the complaint; what it says itself is taken for the others."""


def sentence_of(error: ValidationError, where: str, spell: Callable[[str], str]) -> str:
    """The first of pydantic's complaints as a sentence of ours: `--ensemble is to be at least 1, not 0.`"""
    complaints = error.errors(include_url=False)
    first = next((own for own in complaints if own["type"] != "too_short" or not own["input"]), complaints[0])
    place = [str(part) for part in first["loc"]]
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} has {place[-1]!r}, which is no setting there."
    name = spell(place[0]) if place else where
    if first["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{where} needs {name}."
    wanted = _WANTED.get(first["type"], first["msg"].removeprefix("Input should be "))
    wanted = wanted.format(**first.get("ctx", {})).replace("'", "")
    return f"{name} is to be {wanted}, not {first['input']!r}."
