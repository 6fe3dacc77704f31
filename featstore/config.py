"""Every setting once: its type, its default, what it means, and what it may be.

A config is what Python hands to a run function, what the command line fills from its options, what a recipe's TOML
holds, what a run's `run.json` records and what `--config FILE` takes back. Values are checked strictly: no field that
is not known, no True for 1, no number that is not finite; what cannot be is an `InputError` in one sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from featstore.backbones.layers import check_layers_of, check_names, check_of_use
from featstore.datasets.registry import ONE_OF
from featstore.parsing import Config, Form, Setting, option
from matcher.configuration import MODULES, check_parameters, find_readouts
from matcher.errors import InputError

LAST_TIMESTEP = 999


def _check_timesteps(timesteps: tuple[int | None, ...]) -> tuple[int | None, ...]:
    if None in timesteps and any(timestep is not None for timestep in timesteps):
        raise InputError("--t clean is of all layers, and goes with no timestep.")
    for timestep in timesteps:
        if timestep is not None and not 0 <= timestep <= LAST_TIMESTEP:
            raise InputError(f"There is no timestep {timestep}: timesteps run from 0 to {LAST_TIMESTEP}.")
    return timesteps


def _check_fractions(alphas: tuple[float, ...]) -> tuple[float, ...]:
    for alpha in alphas:
        if not 0 < alpha <= 1:
            raise InputError(f"Alphas are fractions of theta, above 0 and at most 1, not {alpha:g}.")
    return alphas


LISTED = Field(strict=False, min_length=1)
Texts = Annotated[tuple[str, ...], LISTED]
Numbers = Annotated[tuple[float, ...], LISTED]
Steps = Annotated[tuple[int | None, ...], LISTED, AfterValidator(_check_timesteps), Form("timesteps")]
Fractions = Annotated[tuple[float, ...], LISTED, AfterValidator(_check_fractions), Form("alphas")]
Weightings = Annotated[tuple[Numbers, ...], LISTED]
Points = Annotated[tuple[tuple[float, float], ...], LISTED, Form("points")]
Place = Annotated[Path, Field(strict=False)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]
Factor = Annotated[int, Field(ge=1, le=99), Form("factor")]
Factors = Annotated[tuple[Factor, ...], LISTED, Form("factors")]
GeometryName = Literal["corners", "half-pixel"]
AnyGeometry = Literal["corners", "half-pixel", "floor"]
AverageChoice = Literal["image", "point", "category"]
PadName = Literal["stretch", "square"]
ThetaName = Literal["box", "image", "keypoints"]
Precision = Literal["auto", "float32", "float16", "bfloat16", "float64"]
AdapterLoss = Literal["prompt", "contrastive", "dense", "contrastive+dense"]
PLACE = "PLACE"
MODELS = "sd2-1, sd1-5, sd-turbo, sdxl, sdxl-turbo, demo, a hub name owner/model, or a folder in diffusers' layout."

StoreSetting = Annotated[str, Setting("The store's folder, or s3://bucket/prefix.", metavar=PLACE)]
Root = Annotated[Place | None, Setting("The data set's folder.", "as at `cache build`")]
Dataset = Annotated[str | None, Setting(f"{ONE_OF}.", "demo")]
Annotations = Annotated[
    Place | None, Setting("The file of annotations of coco, in its folder or elsewhere.", metavar="FILE.json")
]
UNet = Annotated[
    str | None,
    Setting(
        "A UNet in place of the model's, which takes latents without noise: CleanDIFT's file, or a UNet's folder.",
        metavar="FILE",
    ),
]
Revision = Annotated[str | None, Setting("Branch, tag or commit of a model on the hub.")]
Size = Annotated[Positive | None, Setting("Side S in pixels that images are resized to.", "the model's own")]
Seed = Annotated[int | None, Setting("Seed of all noise.", "0")]
Categories = Annotated[Texts | None, Setting("Only pairs of these categories, e.g. cat,dog.", "all")]
Layers = Annotated[
    Texts | None,
    Setting(
        "Decoder layers, 1 to 4 (diffusers' up_blocks index plus one), e.g. 2,3; block:9; dino, dinov3; dino:9.",
        "2,3, or those of the prompts",
    ),
]
Timesteps = Annotated[
    Steps | None,
    Setting(
        "One timestep per layer of the UNet, e.g. 261,200; clean for one that was trained without noise.",
        "the model's own; of SD 2-1 261 for layer 2, 200 for 3; with learned prompts 50 and 200",
        flag="--t",
    ),
]
Weights = Annotated[
    Numbers | None,
    Setting("One weight per layer, e.g. 0.8,0.6.", "the model's own; of SD 2-1 0.8 for layer 2, 0.6 for 3"),
]
Upsample = Annotated[Factor, Setting("Upsample the finest map, bicubically, e.g. 2x.")]
UpsampleAlign = Annotated[GeometryName | None, Setting("Geometry of the upsampling.", "as --geometry")]
Geometry = Annotated[
    AnyGeometry, Setting("From pixels to cells: corners (SD4Match), half-pixel, or floor (GeoAware-SC).")
]
Readouts = Annotated[Texts, Setting(f"Some of {', '.join(MODULES)}.")]
Alphas = Annotated[Fractions, Setting("Thresholds as fractions of theta, e.g. 0.05,0.1 or 0.01..0.2:0.01.")]
AverageName = Annotated[AverageChoice, Setting("Average of printed tables: image, point or category.", flag="--by")]
Theta = Annotated[
    ThetaName | None,
    Setting(
        "What theta is the longer side of: the target's box, the image, or the extent of its keypoints.",
        "as the data set's authors do",
    ),
]
Strict = Annotated[bool, Setting("Count a point at a distance of exactly alpha theta as missed (GeoAware-SC).")]
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
    str | None,
    Setting(
        "DINOv2 for cpm and the layer dino, or DINOv3 for dinov3: a folder or hub name.",
        "the model's own, or DINOv2-B/14; DINOv3-B/16",
    ),
]
DinoSize = Annotated[
    Positive | None,
    Setting(
        "Side that images are resized to for the layers dino and dinov3, a multiple of the patch.",
        "840, or what a small DINOv2 was trained on; 960 for dinov3",
        metavar="PIXELS",
    ),
]
DinoDebias = Annotated[
    Positive | None,
    Setting(
        "Directions of DINO's descriptors that are taken out, as they tell positions (INSID3 takes 500 of 1,024).",
        "none",
        metavar="N",
    ),
]
Adapter = Annotated[
    Place | None,
    Setting(
        "A run of `dualsd adapt`, or a file of an adapter: its network goes on top of the maps. Layers, timesteps, "
        "weights and prompt are its own where they are not typed.",
        metavar="RUN",
    ),
]
Ensemble = Annotated[Positive, Setting("Noise draws whose features are averaged.")]
Device = Annotated[str, Setting("auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
Sync = Annotated[
    bool,
    Setting("Force what is written to the disk before it counts, against power cuts; --no-sync for scratch disks."),
]
Encoding = Annotated[
    Literal["raw", "bitround4", "bitround3"],
    Setting("How maps are kept: as they are, or rounded to 4 or 3 bits behind the point, on 0.6 or 0.5 of the disk."),
]
Part = Annotated[
    str | None,
    Setting(
        "Only the I-th of N equal shares of the images, for N jobs that fill one store; auto: as the job's environment "
        "says (SLURM array, Kubernetes indexed Job, torchrun).",
        "all",
        metavar="I/N|auto",
    ),
]
SkipBad = Annotated[bool, Setting("Go on past images that cannot be read, and list them at the end.")]
DEFAULT_STORE = "dualsd.zarr"
ALPHAS = (0.05, 0.1, 0.15)
ENSEMBLE = 8


OF_DINO = ("dino_size", "dino_debias")
OF_THE_UNET = ("timesteps", "prompt", "prompts", "fallback")


def given_options(config: Any, names: Sequence[str]) -> list[str]:
    """The options among some that were given."""
    given = [name.replace("_", "-") for name in names if getattr(config, name) is not None]
    return ["--t" if name == "timesteps" else f"--{name}" for name in given]


class ComputeConfig(Config):
    """Where networks run."""

    device: Device = "auto"
    dtype: Precision = option("Precision of the networks: auto, float32, float16, bfloat16.", default="auto")
    batch_size: Positive = option(
        "Images, or noisy latents, that go through a network together; the last bits of a map depend on it.", default=8
    )


class BuildConfig(ComputeConfig):
    """`dualsd cache build`: latents of every image of a data set, and the noisy latents that are kept."""

    dataset: Dataset = None
    root: Place | None = option("The data set's folder.", "as the store says", default=None)
    annotations: Annotations = None
    model: str | None = option(MODELS, "demo on the data set demo; elsewhere it must be named", default=None)
    revision: Revision = None
    unet: UNet = None
    store: StoreSetting = DEFAULT_STORE
    timesteps: Steps = option(
        "Timesteps whose noisy latents are kept, e.g. 261 or 50,200 or 50..400 or 50..400:25.",
        default=(50, 200, 261, 350),
        flag="--t",
    )
    ensemble: Positive = option("Noise draws per timestep that are kept; others are derived when needed.", default=1)
    size: Size = None
    pad: PadName | None = option(
        "How images become squares: stretch (SD4Match, DIFT), or square: padded (GeoAware-SC, SD-DINO).",
        "stretch",
        default=None,
    )
    latents: Literal["sample", "mean"] | None = option(
        "What is taken of the VAE's posterior: sample (seeded) or mean.", "sample", default=None
    )
    seed: Seed = None
    part: Part = None
    skip_bad: SkipBad = False
    sync: Sync = True


class PromptConfig(Config):
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
    dino_debias: DinoDebias = None


class ReadoutConfig(Config):
    """How readouts read a correlation map."""

    beta: Annotated[float, Field(gt=0)] | None = option(
        "Temperature of the softmax in softmax, kernelsoftmax and window.", "0.04; for window 0.02", default=None
    )
    sigma: Annotated[float, Field(gt=0)] | None = option(
        "Width of kernelsoftmax's Gaussian, in cells of the final map.", "7", default=None, metavar="CELLS"
    )
    window: Annotated[int, Field(ge=0)] | None = option(
        "Reach of window around the maximum, in cells of the final map: 5 is 11 x 11 cells.",
        "7",
        default=None,
        metavar="CELLS",
    )

    def parameters(self, *readouts: str) -> dict[str, Any]:
        """What is said of some readouts' parameters, by the names of `matcher.configuration.MatchSettings`. Raises
        `InputError` for a parameter that none of them has."""
        said = {name: value for name in ("beta", "sigma", "window") if (value := getattr(self, name)) is not None}
        return check_parameters(said, readouts)


class KeptMapsConfig(PromptConfig, ComputeConfig):
    """Which maps, of which images."""

    store: StoreSetting = DEFAULT_STORE
    root: Root = None
    layers: Layers = None
    timesteps: Timesteps = None
    adapter: Adapter = None
    ensemble: Ensemble = ENSEMBLE
    split: str | None = option("Only images of a split.", "all", default=None)
    encoding: Encoding = "raw"
    sync: Sync = True
    skip_bad: SkipBad = False

    def __post_init__(self) -> None:
        if self.adapter is not None:  # which knows its layers
            return
        check_of_use(self.layers, given_options(self, ["dino", *OF_DINO]), given_options(self, OF_THE_UNET))
        check_layers_of(self.layers, self.timesteps, None if self.layers is None else [1.0] * len(self.layers))


class MapsConfig(KeptMapsConfig):
    """`dualsd cache maps`: feature maps, kept."""

    part: Part = None


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


class EvalConfig(PromptConfig, ReadoutConfig, ComputeConfig):
    """`dualsd eval`: PCK of a split's pairs, from a store's maps or from anybody's features."""

    store: StoreSetting = DEFAULT_STORE
    dataset: Dataset = None
    root: Root = None
    annotations: Annotations = None
    split: str | None = option("trn, val or test, or another that the data set has.", "test", default=None)
    categories: Categories = None
    layers: Texts | None = option(
        "Decoder layers 1 to 4, e.g. 2,3, block:9, dino, dinov3, dino:9; with --features the file's layer names.",
        "2,3, or those of the prompts",
        default=None,
    )
    timesteps: Timesteps = None
    weights: Weights = None
    adapter: Adapter = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readouts: Readouts = ("nn", "bilinear", "softmax", "kernelsoftmax")
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    theta: Theta = None
    strict: Strict = False
    ensemble: Positive | None = option("Noise draws whose features are averaged.", str(ENSEMBLE), default=None)
    features: Place | None = option(
        "Your own maps: safetensors '<image id>|<layer>', (C, h, w).", default=None, metavar="FILE"
    )
    size: Positive | None = option("With --features: side in pixels of the images they were made from.", default=None)
    pad: PadName | None = option(
        "With --features: how these images became squares, stretch or square (padded).", "stretch", default=None
    )
    encoding: Encoding = "raw"
    sync: Sync = True
    skip_bad: SkipBad = False
    out: Place | None = option(
        "Folder that keeps settings, predictions and results, for score and compare.",
        "runs/eval-2+3-001 and so on",
        default=None,
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        self.parameters(*find_readouts(self.readouts))
        if self.features is None and self.adapter is None:
            check_of_use(
                self.layers,
                given_options(self, OF_DINO),
                given_options(self, [*OF_THE_UNET, "ensemble"]),
            )
            check_layers_of(self.layers, self.timesteps, self.weights)


class GridConfig(PromptConfig, ReadoutConfig, ComputeConfig):
    """`dualsd grid`: every layer at every timestep, and layers together."""

    store: StoreSetting = DEFAULT_STORE
    root: Root = None
    layers: Texts | None = option(
        "Layers, e.g. 2,3: decoder layers 1 to 4, block:9, dino, dinov3, dino:9.",
        "2,3, or those of the adapter",
        default=None,
    )
    timesteps: Steps | None = option(
        "Timesteps tried for every layer: 50..400 (step 50), 50..400:25 or 50,200,261.", default=None, flag="--t"
    )
    adapter: Place | None = option(
        "A run of `dualsd adapt`, or a file, of a residual adapter: the block of each layer goes on its maps at every "
        "timestep that is tried, whichever it was trained at.",
        default=None,
        metavar="RUN",
    )
    weightings: Annotated[Weightings | Literal["sweep"] | None, Form("weightings")] = option(
        "Weightings of all layers together, e.g. 0.8:0.6,1:1. sweep: of every two of the layers 11 angles from one to "
        "the other; of three layers or more together equal weights, and each layer doubled.",
        "sweep",
        default=None,
        flag="--weights",
    )
    split: str | None = option("trn, val or test.", "val", default=None)
    categories: Categories = None
    max_pairs: Positive | None = option("A seeded choice of so many pairs.", "all", default=None)
    readouts: Readouts = ("nn",)
    alphas: Alphas = ALPHAS
    average: AverageName = "image"
    theta: Theta = None
    strict: Strict = False
    geometries: Annotated[tuple[AnyGeometry, ...], LISTED] = option(
        "corners, half-pixel or floor, or several, e.g. corners,half-pixel.", default=("corners",), flag="--geometry"
    )
    upsamples: Factors = option("Factors on the finest map, e.g. 1x,2x.", default=(1,), flag="--upsample")
    upsample_align: UpsampleAlign = None
    ensemble: Ensemble = ENSEMBLE
    stream: bool = option("Keep maps in memory only, a category at a time: nothing large is written.", default=False)
    out: Place = option("Folder for the report, its tables and pictures.", default=Path("grid"), metavar="DIR")
    encoding: Encoding = "raw"
    sync: Sync = True
    skip_bad: SkipBad = False

    def __post_init__(self) -> None:
        check_names(self.layers or ())
        self.parameters(*find_readouts(self.readouts))


class TrainConfig(Config):
    """`dualsd train`: prompts learned from the cache. None: as published, or on the demo its short default."""

    mode: str | None = option("single (one prompt), class (one per category) or cpm (one per pair).", default=None)
    store: str | None = option(
        "The store's folder, or s3://bucket/prefix.", "dualsd.zarr, or the run's own", default=None, metavar=PLACE
    )
    root: Root = None
    layers: Texts | None = option("One layer or more.", "2,3", default=None)
    timesteps: Steps | None = option(
        "One timestep per layer to learn at.",
        "the model's own; of SD 2-1 261 for layer 2, 350 for 3",
        default=None,
        flag="--t",
    )
    weights: Weights = None
    steps: Positive | None = option("Number of optimiser steps.", "the published epochs; on the demo 600", default=None)
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
        "cached (one of a few fixed draws) or fresh at each step.", "cached", default=None
    )
    draws: Positive | None = option("Fixed noise draws per timestep.", "4", default=None)
    validate_every: Positive | None = option(
        "Steps between validations.", "a tenth of all", default=None, flag="--val-every"
    )
    validation_pairs: Positive | None = option(
        "Pairs of val, a fixed choice.", "500; for cpm on the demo 100", default=None, flag="--val-pairs"
    )
    validation_timesteps: Steps | None = option(
        "One timestep per layer to validate at.", "as --t", default=None, flag="--val-t"
    )
    checkpoint_every: Positive | None = option("Steps between checkpoints.", "100", default=None)
    unused_categories: Literal["keep", "drift"] | None = option(
        "What prompts of categories do in batches without their category: keep as they are, or drift with Adam's "
        "momentum, as in SD4Match. Of --mode class.",
        "keep",
        default=None,
    )
    geometry: GeometryName | None = option("From pixels to cells: corners or half-pixel.", "corners", default=None)
    upsample_align: UpsampleAlign = None
    seed: int | None = option("Seed of the first prompts and of the batches.", "0", default=None)
    dino: str | None = option("DINOv2 for cpm: a folder or hub name.", "the model's own, or DINOv2-B/14", default=None)
    name: str | None = option("Name of the run's folder.", "<mode>-<layers>-<number>", default=None)
    runs: Place = option("Folder that the run's folder is made in.", default=Path("runs"), metavar="DIR")
    resume: Place | None = option("Go on with a run that was stopped or killed.", default=None, metavar="RUN")
    device: Device = "auto"
    dtype: Precision | None = option(
        "Precision: float32, float16, bfloat16, float64.", "float32 on a CPU", default=None
    )
    batch_size: Positive = option("Images per pass in validation.", default=8)
    gradient_checkpointing: bool = option("Half the memory, a third more time.", default=False)
    compile: bool = option("Compile the networks first (torch.compile).", default=False)

    def __post_init__(self) -> None:
        check_names(self.layers or ())
        check_layers_of(None, None, self.weights)


