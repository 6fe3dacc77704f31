"""`dualsd match A B`: points from one photograph to another, with a picture."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values, options
from cli.options import (
    AlignOption,
    BatchOption,
    DeviceOption,
    DinoOption,
    DtypeOption,
    EnsembleOption,
    GeometryOption,
    JsonOption,
    PromptsOption,
    RevisionOption,
    SizeOption,
    StoreLocation,
    TimestepsOption,
    UpsampleOption,
    WeightsOption,
)
from featstore.store.keys import parse_location
from matcher.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEATMAP_POINTS = 20

EXAMPLES = (
    "Examples:\n\n"
    "dualsd match a.jpg b.jpg --points '120,80;200,150' --model sd2-1 --out matches.png\n\n"
    "dualsd match a.jpg b.jpg --points '120,80' --category cat --model sd2-1 --out m.png --heatmap\n\n"
    "dualsd match a.jpg b.jpg --points '120,80' --store spair.zarr --json found.json"
)


def match(
    source: Annotated[Path, typer.Argument(help="The image with the points.", metavar="A")],
    target: Annotated[Path, typer.Argument(help="The image to find them in.", metavar="B")],
    points: Annotated[str, typer.Option("--points", help="'x,y;x,y' in pixels of A.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Draw both images and the matches.")] = None,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Also draw each point's correlation over B, beside --out.")
    ] = False,
    category: Annotated[
        str | None, typer.Option("--category", help="What both show, e.g. cat: fills in the prompt.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Text prompt.", show_default="a photo of a {category}; without one, a photo"),
    ] = None,
    prompts: PromptsOption = None,
    dino: DinoOption = None,
    store: Annotated[
        StoreLocation | None,
        typer.Option(
            "--store",
            metavar="PLACE",
            parser=parse_location,
            help="Take model, size, latents and seed from this store.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
            show_default="the store's; without --store it must be named",
        ),
    ] = None,
    revision: RevisionOption = None,
    size: SizeOption = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", help="Decoder layers, 1 to 4, e.g. 2,3.", show_default="2,3, or those of the prompts"),
    ] = None,
    t: TimestepsOption = None,
    weights: WeightsOption = None,
    upsample: UpsampleOption = "1x",
    upsample_align: AlignOption = None,
    geometry: GeometryOption = "corners",
    readout: Annotated[str, typer.Option("--readout", help="nn, bilinear, softmax, kernelsoftmax or window.")] = "nn",
    ensemble: EnsembleOption = options.DEFAULT_ENSEMBLE,
    seed: Annotated[int | None, typer.Option("--seed", help="Of all noise.", show_default="0")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch_size: BatchOption = 8,
    json: JsonOption = None,
) -> None:
    """Find points of one photograph in another; prints them in pixels of B. Needs no store."""
    typed = None if layers is None else option_values.parse_layers(layers)
    option_values.check_typed(typed, t, weights)
    wanted_points = _parse_points(points)
    shape = option_values.parse_geometry(geometry, "--geometry")
    align = shape if upsample_align is None else option_values.parse_geometry(upsample_align, "--upsample-align")
    if heatmap and out is None:
        raise InputError("--heatmap needs --out FILE, beside which it is written.")
    if heatmap and len(wanted_points) > HEATMAP_POINTS:
        raise InputError(
            f"--heatmap draws a row a point, for at most {HEATMAP_POINTS} points, not {len(wanted_points)}."
        )
    chosen, *others = option_values.parse_readouts(readout)
    if others or chosen == "pixel":
        raise InputError(
            f"--readout takes one readout: nn, bilinear, softmax, kernelsoftmax or window, not {readout!r}."
        )
    import numpy as np
    import torch

    from cli.output import check_writable, print_shapes, print_table, say, write_json
    from cli.photo_prompt import photo_prompt
    from cli.progress import TerminalProgress
    from featstore.backbones.latents import Latents
    from featstore.backbones.model import open_model
    from featstore.pipeline.needed import model_of
    from featstore.pipeline.photos import PhotoSettings, open_photo, photo_maps
    from featstore.pipeline.prompt_choice import NEWEST, TypedPrompts, choose_for_store, choose_prompts, layers_of
    from featstore.prompts.text import DEFAULT_TEMPLATE
    from featstore.store.store import open_store
    from matcher.configuration import MatchSettings
    from matcher.fusion import fuse
    from matcher.geometry import pixels_to_cells
    from matcher.match import correlate, match_points

    check_writable(out, json)
    photos = [open_photo(source), open_photo(target)]
    pixels = np.array(wanted_points, dtype=np.float32)  # (n, 2) in pixels of A
    _check_inside(pixels, photos[0].picture.size, source)
    latents = Latents.SAMPLE
    if store is None:
        opened = open_model(option_values.model_for(None, model), revision)
        size = opened.image_size if size is None else size
    else:
        if any(given is not None for given in (model, revision, size, seed)):
            raise InputError("--model, --revision, --size and --seed do not go with --store, which has its own.")
        known = open_store(store)
        opened, size = model_of(known), known.header.image_size
        seed, latents = known.header.seed, known.header.latents
    compute = option_values.choose_compute(device, dtype, batch_size)
    asked = TypedPrompts(typed, t, prompt, prompts, None, DEFAULT_TEMPLATE if category else "a photo")
    if store is not None:
        choice = choose_for_store(known, asked)
    elif prompts == NEWEST:
        raise InputError("--prompts newest is the newest run on a store: name the store with --store, or name the run.")
    else:
        choice = choose_prompts(opened.location.id, opened.fingerprint, tuple, asked)
    say(choice.line)
    numbers = layers_of(choice, typed)
    usual = option_values.TEXT_TIMESTEPS if choice.learned is None else option_values.LEARNED_TIMESTEPS
    timesteps = option_values.timesteps_for(numbers, t, usual)
    shares = option_values.weights_for(tuple(map(str, numbers)), weights)
    told, text = photo_prompt(choice, category, photos, opened.location, dino, compute)
    settings = MatchSettings(size, shape, option_values.parse_upsample(upsample), align)
    wanted = list(zip(numbers, timesteps, strict=True))
    print_shapes(opened.shape(layer, size) for layer in numbers)
    with TerminalProgress() as progress:
        maps = photo_maps(
            opened, photos, wanted, PhotoSettings(size, latents, seed or 0, ensemble), told, compute, progress
        )
    final = [
        fuse([found[key].to(compute.device) for key in wanted], shares, settings.upsample, align) for found in maps
    ]
    scale_a, scale_b = (np.array(photo.picture.size, dtype=np.float32) / np.float32(size) for photo in photos)
    queries = torch.from_numpy(np.clip(pixels / scale_a, 1e-4, size - 1 - 1e-4)).to(compute.device)
    matched = match_points(final[0], final[1], queries, [chosen], settings)[chosen].cpu().numpy() * scale_b.astype(
        np.float32
    )
    say(
        f"model {opened.location.id}, prompt {text!r}, readout {chosen}, ensemble {ensemble}, geometry "
        f"{shape.value}, images resized to {size} pixels"
    )
    print_table(
        f"{source.name} -> {target.name}, pixels",
        ["point", "x in A", "y in A", "x in B", "y in B"],
        [
            [str(index), *(f"{value:.1f}" for value in (*start, *end))]
            for index, (start, end) in enumerate(zip(pixels, matched, strict=True), start=1)
        ],
    )
    write_json(
        json,
        {
            "source": str(source),
            "target": str(target),
            "source_points": pixels.tolist(),
            "target_points": matched.tolist(),
            "layers": list(numbers),
            "t": list(timesteps),
            "weights": list(shares),
            "prompt": text,
            "readout": chosen,
            "ensemble": ensemble,
            "geometry": shape.value,
            "image_size": size,
            "model": opened.location.id,
        },
    )
    if out is None:
        return
    pictures = [np.asarray(photo.picture) for photo in photos]
    _draw(out, pictures, pixels, matched, (source.name, target.name))
    if heatmap:
        cells = pixels_to_cells(queries, size, (final[0].shape[-2], final[0].shape[-1]), shape)
        correlations = correlate(final[0], cells, final[1]).cpu().numpy()
        _draw_heatmaps(out.with_name(f"{out.stem}-heatmap{out.suffix}"), pictures, pixels, matched, correlations)


def _parse_points(text: str) -> list[tuple[float, float]]:
    number = r"-?\d+(?:\.\d+)?"
    if not re.fullmatch(rf"\s*{number}\s*,\s*{number}\s*(;\s*{number}\s*,\s*{number}\s*)*;?\s*", text):
        raise InputError(f"--points takes 'x,y;x,y' in pixels of A, not {text!r}.")
    pairs = [part.split(",") for part in text.strip().strip(";").split(";")]
    return [(float(x), float(y)) for x, y in pairs]


def _check_inside(points: "NDArray[np.float32]", size: tuple[int, int], file: Path) -> None:
    for x, y in points:
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise InputError(f"The point {x:g},{y:g} lies outside {file.name}, which is {size[0]}x{size[1]} pixels.")


def _draw(
    file: Path,
    pictures: "list[NDArray[np.uint8]]",
    source_points: "NDArray[np.float32]",
    target_points: "NDArray[np.float32]",
    names: tuple[str, str],
) -> None:
    from cli.output import say
    from matcher.plot import draw_matches

    try:
        draw_matches(file, pictures[0], pictures[1], source_points, target_points, names)
    except (OSError, ValueError) as error:
        raise InputError(f"The picture {file} cannot be written: {error}.") from error
    say(f"drawn: {file}")


def _draw_heatmaps(
    file: Path,
    pictures: "list[NDArray[np.uint8]]",
    source_points: "NDArray[np.float32]",
    target_points: "NDArray[np.float32]",
    correlations: "NDArray[np.float32]",
) -> None:
    from cli.output import say
    from matcher.plot import draw_heatmaps

    try:
        draw_heatmaps(file, pictures[0], pictures[1], source_points, target_points, correlations)
    except (OSError, ValueError) as error:
        raise InputError(f"The picture {file} cannot be written: {error}.") from error
    say(f"drawn: {file}")
