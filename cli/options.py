"""Options that mean the same in every command; `cli.option_values` reads what is typed for them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.store.keys import parse_location
from matcher.registry import MODULES

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
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="spair, pf-pascal, pf-willow, folder or demo.", show_default="demo")
]
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
ReadoutsOption = Annotated[str, typer.Option("--readouts", help=f"Of {', '.join(MODULES)}.")]
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