class AdaptConfig(PromptConfig, ComputeConfig):
    """`dualsd adapt`: an adapter learned on cached maps. None: the usual one, or the run's own where one goes on."""

    mode: Literal["residual", "aggregate", "weights"] | None = option(
        "residual (a small block adds to each map), aggregate (GeoAware-SC's network, one map of all) or weights (how "
        "much each map weighs, and nothing else).",
        "residual",
        default=None,
    )
    store: str | None = option(
        "The store's folder, or s3://bucket/prefix.", "dualsd.zarr, or the run's own", default=None, metavar=PLACE
    )
    dataset: Dataset = None
    root: Root = None
    annotations: Annotations = None
    categories: Categories = None
    layers: Texts | None = option(
        "Decoder layers 1 to 4, e.g. 2,3, dino, dinov3, dino:9; with --features the file's layer names.",
        "2,3, or those of the prompts",
        default=None,
    )
    timesteps: Steps | None = option(
        "One timestep per layer of the UNet, e.g. 261,200; with --mode weights those that every layer is taken at.",
        "the model's own; with learned prompts 50 and 200",
        default=None,
        flag="--t",
    )
    weights: Numbers | None = option(
        "One weight per layer, e.g. 0.8,0.6; with --mode weights those that learning starts from.",
        "the model's own; of --mode weights all equal where there are none",
        default=None,
    )
    ensemble: Positive | None = option("Noise draws whose features are averaged.", str(ENSEMBLE), default=None)
    features: Place | None = option(
        "Your own maps: safetensors '<image id>|<layer>', (C, h, w).", default=None, metavar="FILE"
    )
    size: Positive | None = option("With --features: side in pixels of the images they were made from.", default=None)
    pad: PadName | None = option(
        "With --features: how these images became squares, stretch or square (padded).", "stretch", default=None
    )
    geometry: GeometryName | None = option("From pixels to cells: corners or half-pixel.", "corners", default=None)
    upsample_align: UpsampleAlign = None
    steps: Positive | None = option("Number of optimiser steps.", "600; of --mode weights 200", default=None)
    batch: Positive | None = option("Pairs per optimiser step.", "12", default=None)
    rate: Rate | None = option("Learning rate.", "0.002; of --mode weights 0.02", default=None, flag="--lr")
    decay: Rate | None = option("Weight decay (AdamW).", "0.001; of --mode weights 0", default=None)
    width: Positive | None = option(
        "Channels of the bottleneck.", "16; of aggregate a quarter of --projection", default=None
    )
    projection: Positive | None = option("Channels of the map that aggregate makes.", "768", default=None)
    blocks: Positive | None = option("Bottleneck blocks in a row, of aggregate.", "1", default=None)
    loss: AdapterLoss | None = option(
        "prompt (that of learned prompts), contrastive, dense (GeoAware-SC's), or contrastive+dense.",
        "prompt",
        default=None,
    )
    kernel: int | None = option(
        "Side of the kernel of the loss of prompts, in cells.", "7 on maps of 48 cells and more, else 3", default=None
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = option(
        "Share of the maps' values that a step leaves out.", "0", default=None
    )
    flip: bool | None = option(
        "Mirror half of the pairs: maps themselves, in place of those of mirrored images, which no cache has; "
        "keypoints change sides where the data set names them.",
        default=None,
    )
    validate_every: Positive | None = option(
        "Steps between validations.", "a tenth of all", default=None, flag="--val-every"
    )
    validation_pairs: Positive | None = option(
        "Pairs to validate on, a fixed choice.", "500", default=None, flag="--val-pairs"
    )
    hold_out: Annotated[float, Field(ge=0, lt=1)] | None = option(
        "Share of the images, or categories, that are held out to validate on; 0: none.",
        "the split val where there is one, else 0.25",
        default=None,
        metavar="SHARE",
    )
    hold_by: Literal["image", "category"] | None = option(
        "What is held out: images of each category, or categories, those of a kind like car(S) and car(M) together.",
        "image",
        default=None,
    )
    pseudo: bool | None = option(
        "Learn from weak labels, not from keypoints: mutual, confident matches between images of a category that come "
        "back over a third one. Validated on val where the data set has one; else the last step is kept.",
        default=None,
    )
    relaxed: Annotated[float, Field(ge=0)] | None = option(
        "With --pseudo: cells by which a match need not be mutual.", "0", default=None, metavar="CELLS"
    )
    checkpoint_every: Positive | None = option("Steps between checkpoints.", "100", default=None)
    seed: int | None = option(
        "Seed of the first parameters, of the batches, of what is held out and of weak labels.", "0", default=None
    )
    encoding: Encoding = "raw"
    sync: Sync = True
    name: str | None = option("Name of the run's folder.", "<mode>-<layers>-<number>", default=None)
    runs: Place = option("Folder that the run's folder is made in.", default=Path("runs"), metavar="DIR")
    resume: Place | None = option("Go on with a run that was stopped or killed.", default=None, metavar="RUN")

    def __post_init__(self) -> None:
        if self.resume is not None and self.name is not None:
            raise InputError("--name goes with a new run: one that is resumed keeps its own.")
        if self.features is None and self.mode != "weights":
            check_of_use(self.layers, given_options(self, OF_DINO), given_options(self, [*OF_THE_UNET, "ensemble"]))
            check_layers_of(self.layers, self.timesteps, self.weights)
        if self.relaxed is not None and not self.pseudo and not self.resume:
            raise InputError("--relaxed goes with --pseudo.")
        if self.pseudo and (self.hold_out or self.hold_by):
            raise InputError(
                "--pseudo holds nothing out: its labels are the maps' own matches, by which no adapter can be judged; "
                "leave out --hold-out and --hold-by."
            )
        if self.mode == "weights" and (given := given_options(self, ["width", "projection", "blocks", "dropout"])):
            raise InputError(f"{given[0]} is of a network, and --mode weights has none.")
        if self.mode != "aggregate" and (given := given_options(self, ["projection", "blocks"])) and not self.resume:
            raise InputError(f"{given[0]} goes with --mode aggregate.")
        if self.kernel is not None and self.loss not in (None, "prompt"):
            raise InputError(f"--kernel is of --loss prompt, not of {self.loss}.")


class MatchConfig(ReadoutConfig, ComputeConfig):
    """`dualsd match`: points of one photograph found in another."""

    source: Place | None = option("The image with the points.", default=None, flag="A", metavar="A")
    target: Place | None = option(
        "The image to find them in, or a folder of such images.", default=None, flag="B", metavar="B"
    )
    pairs: Place | None = option(
        "Many pairs in place of A and B: CSV source,target and, if you like, category; paths from its own folder.",
        default=None,
        metavar="FILE",
    )
    points: Points | None = option("'x,y;x,y' in pixels of A, as a viewer shows it.", default=None)
    points_file: Place | None = option(
        "The points as CSV x,y and, if you like, name; of a data set's keypoints.csv, those of A.",
        default=None,
        metavar="FILE",
    )
    grid: Annotated[int, Field(ge=1, le=64)] | None = option(
        "A regular grid of N x N points over A, or over its mask.", default=None, metavar="N"
    )
    mask: Place | None = option(
        "Only points of the grid where this image of A's size is not black.", default=None, metavar="FILE"
    )
    category: str | None = option("What the images show, e.g. cat: fills in the prompt.", default=None)
    prompt: str | None = option("Text prompt.", "a photo of a {category}; without one, a photo", default=None)
    prompts: Prompts = None
    dino: Dino = None
    dino_size: DinoSize = None
    dino_debias: DinoDebias = None
    store: str | None = option("Take model, size, latents and seed from this store.", default=None, metavar=PLACE)
    model: str | None = option(MODELS, "the store's; without --store it must be named", default=None)
    revision: Revision = None
    unet: UNet = None
    size: Size = None
    layers: Layers = None
    timesteps: Timesteps = None
    weights: Weights = None
    adapter: Adapter = None
    upsample: Upsample = 1
    upsample_align: UpsampleAlign = None
    geometry: Geometry = "corners"
    readout: Literal["nn", "bilinear", "softmax", "kernelsoftmax", "window"] = option(
        "nn, bilinear, softmax, kernelsoftmax or window.", default="nn"
    )
    ensemble: Ensemble = ENSEMBLE
    seed: Seed = None

    def __post_init__(self) -> None:
        self.parameters(self.readout)
        chosen = given_options(self, ["points", "points_file", "grid"])
        if len(chosen) != 1:
            found = f", not {' and '.join(chosen)}" if chosen else ""
            raise InputError(f"Say which points: by one of --points, --points-file and --grid{found}.")
        if self.pairs is None and (self.source is None or self.target is None):
            raise InputError("Name two images, A and B, or many pairs with --pairs FILE.")
        if self.pairs is not None and (self.source or self.target or self.mask):
            raise InputError("--pairs stands in place of A and B, and goes without --mask, which is one image's.")
        if self.mask is not None and self.grid is None:
            raise InputError("--mask goes with --grid: it says where the grid has points.")
        if self.adapter is not None:  # which knows its layers
            return
        check_layers_of(self.layers, self.timesteps, self.weights)
        check_of_use(self.layers, given_options(self, OF_DINO), given_options(self, OF_THE_UNET[:3]))


class ViewConfig(Config):
    """`dualsd view`: the workbench, which matches points of a store's images as settings change."""

    store: StoreSetting = DEFAULT_STORE
    runs: Annotated[tuple[Place, ...], LISTED] = option(
        "Runs, or folders of runs, that it goes through: of eval, grid, train and adapt.",
        default=(Path("runs"), Path("grid")),
        metavar="RUN,RUN",
    )
    root: Root = None
    host: str = option(
        "Address that it listens on; any but this machine's own lets others on the network in who know the token.",
        default="127.0.0.1",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = option("Port that it listens on; 0 for any that is free.", default=0)
    open: bool = option("Open the page in the browser; --no-open only prints its address.", default=True)
    memory: Annotated[float, Field(gt=0)] = option(
        "Gigabytes of maps and correlations that are kept in memory, by use.", default=2.0, metavar="GB"
    )


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
