"""Every setting once: its type, its default, what it means, and what it may be.

A config is what Python hands to a run function, what the command line fills from its options, what a recipe's TOML
holds, what a run's `run.json` records and what `--config FILE` takes back. Values are checked strictly: no field that
is not known, no True for 1, no number that is not finite; what cannot be is an `InputError` in one sentence.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic.dataclasses
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from featstore.backbones.layers import check_layers_of, check_names, check_of_use
from featstore.datasets.registry import ONE_OF
from featstore.parsing import MISSING, UNKNOWN, what_is_wrong
from matcher.configuration import MODULES, find_readouts
from matcher.errors import InputError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
Config = TypeVar("Config")
LAST_TIMESTEP = 999


@dataclass(frozen=True, slots=True)
class Setting:
    """What a field means, for help texts and sentences.

    Args:
        meaning: One line.
        unset: What holds where the value is None.
        flag: Its option, where that is not the field's name.
        form: How its text is read where the type does not say: `timesteps`, `alphas`, `factor`, `factors`,
            `weightings`, `points`.
        metavar: What stands for the value in help texts.
        also: Another spelling of the option.
    """

    meaning: str
    unset: str | None = None
    flag: str | None = None
    form: str | None = None
    metavar: str | None = None
    also: str | None = None


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

    @property
    def spellings(self) -> list[str]:
        """The option in every way in which it may be typed."""
        return [self.flag] if self.setting.also is None else [self.flag, self.setting.also]


class _Constructed(type):
    """Of config classes: what they do not take is an `InputError`."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        try:
            return super().__call__(*values, **named)
        except ValidationError as error:
            raise InputError(sentence_of(error, cls.__name__, str)) from None


def option(*meaning: str, default: Any, **more: str) -> Any:
    """A field with the arguments of its `Setting`, and its default."""
    return field(default=default, metadata={"setting": Setting(*meaning, **more)})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
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
MODELS = "sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout."

