"""`dualsd grid`: which layer, which timestep, which two together, with which weights."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values, options
from cli.options import (
    AlignOption,
    AlphasOption,
    BatchOption,
    CategoriesOption,
    DeviceOption,
    DinoOption,
    DtypeOption,
    FallbackOption,
    JsonOption,
    PromptOption,
    PromptsOption,
    ReadoutsOption,
    RootOption,
    SkipBadOption,
    StoredOption,
    StoreOption,
)
from matcher.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featstore.errors import ImageError
    from featstore.pipeline.pairwise import PairMaps
    from matcher.configuration import Configuration
    from matcher.match import MatchSettings

EXAMPLES = (
    "Examples:\n\n"
    "dualsd grid --layers 2,3 --t 50..400\n\n"
    "dualsd grid --store spair.zarr --layers 2,3 --t 50..400 --weights sweep --max-pairs 2000 --stream\n\n"
    "dualsd grid --layers 2 --t 0..950:25 --upsample 1x,2x --readouts nn,kernelsoftmax --csv grid.csv"
)


def grid(
    store: StoreOption = options.DEFAULT_STORE,
    root: RootOption = None,
    layers: Annotated[str, typer.Option("--layers", help="Decoder layers 1 to 4, e.g. 2,3.")] = "2,3",
    t: Annotated[
        str | None,
        typer.Option("--t", help="Timesteps tried for every layer: 50..400 (step 50), 50..400:25 or 50,200,261."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Weightings tried, e.g. 0.8:0.6,1:1; sweep: 11 angles from one layer to the other.",
            show_default="0.8:0.6 for layers 2,3",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="trn, val or test.", show_default="val")] = None,
    categories: CategoriesOption = None,
    max_pairs: Annotated[
        int | None, typer.Option("--max-pairs", min=1, help="A seeded choice of so many pairs.", show_default="all")
    ] = None,
    readouts: ReadoutsOption = "nn",
    alphas: AlphasOption = options.DEFAULT_ALPHAS,
    by: Annotated[str, typer.Option("--by", help="Average: image or point.")] = "image",
    geometry: Annotated[
        str, typer.Option("--geometry", help="corners, half-pixel, or corners,half-pixel for both.")
    ] = "corners",
    upsample: Annotated[str, typer.Option("--upsample", help="Factors on the finest map, e.g. 1x,2x.")] = "1x",
    upsample_align: AlignOption = None,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    fallback: FallbackOption = None,
    dino: DinoOption = None,
    ensemble: Annotated[
        int, typer.Option("--ensemble", min=1, help="Noise draws whose features are averaged.")
    ] = options.DEFAULT_ENSEMBLE,
    stream: Annotated[
        bool, typer.Option("--stream", help="Keep maps in memory only, a category at a time: nothing large is written.")
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the report, its tables and pictures.")
    ] = Path("grid"),
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    stored: StoredOption = options.DEFAULT_STORED,
    batch_size: BatchOption = 8,
    skip_bad: SkipBadOption = False,
    json: JsonOption = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a row a number to FILE.")] = None,
) -> None:
    """Score every layer at every timestep, and all layers together at every choice of timesteps and weights.

    Costs one UNet pass an image, noise draw and timestep, and one matrix product a map and target image; every further
    combination is a weighted sum. May be stopped at any time: the same command goes on.
    """
    if t is None:
        raise InputError("A grid needs timesteps: say which with --t, e.g. --t 50..400.")
    numbers = option_values.parse_layers(layers)
    timesteps = tuple(dict.fromkeys(option_values.parse_timesteps(t)))
    if len(numbers) == 1 and weights is not None:
        raise InputError("--weights weighs several layers, but --layers names one.")
    weightings = option_values.weightings_for(numbers, weights)
    shapes = tuple(option_values.parse_geometry(part.strip(), "--geometry") for part in geometry.split(","))
    factors = tuple(option_values.parse_upsample(part.strip()) for part in upsample.split(","))
    align = None if upsample_align is None else option_values.parse_geometry(upsample_align, "--upsample-align")
    wanted_readouts, wanted_alphas = option_values.parse_readouts(readouts), option_values.parse_alphas(alphas)
    chosen = tuple(part.strip() for part in categories.split(",")) if categories else ()
    kept_as = option_values.parse_stored(stored)

    from cli.command_line import describe_origin, now
    from cli.grid_output import print_cost, print_scores, print_winners
    from cli.grid_pictures import check_folder, draw, to_json
    from cli.output import (
        check_writable,
        print_bad,
        print_left_out,
        print_pairwise_cost,
        say,
        write_csv,
        write_json,
    )
    from cli.processes import choose_compute, progress_of
    from featstore.datasets.records import canonical_split
    from featstore.pair_list import note_oddities, spell_list
    from featstore.pipeline.distributed import join_processes
    from featstore.pipeline.evaluate import (
        choose_pairs,
        default_split,
        describe_features,
        images_of,
        in_frame_of_store,
        unreadable,
        without_images,
    )
    from featstore.pipeline.grid import (
        Grid,
        choose_some,
        cost_cached,
        cost_streamed,
        grid_ledger,
        score_cached,
        score_streamed,
    )
    from featstore.pipeline.images import check_unchanged
    from featstore.pipeline.needed import make_latents, require_maps
    from featstore.pipeline.pairwise import open_pair_maps, score_grid_pairwise
    from featstore.pipeline.plan import extractor_of
    from featstore.pipeline.prompt_choice import TypedPrompts, choose_for_store
    from featstore.store.source import StoredMaps
    from featstore.store.store import open_store
    from matcher.grid import CSV_HEADER, to_rows
    from matcher.match import MatchSettings
    from matcher.pck import Average

    if by not in (average.value for average in Average):
        raise InputError(f"--by is image or point, not {by!r}.")
    check_writable(json, csv)
    compute = choose_compute(device, dtype, batch_size)
    opened = open_store(store)
    choice = choose_for_store(opened, TypedPrompts(numbers, t, prompt, prompts, fallback))
    say(choice.line)
    if choice.prompts is None:
        option_values.check_kept(kept_as, "prompts of pairs (cpm)")
    dataset = option_values.dataset_of(opened, root)
    split = canonical_split(split or ("val" if "val" in dataset.splits else dataset.splits[-1]))
    pairs = choose_some(choose_pairs(dataset, split, chosen), max_pairs)
    check_folder(out)
    choice.check_categories({pair.category for pair in pairs})
    size = opened.header.image_size
    settings = [
        MatchSettings(size, shape, factor, align or shape)
        for shape in dict.fromkeys(shapes)
        for factor in dict.fromkeys(factors)
    ]
    tried = Grid(
        tuple(entry for one in settings for entry in _configurations(numbers, timesteps, weightings, one)),
        wanted_readouts,
        wanted_alphas,
    )
    say(
        f"{len(tried.configurations)} configurations, {len(pairs)} pairs of {dataset.name} {split}; "
        f"prompt {choice.label!r}, ensemble {ensemble}, model {opened.header.model_id}, "
        f"images resized to {size} pixels"
    )
    if split == "test":
        say("note: this chooses on test; choose on val where there is one, and report on test")
    images = images_of(pairs)
    processes = join_processes()
    with progress_of(processes) as progress:
        share = processes.part.of(images)
        check_unchanged(opened, dataset, share, progress)
        everything = in_frame_of_store(opened, dataset, pairs, progress)
        note_oddities(dataset, [split], images, opened.images.known_keys, progress)
        rows = [opened.images.row(image) for image in share]
        text = choice.prompts
        bad: Sequence[ImageError] = ()
        extractor = None if text is None else extractor_of(opened, text, ensemble, compute, kept_as)
        if text is None or extractor is None:
            print_pairwise_cost(len(pairs), len(tried.maps), ensemble)
        else:
            cost = (cost_streamed if stream else cost_cached)(opened, extractor, pairs, tried, text)
            print_cost(cost, store)
            processes.wait()  # what it takes is counted before it is begun
            if stream:
                bad = make_latents(opened, dataset, rows, compute, progress)
            else:
                made = require_maps(opened, dataset, rows, tried.maps, text, ensemble, compute, progress, kept_as)
                bad = made.bad
        bad = unreadable(*processes.gather(bad))  # from here on all processes find all maps
        if bad and not skip_bad:
            raise bad[0]
        print_bad(bad)
        framed = without_images(everything, bad)
        print_left_out(len(pairs), len(framed))
        features = describe_features(opened, extractor, choice.describe(), ensemble, compute)
        ledger = grid_ledger(opened, framed, tried, features)
        if ledger.done:
            say(f"{len(ledger.done)} of {len(ledger.pairs)} target images were finished before: going on from there")
        if text is None or extractor is None:
            learned = choice.learned
            assert learned is not None, "only learned prompts belong to pairs"

            def open_maps() -> "PairMaps":
                return open_pair_maps(
                    opened, dataset, framed, tried.maps, learned, dino, ensemble, compute, progress, processes
                )

            scores = score_grid_pairwise(framed, open_maps, tried, ledger, compute, progress, processes)
        elif stream:
            scores = score_streamed(
                opened, framed, tried, text, ensemble, ledger, compute, progress, processes, kept_as
            )
        else:
            maps = StoredMaps(opened, extractor)
            scores = score_cached(maps, framed, tried, ledger, compute, progress, processes)
    if not processes.is_main:
        return
    average = Average(by)
    say(f"PCK over {dataset.name} {split}, {spell_list(split, scores.pairs)}")
    print_scores(scores, average)
    again = f"dualsd eval --store {shlex.quote(str(store))}"
    again += "" if root is None else f" --root {shlex.quote(str(root))}"
    again += "" if dtype == "auto" else f" --dtype {dtype}"
    again += "" if stored == options.DEFAULT_STORED else f" --stored {stored}"
    named = choice.source
    again += f" --prompt {shlex.quote(choice.label)}" if named is None else f" --prompts {shlex.quote(str(named))}"
    again += "" if fallback is None else f" --fallback {fallback}"
    again += "" if dino is None else f" --dino {shlex.quote(dino)}"
    again += "" if ensemble == options.DEFAULT_ENSEMBLE else f" --ensemble {ensemble}"
    again, chose_nothing = f"{again} --split {default_split(dataset)}", split != default_split(dataset)
    print_winners(scores, average, again, chose_nothing)
    write_json(json, to_json(scores, average, dataset.name, split, features))
    write_csv(csv, CSV_HEADER, to_rows(scores))
    draw(scores, average, out)
    from cli.html_report.grid import GridRecord, report_grid
    from featstore.store.keys import absolute

    place = None if root is None else str(root.resolve())
    about = {"store": absolute(store), "root": place, "theta": dataset.theta_rule.value}
    origin = describe_origin(created=now(), **about)
    record = GridRecord(dataset.name, split, features, again, chose_nothing, origin)
    say(f"report: {report_grid(out, scores, average, record)}, with table.md and table.tex beside it")
    ledger.forget()


def _configurations(
    layers: tuple[int, ...],
    timesteps: tuple[int, ...],
    weightings: "Sequence[tuple[float, ...]]",
    settings: "MatchSettings",
) -> "tuple[Configuration, ...]":
    from matcher.configuration import all_layers_fused, one_layer_each

    steps = {str(layer): timesteps for layer in layers}
    alone = one_layer_each(steps, settings)
    return alone if len(layers) == 1 else alone + all_layers_fused(steps, weightings, settings)
