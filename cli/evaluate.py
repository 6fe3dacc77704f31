"""`dualsd eval`: PCK of cached maps, or of anybody's features."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import option_values, options
from cli.evaluate_sources import from_file, from_store
from cli.layer_names import check_names, check_of_use, parse_names, timesteps_of, unet_layers
from cli.options import (
    AlignOption,
    AlphasOption,
    BatchOption,
    CategoriesOption,
    CsvOption,
    DatasetOption,
    DeviceOption,
    DinoOption,
    DinoSizeOption,
    DtypeOption,
    FallbackOption,
    GeometryOption,
    JsonOption,
    PromptOption,
    PromptsOption,
    ReadoutsOption,
    RootOption,
    SkipBadOption,
    StoredOption,
    StoreOption,
    TimestepsOption,
    UpsampleOption,
    WeightsOption,
)
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.evaluate import Evaluation, Scoring
    from matcher.configuration import MatchSettings
    from matcher.pck import Average

EXAMPLES = (
    "Examples:\n\n"
    "dualsd eval\n\n"
    "dualsd eval --store W.zarr --layers 2,3 --t 261,200 --weights 0.8,0.6 --json out.json\n\n"
    "dualsd eval --prompts runs/class-2+3-001\n\n"
    "dualsd eval --layers 2,dino --t 261\n\n"
    "dualsd eval --layers 2 --t 261 --upsample 2x --readouts nn --out runs/dift-2x\n\n"
    "dualsd eval --alphas 0.01..0.2:0.01\n\n"
    "dualsd eval --features F.safetensors --dataset pf-willow --root DIR --size 384 --layers s16"
)


def evaluate(
    store: StoreOption = options.DEFAULT_STORE,
    dataset: DatasetOption = None,
    root: RootOption = None,
    split: Annotated[str | None, typer.Option("--split", help="trn, val or test.", show_default="test")] = None,
    categories: CategoriesOption = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Decoder layers 1 to 4, e.g. 2,3, and dino (DINOv2); with --features the file's layer names.",
            show_default="2,3, or those of the prompts",
        ),
    ] = None,
    t: TimestepsOption = None,
    weights: WeightsOption = None,
    upsample: UpsampleOption = "1x",
    upsample_align: AlignOption = None,
    geometry: GeometryOption = "corners",
    readouts: ReadoutsOption = "nn,bilinear,softmax,kernelsoftmax",
    alphas: AlphasOption = options.DEFAULT_ALPHAS,
    by: Annotated[str, typer.Option("--by", help="Average of the printed table: image or point.")] = "image",
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    fallback: FallbackOption = None,
    dino: DinoOption = None,
    dino_size: DinoSizeOption = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            "--ensemble",
            min=1,
            help="Noise draws whose features are averaged.",
            show_default=str(options.DEFAULT_ENSEMBLE),
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Your own maps: safetensors '<image id>|<layer>', (C, h, w)."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="With --features: side in pixels of the images they were made from.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    stored: StoredOption = options.DEFAULT_STORED,
    batch_size: BatchOption = 8,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
    csv: CsvOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder that keeps settings, predictions and results, for score and compare.",
            show_default="runs/eval-2+3-001 and so on",
        ),
    ] = None,
) -> None:
    """Match the keypoints of a split's pairs and print PCK by category.

    Maps, noisy latents and latents that are not cached are made and kept, and so are the predictions: `dualsd score`
    and `dualsd compare` need no matching. With --features no store and no model is needed.
    """
    from cli.command_line import typed_command
    from cli.output import check_writable, say
    from cli.processes import choose_compute
    from featstore.datasets.registry import open_dataset
    from featstore.pipeline.distributed import launched
    from featstore.pipeline.evaluate import Scoring
    from featstore.pipeline.results import check_place, kept_evaluation
    from featstore.store.keys import absolute
    from matcher.configuration import MatchSettings
    from matcher.maps import LayerSpec

    check_writable(json, csv)
    check_place(out)
    average = option_values.parse_average(by)
    shape = option_values.parse_geometry(geometry, "--geometry")
    align = shape if upsample_align is None else option_values.parse_geometry(upsample_align, "--upsample-align")
    compute = choose_compute(device, dtype, batch_size)
    chosen = tuple(part.strip() for part in categories.split(",")) if categories else ()
    wanted_readouts, wanted_alphas = option_values.parse_readouts(readouts), option_values.parse_alphas(alphas)
    factor = option_values.parse_upsample(upsample)
    kept_as = option_values.parse_stored(stored)

    def scoring(image_size: int, names: tuple[str, ...], timesteps: tuple[int | None, ...]) -> Scoring:
        shares = option_values.weights_for(names, weights)
        specs = tuple(LayerSpec(*spec) for spec in zip(names, timesteps, shares, strict=True))
        settings = MatchSettings(image_size, shape, factor, align)
        return Scoring(specs, wanted_readouts, wanted_alphas, settings)

    if features is not None:
        of_a_store = {
            "--t": t,
            "--prompt": prompt,
            "--prompts": prompts,
            "--fallback": fallback,
            "--ensemble": ensemble,
            "--dino": dino,
            "--dino-size": dino_size,
            "--skip-bad": skip_bad or None,
        }
        for option in [option for option, value in of_a_store.items() if value is not None]:
            raise InputError(f"{option} goes with a store, not with features from a file.")
        option_values.check_kept(kept_as, "features from a file")
        if dataset is None or size is None:
            raise InputError(
                "--features needs --dataset (and its --root), and --size: the side of the images in pixels."
            )
        if layers is None:
            raise InputError("--features needs --layers: the names of the file's layers.")
        names = tuple(part.strip() for part in layers.split(","))
        settled = scoring(size, names, (None,) * len(names))
        result = from_file(features, dataset, root, split, chosen, settled, compute)
        measured, place = open_dataset(dataset, root), root
    else:
        if dataset is not None or size is not None:
            raise InputError("--dataset and --size go with --features: a store knows its own.")
        typed = None if layers is None else parse_names(layers)
        of_the_unet = {
            "--t": t,
            "--prompt": prompt,
            "--prompts": prompts,
            "--fallback": fallback,
            "--ensemble": ensemble,
        }
        check_of_use(typed, {"--dino-size": dino_size}, of_the_unet)
        check_names(typed, t, weights)
        from cli.prompt_choice import TypedPrompts, choose_for_store, layers_of
        from featstore.pipeline.dino_maps import AskedDino
        from featstore.store.store import open_store

        opened = open_store(store)
        numbers = None if typed is None else unet_layers(typed)
        choice = choose_for_store(opened, TypedPrompts(numbers, t, prompt, prompts, fallback))
        if choice.prompts is None:
            option_values.check_kept(kept_as, "prompts of pairs (cpm)")
        names = typed or tuple(map(str, layers_of(choice, None)))
        if unet_layers(names):
            say(choice.line)
        usual = option_values.TEXT_TIMESTEPS if choice.learned is None else option_values.LEARNED_TIMESTEPS
        settled = scoring(opened.header.image_size, names, timesteps_of(names, t, usual))
        draws, asked = ensemble or options.DEFAULT_ENSEMBLE, AskedDino(dino, dino_size)
        result = from_store(opened, root, split, chosen, settled, choice, asked, draws, compute, kept_as, skip_bad)
        measured = option_values.dataset_of(opened, root)
        place = root if root is not None or opened.header.dataset_root is None else Path(opened.header.dataset_root)
    if launched().rank > 0:
        return
    report(result, average, json, csv)
    about = {
        "command": typed_command(),
        "average": average.value,
        "theta": measured.theta_rule.value,
        "store": None if features is not None else absolute(store),
        "root": None if place is None else str(place.resolve()),
    }
    from cli.html_report.evaluation import report_evaluation

    with kept_evaluation(result, out, about) as kept:
        say(f"kept in {kept}: `dualsd score {shlex.quote(str(kept))}` scores it again, `dualsd compare` compares it")
        page = report_evaluation(kept)
    say(f"report: {page}, with table.md and table.tex beside it")


def report(result: "Evaluation", average: "Average", json: Path | None, csv: Path | None) -> None:
    """Print what was measured and the table, and write both where files are asked for."""
    from cli.output import print_result, say, write_csv, write_json
    from matcher.pck import CSV_HEADER, to_rows

    say(describe(result.scoring, result.features))
    print_result(result, average)
    write_json(json, result.to_json())
    rows = ((*row, *csv_settings(result, row[0])) for row in to_rows(result.scores))
    write_csv(csv, (*CSV_HEADER, *CSV_SETTINGS), rows)


CSV_SETTINGS = ("dataset", "split", "layers", "t", "weights", "geometry", "frame", "upsample", "features")


def csv_settings(result: "Evaluation", readout: str) -> tuple[str, ...]:
    """What a readout's numbers depend on, in the order of `CSV_SETTINGS`; several layers are joined by `+`."""
    layers, settings = result.scoring.layers, result.scoring.settings
    return (
        result.dataset,
        result.split,
        "+".join(layer.layer for layer in layers),
        "+".join("" if layer.timestep is None else str(layer.timestep) for layer in layers),
        "+".join(f"{layer.weight:g}" for layer in layers),
        settings.geometry.value,
        result.scoring.frame_of(readout).value,
        str(settings.upsample),
        "; ".join(f"{name} {value}" for name, value in result.features.items()),
    )


def describe(scoring: "Scoring", features: Mapping[str, Any]) -> str:
    """One line of all that the numbers depend on."""
    from matcher.pairs import Frame
    from matcher.registry import frame_of

    settings: MatchSettings = scoring.settings
    layers = " + ".join(
        f"layer {layer.layer}"
        + ("" if layer.timestep is None else f" at t = {layer.timestep}")
        + ("" if len(scoring.layers) == 1 else f" x {layer.weight:g}")
        for layer in scoring.layers
    )
    shown = ("prompt", "ensemble", "model", "dino", "dino_size", "stored", "features")
    origin = "; ".join(f"{name} {value!r}" for name, value in features.items() if name in shown)
    upsampling = f", upsampled {settings.upsample}x ({settings.upsample_align.value})" if settings.upsample > 1 else ""
    frame = f"geometry {settings.geometry.value}, images resized to {settings.image_size} pixels"
    if scoring.frame is not None:
        frame += f", PCK in the {scoring.frame.value} frame"
    elif any(frame_of(readout) is Frame.ORIGINAL for readout in scoring.readouts):
        frame += ", pixel in the original frame"
    return f"{layers}{upsampling}; {frame}; {origin}"