StoreSetting = Annotated[str, Setting("The store's folder, or s3://bucket/prefix.", metavar=PLACE)]
Root = Annotated[Place | None, Setting("The data set's folder.", "as at `cache build`")]
Dataset = Annotated[str | None, Setting(f"{ONE_OF}.", "demo")]
Revision = Annotated[str | None, Setting("Branch, tag or commit of a model on the hub.")]
Size = Annotated[Positive | None, Setting("Side S in pixels that images are resized to.", "the model's own")]
Seed = Annotated[int | None, Setting("Seed of all noise.", "0")]
Categories = Annotated[Texts | None, Setting("Only pairs of these categories, e.g. cat,dog.", "all")]
Layers = Annotated[
    Texts | None,
    Setting(
        "Decoder layers, 1 to 4 (diffusers' up_blocks index plus one), e.g. 2,3, and dino (DINOv2).",
        "2,3, or those of the prompts",
    ),
]
Timesteps = Annotated[
    Steps | None,
    Setting(
        "One timestep per layer of the UNet, e.g. 261,200.",
        "261 for layer 2, 200 for 3; with learned prompts 50 and 200",
        flag="--t",
        form="timesteps",
    ),
]
Weights = Annotated[Numbers | None, Setting("One weight per layer, e.g. 0.8,0.6.", "0.8 for layer 2, 0.6 for 3")]
Upsample = Annotated[Factor, Setting("Upsample the finest map, bicubically, e.g. 2x.", form="factor")]
UpsampleAlign = Annotated[GeometryName | None, Setting("Geometry of the upsampling.", "as --geometry")]
Geometry = Annotated[GeometryName, Setting("From pixels to cells: corners (SD4Match) or half-pixel.")]
Readouts = Annotated[Texts, Setting(f"Some of {', '.join(MODULES)}.")]
Alphas = Annotated[
    Fractions, Setting("Thresholds as fractions of theta, e.g. 0.05,0.1 or 0.01..0.2:0.01.", form="alphas")
]
AverageName = Annotated[Literal["image", "point"], Setting("Average of printed tables: image or point.", flag="--by")]
Prompts = Annotated[
    Place | None,
    Setting(
        "Learned prompts: a run's folder, a .safetensors file of prompts, or newest: the newest finished run on the "
        "store that has exactly the layers used.",
        "the newest finished run, where no --layers, --t or --prompt is typed and its layers are 2,3",
        metavar="RUN",
    ),
]
Dino = Annotated[
    str | None, Setting("DINOv2 for cpm and the layer dino: a folder or hub name.", "the model's own, or B/14")
]
DinoSize = Annotated[
    Positive | None,
    Setting(
        "Side that images are resized to for the layer dino, a multiple of its patch.",
        "840, or what a small DINOv2 was trained on",
        metavar="PIXELS",
    ),
]
Ensemble = Annotated[Positive, Setting("Noise draws whose features are averaged.")]
Device = Annotated[str, Setting("auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
Encoding = Annotated[
    Literal["raw", "bitround4", "bitround3"],
    Setting("How maps are kept: as they are, or rounded to 4 or 3 bits behind the point, on 0.59 or 0.51 of the disk."),
]
Part = Annotated[
    str | None,
    Setting("Only the I-th of N equal shares of the images, for N jobs that fill one store.", "all", metavar="I/N"),
]
SkipBad = Annotated[bool, Setting("Go on past images that cannot be read, and list them at the end.")]
DEFAULT_STORE = "dualsd.zarr"
ALPHAS = (0.05, 0.1, 0.15)
ENSEMBLE = 8


OF_THE_UNET = ("timesteps", "prompt", "prompts", "fallback")


def given_options(config: Any, names: Sequence[str]) -> list[str]:
    """The options among some that were given."""
    given = [name.replace("_", "-") for name in names if getattr(config, name) is not None]
    return ["--t" if name == "timesteps" else f"--{name}" for name in given]


@settings
class ComputeConfig(metaclass=_Constructed):
    """Where networks run."""

    device: Device = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] = option(
        "Precision of the networks: auto, float32, float16, bfloat16.", default="auto"
    )
    batch_size: Positive = option(
        "Images, or noisy latents, that go through a network together; the last bits of a map depend on it.", default=8
    )


@settings
class BuildConfig(ComputeConfig):
    """`dualsd cache build`: latents and noisy latents of every image of a data set."""

    dataset: Dataset = None
    root: Place | None = option("The data set's folder.", "as the store says", default=None)
    model: str | None = option(MODELS, "demo on the data set demo; elsewhere it must be named", default=None)
    revision: Revision = None
    store: StoreSetting = DEFAULT_STORE
    timesteps: Steps = option(
        "Timesteps to noise at, e.g. 261 or 50,200 or 50..400 or 50..400:25.",
        default=(50, 200, 261, 350),
        flag="--t",
        form="timesteps",
    )
    ensemble: Positive = option("Noise draws per timestep; more can follow.", default=1)
    size: Size = None
    latents: Literal["sample", "mean"] | None = option(
        "What is taken of the VAE's posterior: sample (seeded) or mean.", "sample", default=None
    )
    seed: Seed = None
    part: Part = None
    skip_bad: SkipBad = False


@settings
class PromptConfig(metaclass=_Constructed):
    """What the networks are told."""

    prompt: str | None = option(
        "Text prompt; {category} stands for the image's category.",
        "a photo of a {category}; where neither --layers, --t nor prompts are typed, see --prompts",
        default=None,
    )
    prompts: Prompts = None
    fallback: Literal["text", "single"] | None = option(
        "For categories without a learned prompt: text, or single (the newest finished run of that mode).", default=None
    )
    dino: Dino = None
    dino_size: DinoSize = None


@settings
class KeptMapsConfig(PromptConfig, ComputeConfig):
    """Which maps, of which images."""

    store: StoreSetting = DEFAULT_STORE
    root: Root = None
    layers: Layers = None
    timesteps: Timesteps = None
    ensemble: Ensemble = ENSEMBLE
    split: str | None = option("Only images of a split.", "all", default=None)
    encoding: Encoding = "raw"
    skip_bad: SkipBad = False

    def __post_init__(self) -> None:
        check_of_use(self.layers, given_options(self, ["dino", "dino_size"]), given_options(self, OF_THE_UNET))
        check_layers_of(self.layers, self.timesteps, None if self.layers is None else [1.0] * len(self.layers))


@settings
class MapsConfig(KeptMapsConfig):
    """`dualsd cache maps`: feature maps, kept."""

    part: Part = None


@settings
class ExportConfig(KeptMapsConfig):
    """`dualsd cache export`: maps as files for other programs."""

    out: Annotated[Place, Setting("The file to write, or the folder of dift and dift-images.")]
    layout: Annotated[
        Literal["features", "sd4match", "dift", "dift-images"],
        Setting(
            "features: safetensors for eval --features. sd4match: one .pt by its identifiers. dift: one .pth per "
            "category. dift-images: one .pt per image."
        ),
    ] = "features"


@settings
class EvalConfig(PromptConfig, ComputeConfig):
    """`dualsd eval`: PCK of a split's pairs, from a store's maps or from anybody's features."""

    store: StoreSetting = DEFAULT_STORE
    dataset: Dataset = None
    root: Root = None
    split: str | None = option("trn, val or test.", "test", default=None)
    categories: Categories = None
    layers: Texts | None = option(
        "Decoder layers 1 to 4, e.g. 2,3, and dino (DINOv2); with --features the file's layer names.",
        "2,3, or those of the prompts",
        default=None,
    )
    timesteps: Timesteps = None
    weights: Weights = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readouts: Readouts = ("nn", "bilinear", "softmax", "kernelsoftmax")
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    ensemble: Positive | None = option("Noise draws whose features are averaged.", str(ENSEMBLE), default=None)
    features: Place | None = option(
        "Your own maps: safetensors '<image id>|<layer>', (C, h, w).", default=None, metavar="FILE"
    )
    size: Positive | None = option("With --features: side in pixels of the images they were made from.", default=None)
    encoding: Encoding = "raw"
    skip_bad: SkipBad = False
    out: Place | None = option(
        "Folder that keeps settings, predictions and results, for score and compare.",
        "runs/eval-2+3-001 and so on",
        default=None,
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        find_readouts(self.readouts)
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
    layers: Texts = option("Layers, e.g. 2,3: decoder layers 1 to 4, and dino (DINOv2).", default=("2", "3"))
    timesteps: Steps | None = option(
        "Timesteps tried for every layer: 50..400 (step 50), 50..400:25 or 50,200,261.",
        default=None,
        flag="--t",
        form="timesteps",
    )
    weightings: Weightings | Literal["sweep"] | None = option(
        "Weightings tried, e.g. 0.8:0.6,1:1; sweep: 11 angles from one layer to the other.",
        "0.8:0.6 for layers 2,3",
        default=None,
        flag="--weights",
        form="weightings",
    )
    split: str | None = option("trn, val or test.", "val", default=None)
    categories: Categories = None
    max_pairs: Positive | None = option("A seeded choice of so many pairs.", "all", default=None)
    readouts: Readouts = ("nn",)
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    geometries: Annotated[tuple[GeometryName, ...], Field(strict=False, min_length=1)] = option(
        "corners, half-pixel, or corners,half-pixel for both.", default=("corners",), flag="--geometry"
    )
    upsamples: Annotated[tuple[Factor, ...], Field(strict=False, min_length=1)] = option(
        "Factors on the finest map, e.g. 1x,2x.", default=(1,), flag="--upsample", form="factors"
    )
    upsample_align: UpsampleAlign = None
    ensemble: Ensemble = ENSEMBLE
    stream: bool = option("Keep maps in memory only, a category at a time: nothing large is written.", default=False)
    out: Place = option("Folder for the report, its tables and pictures.", default=Path("grid"), metavar="DIR")
    encoding: Encoding = "raw"
    skip_bad: SkipBad = False

    def __post_init__(self) -> None:
        check_names(self.layers)
        find_readouts(self.readouts)


@settings
class TrainConfig(metaclass=_Constructed):
    """`dualsd train`: prompts learned from the cache. None: as published, or on the demo its short default."""

    mode: str | None = option("single (one prompt), class (one per category) or cpm (one per pair).", default=None)
    store: str | None = option(
        "The store's folder, or s3://bucket/prefix.", "dualsd.zarr, or the run's own", default=None, metavar=PLACE
    )
    root: Root = None
    layers: Texts | None = option("One layer or more.", "2,3", default=None)
    timesteps: Steps | None = option(
        "One timestep per layer to learn at.",
        "261 for layer 2, 350 for layer 3",
        default=None,
        flag="--t",
        form="timesteps",
    )
    weights: Weights = None
    steps: Positive | None = option("Number of optimiser steps.", "the published epochs; on the demo 300", default=None)
    batch: Positive | None = option("Pairs per optimiser step.", "9; on the demo 3", default=None)
    accumulate: Positive | None = option("Parts that a batch is taken in.", "1", default=None)
    rate: Rate | None = option("Learning rate of the vectors.", "0.01", default=None, flag="--lr")
    network_rate: Rate | None = option(
        "Learning rate of a cpm's linear maps.", "0.001", default=None, flag="--network-lr"
    )
    length: Positive | None = option("Learned vectors per prompt, N.", "75", default=None)
    kernel: int | None = option(
        "Side of the loss's kernel, in cells.", "7 on maps of 48 cells and more, else 3", default=None
    )
    noise: Literal["cached", "fresh"] | None = option(
        "cached (one of the store's draws) or fresh at each step.", "cached", default=None
    )
    draws: Positive | None = option("Cached noise draws per timestep.", "4", default=None)
    validate_every: Positive | None = option(
        "Steps between validations.", "a tenth of all", default=None, flag="--val-every"
    )
    validation_pairs: Positive | None = option(
        "Pairs of val, a fixed choice.", "500; for cpm on the demo 100", default=None, flag="--val-pairs"
    )
    validation_timesteps: Steps | None = option(
        "One timestep per layer to validate at.", "as --t", default=None, flag="--val-t", form="timesteps"
    )
    checkpoint_every: Positive | None = option("Steps between checkpoints.", "100", default=None)
    geometry: GeometryName | None = option("From pixels to cells: corners or half-pixel.", "corners", default=None)
    upsample_align: UpsampleAlign = None
    seed: int | None = option("Seed of the first prompts and of the batches.", "0", default=None)
    dino: str | None = option("DINOv2 for cpm: a folder or hub name.", "the model's own, or DINOv2-B/14", default=None)
    name: str | None = option("Name of the run's folder.", "<mode>-<layers>-<number>", default=None)
    runs: Place = option("Folder that the run's folder is made in.", default=Path("runs"), metavar="DIR")
    resume: Place | None = option("Go on with a run that was stopped or killed.", default=None, metavar="RUN")
    device: Device = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16", "float64"] | None = option(
        "Precision: float32, float16, bfloat16, float64.", "float32 on a CPU", default=None
    )
    batch_size: Positive = option("Images per pass in validation.", default=8)
    gradient_checkpointing: bool = option("Half the memory, a third more time.", default=False)
    compile: bool = option("Compile the networks first (torch.compile).", default=False)

    def __post_init__(self) -> None:
        check_names(self.layers or ())
        check_layers_of(None, None, self.weights)


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
    category: str | None = option("What both show, e.g. cat: fills in the prompt.", default=None)
    prompt: str | None = option("Text prompt.", "a photo of a {category}; without one, a photo", default=None)
    prompts: Prompts = None
    dino: Dino = None
    dino_size: DinoSize = None
    store: str | None = option("Take model, size, latents and seed from this store.", default=None, metavar=PLACE)
    model: str | None = option(MODELS, "the store's; without --store it must be named", default=None)
    revision: Revision = None
    size: Size = None
    layers: Layers = None
    timesteps: Timesteps = None
    weights: Weights = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readout: Literal["nn", "bilinear", "softmax", "kernelsoftmax", "window"] = option(
        "nn, bilinear, softmax, kernelsoftmax or window.", default="nn"
    )
    ensemble: Ensemble = ENSEMBLE
    seed: Seed = None

    def __post_init__(self) -> None:
        check_layers_of(self.layers, self.timesteps, self.weights)
        check_of_use(self.layers, given_options(self, ["dino_size"]), given_options(self, OF_THE_UNET[:3]))


@settings
class StoreConfig(metaclass=_Constructed):
    """Which store."""

    store: StoreSetting = DEFAULT_STORE


@settings
class DoctorConfig(StoreConfig):
    """`dualsd doctor`: what this machine has."""

    model: str | None = option(MODELS, "demo", default=None)
    revision: Revision = None
    offline: Annotated[bool, Setting("Do not ask the hub for a model.")] = False


@settings
class VerifyConfig(StoreConfig):
    """`dualsd cache verify`: a store held against its checksums, and against what made it."""

    drop: Annotated[bool, Setting("Delete what is damaged, and print the commands that make it again.")] = False
    recompute: Annotated[
        str | None,
        Setting(
            "Rows of each array to make anew from the images and compare, or all; noisy latents are always all.",
            metavar="N",
        ),
    ] = None
    seed: Annotated[int, Setting("Seed of the choice of rows for --recompute.")] = 0
    root: Root = None
    device: Device = "auto"
    batch_size: Positive = option("Images, or noisy latents, that go through a network together.", default=8)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|[1-9]\d*", self.recompute or "all"):
            raise InputError(f"--recompute takes how many rows of each array, e.g. 16, or all, not {self.recompute!r}.")


@settings
class PruneConfig(StoreConfig):
    """`dualsd cache prune`: maps, or noisy latents, that go."""

    prompt: Annotated[str | None, Setting("Maps made with this text prompt.")] = None
    extractor: Annotated[str | None, Setting("Maps of the extractors whose key begins so.", metavar="KEY")] = None
    layers: Annotated[Texts | None, Setting("Maps of these layers, e.g. 2,3.", also="--layer")] = None
    timesteps: Annotated[
        Steps | None,
        Setting("Maps or noisy latents at these timesteps, e.g. 261,200 or 50..400.", flag="--t", form="timesteps"),
    ] = None
    older_than: Annotated[
        str | None, Setting("Arrays whose newest row is older than this, e.g. 12h, 30d, 2w.", metavar="AGE")
    ] = None
    noisy: Annotated[bool, Setting("Noisy latents instead of maps.")] = False
    gone: Annotated[bool, Setting("The rows of images that changed or are no longer in the data set.")] = False

    def __post_init__(self) -> None:
        check_names(self.layers or ())
        if self.gone and replace(self, gone=False) != PruneConfig(store=self.store):
            raise InputError("--gone goes alone: it takes all rows of images that are gone.")
        if self.noisy and (self.prompt, self.extractor, self.layers) != (None, None, None):
            raise InputError("--noisy goes with --t and --older-than: they have no prompt, extractor or layer.")


KeptAlphas = Annotated[
    Fractions | None, Setting("Thresholds, e.g. 0.05,0.1 or 0.01..0.2:0.01.", unset="those of the run", form="alphas")
]
FrameName = Annotated[
    Literal["resized", "original"] | None,
    Setting(
        "Where distances and theta are measured: in resized or original images.",
        unset="each readout's own: original for pixel, else resized",
    ),
]


@settings
class ScoreConfig(metaclass=_Constructed):
    """`dualsd score`: an evaluation that was kept, scored again."""

    run: Annotated[Place, Setting("The folder that `dualsd eval` kept.", metavar="RUN")]
    alphas: KeptAlphas = None
    frame: FrameName = None
    average: AverageName = "image"
    readouts: Annotated[Texts | None, Setting("Only these readouts.", unset="all")] = None

    def __post_init__(self) -> None:
        find_readouts(self.readouts or ())


@settings
class CompareConfig(metaclass=_Constructed):
    """`dualsd compare`: evaluations over the same pairs, held against the first."""

    runs: Annotated[
        tuple[Place, ...],
        Field(strict=False),
        Setting("Folders that `dualsd eval` kept; the first is A.", metavar="RUN_A RUN_B ..."),
    ]
    readout: Annotated[str, Setting("Which of the runs' readouts.")] = "nn"
    alphas: KeptAlphas = None
    average: Annotated[Literal["image", "point"], Setting("Average that is compared: image or point.", flag="--by")] = (
        "image"
    )
    frame: FrameName = None

    def __post_init__(self) -> None:
        if "," in self.readout:
            raise InputError(f"--readout takes one readout, not {self.readout!r}.")
        find_readouts([self.readout])
        if not 2 <= len(self.runs) <= len(ascii_uppercase):  # each has a letter
            raise InputError(
                f"compare takes 2 to {len(ascii_uppercase)} runs, of which the first is what the others are compared "
                "with."
            )


@settings
class ImportConfig(metaclass=_Constructed):
    """`dualsd prompts import`: SD4Match's prompts, made ours."""

    file: Annotated[Place, Setting("SD4Match's caption.pt or ckpt.pt.", metavar="FILE.pt")]
    out: Annotated[Place, Setting("The .safetensors file to write.")]
    model: Annotated[
        str | None,
        Setting("What they were made for: sd2-1, sd1-5, demo, a hub name or a folder.", unset="it must be named"),
    ] = None
    source: Annotated[Literal["sd4match"], Setting("Whose file it is: sd4match.", flag="--from")] = "sd4match"
    revision: Revision = None
    layer: Annotated[int, Setting("Decoder layer, 1 to 4, that they were learned for.")] = 2
    timestep: Annotated[int, Setting("Timestep that they were learned at.", flag="--t")] = 261
    mode: Annotated[str | None, Setting("single, class or cpm.", unset="told from the file")] = None


@settings
class PublishConfig(metaclass=_Constructed):
    """`dualsd prompts export`: one layer's prompts, made SD4Match's."""

    prompts: Annotated[Place, Setting("A run's folder, or a .safetensors file.", metavar="RUN_OR_FILE")]
    out: Annotated[Place, Setting("The .pt file to write.")]
    target: Annotated[Literal["sd4match"], Setting("Whose layout: sd4match.", flag="--to")] = "sd4match"
    layer: Annotated[int | None, Setting("Layer whose prompts are written.", unset="the only one")] = None


@settings
class ReproduceConfig(ComputeConfig):
    """`dualsd reproduce`: the report's tables, run and set beside its figures."""

    what: Annotated[str, Setting("table1, table2, table3, table4, table5 or figure2.", metavar="WHAT")]
    dataset_root: Place | None = option(
        "Folder in which SPair-71k, pf-pascal and pf-willow lie, or some of them.", default=None, metavar="DIR"
    )
    on: str | None = option(
        "demo: its own data set in place of each that is not at hand.", default=None, metavar="demo"
    )
    model: str | None = option(MODELS, "sd2-1; with --on demo, demo", default=None)
    revision: Revision = None
    rows: Texts | None = option("Only these rows, e.g. dift,dual-single@spair; other recipes too.", "all", default=None)
    train_steps: Positive | None = option(
        "Steps to which trainings are cut short.", "the published epochs; on the demo 300", default=None
    )
    work: Place = option("Folder of its stores, runs, results and tables.", default=Path("reproduce"), metavar="DIR")
    dino: Dino = None
    accumulate: Positive = option("Parts that a training batch is taken in.", default=1)
    gradient_checkpointing: bool = option("Train in half the memory, a third more time.", default=False)


def fields_of(kind: type) -> Iterator[ConfigField]:
    """The fields of a config class, in order."""
    hints = get_type_hints(kind, include_extras=True)
    for own in fields(kind):
        noted = getattr(hints[own.name], "__metadata__", ())
        setting = own.metadata.get("setting") or next(entry for entry in noted if isinstance(entry, Setting))
        is_needed = own.default is REQUIRED
        declaring = (base for base in kind.__mro__[1:] if own.name in vars(base).get("__annotations__", {}))
        group, default = next((base.__doc__ for base in declaring), None), None if is_needed else own.default
        yield ConfigField(own.name, _bare(hints[own.name]), default, is_needed, setting, group)


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

    def refuse(value: object) -> None:
        raise InputError(f"{where} holds {value}, a {type(value).__name__}, which no setting is.")

    try:
        found: Config = TypeAdapter(kind).validate_json(json.dumps(dict(values), default=refuse))
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


def sentence_of(error: ValidationError, where: str, spell: Callable[[str], str]) -> str:
    """The first of pydantic's complaints as a sentence of ours: `--ensemble is 0, not at least 1.`"""
    complaints = error.errors(include_url=False)
    first = next((own for own in complaints if own["type"] != "too_short" or not own["input"]), complaints[0])
    place = [str(part) for part in first["loc"]]
    if first["type"] in UNKNOWN:
        return f"{where} has {place[-1]!r}, which is no setting there."
    name = spell(place[0]) if place else where
    return f"{where} needs {name}." if first["type"] in MISSING else f"{name} {what_is_wrong(first)}."
