"""`dualsd cache build | maps`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import cache_care, cache_export, cache_info, option_values, options
from cli.layer_names import check_of_use, parse_names, timesteps_of, unet_layers
from cli.options import (
    BatchOption,
    DatasetOption,
    DeviceOption,
    DinoOption,
    DinoSizeOption,
    DtypeOption,
    EnsembleOption,
    FallbackOption,
    JsonOption,
    LayersOption,
    ModelOption,
    OnlySplitOption,
    PartOption,
    PromptOption,
    PromptsOption,
    RevisionOption,
    RootOption,
    SizeOption,
    SkipBadOption,
    StoredOption,
    StoreOption,
    TimestepsOption,
)
from featstore.backbones.dino_name import DINO

if TYPE_CHECKING:
    from featstore.pipeline.dino_maps import DinoCost
    from featstore.pipeline.needed import MapsCost
    from featstore.store.keys import StoreLocation

app = typer.Typer(no_args_is_help=True, help="Compute everything before the matching once, and keep it.")

DIVIDED = ("build", "maps")
"""Commands that processes of torchrun do together."""

BUILD_EXAMPLES = (
    "Examples:\n\n"
    "dualsd cache build\n\n"
    "dualsd cache build --dataset spair --root data/SPair-71k --model sd2-1 --store spair.zarr\n\n"
    "dualsd cache build --dataset pf-willow --root data/pf-willow --model demo --dry-run"
)
MAPS_EXAMPLES = (
    "Examples:\n\n"
    "dualsd cache maps --layers 2,3 --t 261,200\n\n"
    "dualsd cache maps --layers 2,dino --t 261 --dino-size 672\n\n"
    "dualsd cache maps --layers 2 --t 261 --prompt 'a photo of a {category}' --ensemble 8 --dry-run"
)

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")]


@app.callback()
def _check_processes(context: typer.Context) -> None:
    from cli.processes import check_divided

    check_divided(context.invoked_subcommand, DIVIDED)


@app.command("build", epilog=BUILD_EXAMPLES)
def build(
    dataset: DatasetOption = None,
    root: RootOption = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    store: StoreOption = options.DEFAULT_STORE,
    t: Annotated[
        str, typer.Option("--t", help="Timesteps to noise at, e.g. 261 or 50,200 or 50..400 or 50..400:25.")
    ] = "50,200,261,350",
    ensemble: Annotated[int, typer.Option("--ensemble", min=1, help="Noise draws a timestep; more can follow.")] = 1,
    size: SizeOption = None,
    latents: Annotated[
        str | None,
        typer.Option("--latents", help="Of the VAE's posterior: sample (seeded) or mean.", show_default="sample"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of all noise.", show_default="0")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch_size: BatchOption = 8,
    part: PartOption = None,
    skip_bad: SkipBadOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = None,
) -> None:
    """Encode every image of a dataset once (VAE) and keep latents and noisy latents.

    A second run does only what is missing; an image whose file changed is encoded anew. Of an existing store, dataset
    and model need not be named again. Any number of jobs may fill one store at once, each with a --part of the images;
    under torchrun each process takes one.
    """
    timesteps = tuple(dict.fromkeys(option_values.parse_timesteps(t)))
    from cli.output import check_writable, human_bytes, print_bad, print_disk, say, write_json
    from cli.processes import choose_compute, part_for, print_shares, progress_of, spell_part
    from featstore.backbones.latents import Latents
    from featstore.backbones.model import open_model
    from featstore.datasets.registry import open_dataset
    from featstore.pipeline import build as stage
    from featstore.pipeline.distributed import ONE, join_processes, launched
    from featstore.store.store import open_if_there
    from matcher.errors import InputError

    if latents not in (None, *(kind.value for kind in Latents)):
        raise InputError(f"--latents is sample or mean, not {latents!r}.")
    check_writable(json)
    known = open_if_there(store)
    kind = Latents.SAMPLE if latents is None else Latents(latents)
    if known is not None:
        # what was settled when the store was made need not be typed again
        header = known.header
        same_dataset = dataset in (None, header.dataset)
        dataset = dataset or header.dataset
        root = root or (Path(header.dataset_root) if same_dataset and header.dataset_root else None)
        model, revision = model or header.model_id, revision or (header.model_revision if model is None else None)
        size = header.image_size if size is None else size
        seed = header.seed if seed is None else seed
        kind = header.latents if latents is None else kind
    dataset = dataset or "demo"
    chosen = open_dataset(dataset, root)
    opened = open_model(option_values.model_for(dataset, model), revision)
    share = part_for(part, ONE if dry_run else launched())  # what is only said is said of all
    request = stage.BuildRequest(store, root, size, kind, seed or 0, timesteps, ensemble, share)
    compute = choose_compute(device, dtype, batch_size)
    processes = join_processes()
    side = opened.image_size if size is None else size
    say(f"model {opened.location.id}, images of {side} pixels; noise: {opened.schedule.spell()}")
    with progress_of(processes) as progress:
        if dry_run:
            cost = stage.estimate(chosen, opened, request, progress)
            say(f"{cost.images} images, {cost.encode} to encode (VAE passes), {cost.noise} noisy latents to make")
            say(f"{human_bytes(cost.bytes_to_write)} in {cost.files_to_write} files to write")
            print_disk(store, cost.bytes_to_write)
            write_json(json, asdict(cost))
            return
        # what cannot be read is said once all processes are done
        reports = processes.gather(stage.build(chosen, opened, request, compute, True, progress))
    report = stage.together(reports)
    if report.bad and not skip_bad:
        raise report.bad[0]
    stale = f", {report.stale} had changed" if report.stale else ""
    print_shares([own.images for own in reports])
    say(
        f"{store}: {spell_part(part)}{report.images} images of {chosen.name}, {report.encoded} encoded, "
        f"{report.skipped} skipped{stale}"
    )
    say(
        f"{report.noised} noisy latents at t = {', '.join(map(str, timesteps))}; "
        f"{human_bytes(report.bytes_written)} written in {report.seconds:.1f} s"
    )
    print_bad(report.bad)
    write_json(
        json,
        {
            "images": report.images,
            "encoded": report.encoded,
            "skipped": report.skipped,
            "bytes": report.bytes_written,
            "seconds": report.seconds,
            "stale": report.stale,
            "noised": report.noised,
            "bad": [error.image_id for error in report.bad],
        },
    )


@app.command("maps", epilog=MAPS_EXAMPLES)
def maps(
    store: StoreOption = options.DEFAULT_STORE,
    root: RootOption = None,
    layers: LayersOption = None,
    t: TimestepsOption = None,
    prompt: PromptOption = None,
    prompts: PromptsOption = None,
    fallback: FallbackOption = None,
    ensemble: EnsembleOption = options.DEFAULT_ENSEMBLE,
    dino: DinoOption = None,
    dino_size: DinoSizeOption = None,
    split: OnlySplitOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    stored: StoredOption = options.DEFAULT_STORED,
    batch_size: BatchOption = 8,
    part: PartOption = None,
    skip_bad: SkipBadOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = None,
) -> None:
    """Run the UNet as far as each layer and keep its feature maps; latents and noise are made where they lack.

    One timestep a layer of the UNet; dino has none. `dualsd eval` makes the maps that it needs by itself; this is for
    making them beforehand. --part and torchrun divide the images as for `cache build`.
    """
    typed = None if layers is None else parse_names(layers)
    check_of_use(
        typed,
        {"--dino": dino, "--dino-size": dino_size},
        {"--t": t, "--prompt": prompt, "--prompts": prompts, "--fallback": fallback},
    )
    from cli.output import check_writable, print_bad, print_dino_shape, print_shapes, say, write_json
    from cli.processes import choose_compute, part_for, print_shares, progress_of, spell_part
    from featstore.pipeline.dino_maps import AskedDino, estimate_dino_maps, find_dino, require_dino_maps
    from featstore.pipeline.distributed import ONE, join_processes, launched
    from featstore.pipeline.evaluate import choose_pairs, images_of, unreadable
    from featstore.pipeline.images import check_unchanged
    from featstore.pipeline.needed import estimate_maps, model_of, require_maps
    from featstore.pipeline.plan import extractor_of
    from featstore.pipeline.prompt_choice import TypedPrompts, choose_for_store, layers_of
    from featstore.store.store import open_store

    kept_as = option_values.parse_stored(stored)
    check_writable(json)
    opened = open_store(store)
    dataset = option_values.dataset_of(opened, root)
    share = part_for(part, ONE if dry_run else launched())  # what is only said is said of all
    compute = choose_compute(device, dtype, batch_size)
    images = share.of(opened.images.ids if split is None else images_of(choose_pairs(dataset, split, ())))
    rows = [opened.images.row(image) for image in images]
    choice = choose_for_store(
        opened, TypedPrompts(None if typed is None else unet_layers(typed), t, prompt, prompts, fallback)
    )
    names = typed or tuple(map(str, layers_of(choice, None)))
    numbers = unet_layers(names)
    if numbers:
        say(choice.line)
    choice.check_categories({opened.images.categories[row] for row in rows})
    text = choice.of_images("cache maps")
    usual = option_values.TEXT_TIMESTEPS if choice.learned is None else option_values.LEARNED_TIMESTEPS
    steps = timesteps_of(names, t, usual)
    wanted = [(int(name), step) for name, step in zip(names, steps, strict=True) if step is not None]
    say(f"model {opened.header.model_id}, images of {opened.header.image_size} pixels")
    asked = AskedDino(dino, dino_size)
    processes = join_processes()
    with progress_of(processes) as progress:
        check_unchanged(opened, dataset, images, progress)
        cost = estimate_maps(opened, rows, wanted, extractor_of(opened, text, ensemble, compute, kept_as), text)
        if cost.passes:
            model = model_of(opened)
            print_shapes(model.shape(layer, opened.header.image_size) for layer in numbers)
        if dry_run:
            patches_cost = None
            if DINO in names:
                found = find_dino(opened, asked, compute, kept_as)
                print_dino_shape(found.extractor, found.map_shape)
                patches_cost = estimate_dino_maps(opened, rows, found)
            write_json(json, _print_cost(store, len(rows), cost, patches_cost))
            return
        patches = None
        if DINO in names:
            patches = require_dino_maps(opened, dataset, rows, asked, compute, progress, kept_as)
            if patches.images:
                print_dino_shape(patches.extractor, patches.shape)
        made_maps = require_maps(opened, dataset, rows, wanted, text, ensemble, compute, progress, kept_as)
        own_bad = unreadable(made_maps.bad, () if patches is None else patches.bad)
        own_passes = made_maps.images_times_timesteps * ensemble, 0 if patches is None else patches.images
        shares = processes.gather((len(rows), own_passes, own_bad))
    bad = unreadable(*(theirs for _, _, theirs in shares))
    if bad and not skip_bad:
        raise bad[0]
    counts = [count for count, _, _ in shares]
    passes, dino_passes = (sum(made) for made in zip(*(made for _, made, _ in shares), strict=True))
    print_shares(counts)
    whose = f"{spell_part(part)}{sum(counts)} images"
    report: dict[str, Any] = {"images": sum(counts)}
    if numbers:
        say(f"{whose}: {passes} UNet passes made, the rest was there; extractor {made_maps.extractor.key}")
        report |= {"passes": passes, "extractor": made_maps.extractor.key}
    if patches is not None:
        key = patches.extractor.key
        say(f"{whose}: {dino_passes} DINOv2 passes made, the rest was there; extractor {key}")
        report |= {"dino_passes": dino_passes, "dino_extractor": key}
    print_bad(bad)
    write_json(json, report)


def _print_cost(store: "StoreLocation", images: int, cost: "MapsCost", patches: "DinoCost | None") -> dict[str, Any]:
    """What making maps would take, printed and for JSON. patches: None where `dino` is not among the layers."""
    from cli.output import human_bytes, print_disk, say

    passes = f"{cost.passes} UNet passes"
    total = asdict(cost)
    if patches is not None:
        passes += f", {patches.images} DINOv2 passes"
        total |= {
            "dino_passes": patches.images,
            "bytes_to_write": cost.bytes_to_write + patches.bytes_to_write,
            "files_to_write": cost.files_to_write + patches.images,
        }
    say(f"{images} images: {cost.encode} to encode (VAE passes), {cost.noise} noisy latents to make, {passes}")
    say(f"{human_bytes(total['bytes_to_write'])} in {total['files_to_write']} files to write")
    print_disk(store, total["bytes_to_write"])
    return total


app.command("info")(cache_info.info)
app.command("verify", epilog=cache_care.VERIFY_EXAMPLES)(cache_care.verify)
app.command("prune", epilog=cache_care.PRUNE_EXAMPLES)(cache_care.prune)
app.command("pack", epilog=cache_care.PACK_EXAMPLES)(cache_care.pack)
app.command("unpack")(cache_care.unpack)
app.command("export", epilog=cache_export.EXAMPLES)(cache_export.export)
