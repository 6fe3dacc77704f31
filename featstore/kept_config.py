"""Settings of the commands that look after what is kept: stores, runs and prompts. As in `featstore.config`, every one
stands once: its type, its default, what it means, and what it may be."""

import re
from dataclasses import replace
from string import ascii_uppercase
from typing import Annotated, Literal

from pydantic import Field

from featstore.backbones.layers import check_names
from featstore.config import (
    DEFAULT_STORE,
    MODELS,
    AverageChoice,
    AverageName,
    Device,
    Fractions,
    Place,
    Positive,
    Revision,
    Root,
    Steps,
    StoreSetting,
    Texts,
    ThetaName,
    UNet,
)
from featstore.parsing import Config, Setting, option
from matcher.configuration import find_readouts
from matcher.errors import InputError


class StoreConfig(Config):
    """Which store."""

    store: StoreSetting = DEFAULT_STORE


class DoctorConfig(StoreConfig):
    """`dualsd doctor`: what this machine has."""

    model: str | None = option(MODELS, "demo", default=None)
    revision: Revision = None
    unet: UNet = None
    offline: Annotated[bool, Setting("Do not ask the hub for a model.")] = False


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


class PruneConfig(StoreConfig):
    """`dualsd cache prune`: maps, or noisy latents, that go."""

    prompt: Annotated[str | None, Setting("Maps made with this text prompt.")] = None
    extractor: Annotated[str | None, Setting("Maps of the extractors whose key begins so.", metavar="KEY")] = None
    layers: Annotated[Texts | None, Setting("Maps of these layers, e.g. 2,3.", also="--layer")] = None
    timesteps: Annotated[
        Steps | None, Setting("Maps or noisy latents at these timesteps, e.g. 261,200 or 50..400.", flag="--t")
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


KeptAlphas = Annotated[Fractions | None, Setting("Thresholds, e.g. 0.05,0.1 or 0.01..0.2:0.01.", "those of the run")]
KeptTheta = Annotated[
    ThetaName | None,
    Setting(
        "What theta is the longer side of: the target's box, the image, or the extent of its keypoints.",
        "as the run has it",
    ),
]
KeptStrict = Annotated[
    bool | None, Setting("Count a point at a distance of exactly alpha theta as missed.", "as the run has it")
]
FrameName = Annotated[
    Literal["resized", "original"] | None,
    Setting(
        "Where distances and theta are measured: in resized or original images.",
        "each readout's own: original for pixel, else resized",
    ),
]


class ScoreConfig(Config):
    """`dualsd score`: an evaluation that was kept, scored again."""

    run: Annotated[Place, Setting("The folder that `dualsd eval` kept.", metavar="RUN")]
    alphas: KeptAlphas = None
    frame: FrameName = None
    average: AverageName = "image"
    theta: KeptTheta = None
    strict: KeptStrict = None
    readouts: Annotated[Texts | None, Setting("Only these readouts.", "all")] = None
    errors: bool = option("Say why matches are wrong, and score the geometry-aware points.", default=False)

    def __post_init__(self) -> None:
        find_readouts(self.readouts or ())


class CompareConfig(Config):
    """`dualsd compare`: evaluations over the same pairs, held against the first."""

    runs: Annotated[
        tuple[Place, ...],
        Field(strict=False),
        Setting("Folders that `dualsd eval` kept; the first is A.", metavar="RUN_A RUN_B ..."),
    ]
    readout: Annotated[str, Setting("Which of the runs' readouts.")] = "nn"
    alphas: KeptAlphas = None
    average: Annotated[AverageChoice, Setting("Average that is compared: image, point or category.", flag="--by")] = (
        "image"
    )
    frame: FrameName = None
    theta: KeptTheta = None
    strict: KeptStrict = None
    errors: bool = option("Say what becomes of the first run's wrong matches in the others.", default=False)

    def __post_init__(self) -> None:
        if "," in self.readout:
            raise InputError(f"--readout takes one readout, not {self.readout!r}.")
        find_readouts([self.readout])
        if not 2 <= len(self.runs) <= len(ascii_uppercase):  # each has a letter
            raise InputError(
                f"compare takes 2 to {len(ascii_uppercase)} runs, of which the first is what the others are compared "
                "with."
            )


class ImportConfig(Config):
    """`dualsd prompts import`: SD4Match's prompts, made ours."""

    file: Annotated[Place, Setting("SD4Match's caption.pt or ckpt.pt.", metavar="FILE.pt")]
    out: Annotated[Place, Setting("The .safetensors file to write.")]
    model: Annotated[
        str | None,
        Setting("What they were made for: sd2-1, sd1-5, demo, a hub name or a folder.", "it must be named"),
    ] = None
    source: Annotated[Literal["sd4match"], Setting("Whose file it is: sd4match.", flag="--from")] = "sd4match"
    revision: Revision = None
    layer: Annotated[int, Setting("Decoder layer, 1 to 4, that they were learned for.")] = 2
    timestep: Annotated[int, Setting("Timestep that they were learned at.", flag="--t")] = 261
    mode: Annotated[str | None, Setting("single, class or cpm.", "told from the file")] = None


class AdapterExportConfig(Config):
    """`dualsd adapter export`: an adapter as one file."""

    adapter: Annotated[Place, Setting("A run's folder, or a .safetensors file.", metavar="RUN_OR_FILE")]
    out: Annotated[Place, Setting("The .safetensors file to write.")]


class AdapterImportConfig(Config):
    """`dualsd adapter import`: a published adapter, made ours."""

    file: Annotated[Place, Setting("GeoAware-SC's or DIY-SC's weights: .pth, or .safetensors.", metavar="FILE")]
    out: Annotated[Place, Setting("The .safetensors file to write.")]
    layers: Annotated[
        Texts | None,
        Setting(
            "The layer whose maps each part of the file takes, e.g. 3,2,1,dino; or names of own features' layers.",
            "they must be named",
        ),
    ] = None
    timesteps: Annotated[Steps | None, Setting("One timestep per layer of the UNet, e.g. 50,50,50.", flag="--t")] = None
    groups: Positive = option("Groups of its norms, which the file does not say.", default=32)
    cells: Annotated[int, Field(ge=0)] | None = option(
        "Side in cells that maps are brought to, bilinearly; 0 for that of the finest map.",
        "60, as published, of several parts; 0 of one",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.layers is None:
            raise InputError("Say with --layers which maps the file's parts take, in their order, e.g. 3,2,1,dino.")


class AnnotationsConfig(Config):
    """`dualsd import`: keypoints out of an annotation program's export."""

    source: Annotated[
        Place,
        Setting("An export, or a folder of them: LabelMe, COCO keypoints, CVAT for images 1.1.", metavar="EXPORT"),
    ]
    out: Annotated[Place, Setting("The folder of the photographs, for its keypoints.csv; or another .csv file in it.")]
    format: Annotated[
        Literal["labelme", "coco", "cvat"] | None,
        Setting("Only exports of this kind: labelme, coco or cvat.", "told from each file"),
    ] = None


class PublishConfig(Config):
    """`dualsd prompts export`: one layer's prompts, made SD4Match's."""

    prompts: Annotated[Place, Setting("A run's folder, or a .safetensors file.", metavar="RUN_OR_FILE")]
    out: Annotated[Place, Setting("The .pt file to write.")]
    target: Annotated[Literal["sd4match"], Setting("Whose layout: sd4match.", flag="--to")] = "sd4match"
    layer: Annotated[int | None, Setting("Layer whose prompts are written.", "the only one")] = None
