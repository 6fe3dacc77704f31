"""`dualsd cache`: a store made, looked at, kept whole and small, and its maps written for other programs."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.help import Command, Group
from cli.options import DryRunOption, JsonOption, examples, taking
from cli.output import print_table, say, write_json
from cli.progress import TerminalProgress
from featstore.config import BuildConfig, ExportConfig, MapsConfig
from featstore.kept_config import PruneConfig, StoreConfig, VerifyConfig
from featstore.plain_text import human_bytes
from featstore.store.keys import parse_location
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.care import Checked, Dropped
    from featstore.pipeline.recompute import Recomputed

app = typer.Typer(cls=Group, no_args_is_help=True, help="Compute everything before the matching once, and keep it.")

DIVIDED = ("build", "maps")
"""Commands that processes of torchrun do together."""
BUILD_EXAMPLES = examples(
    "dualsd cache build",
    "dualsd cache build --dataset spair --root data/SPair-71k --model sd2-1 --store spair.zarr",
    "dualsd cache build --dataset pf-willow --root data/pf-willow --model demo --dry-run",
    "dualsd cache build --store spair.zarr          (what is new or changed since)",
    "dualsd cache build --store spair.zarr --part auto --no-sync",
)
MAPS_EXAMPLES = examples(
    "dualsd cache maps --layers 2,3 --t 261,200",
    "dualsd cache maps --layers 2,dino --t 261 --dino-size 672",
    "dualsd cache maps --layers 2,3 --t 261,200 --encoding bitround4",
    "dualsd cache maps --layers 2 --t 261 --prompt 'a photo of a {category}' --ensemble 8 --dry-run",
)
VERIFY_EXAMPLES = examples(
    "dualsd cache verify", "dualsd cache verify --recompute 16", "dualsd cache verify --store spair.zarr --drop"
)
PRUNE_EXAMPLES = examples(
    "dualsd cache prune --layers 3 --t 350 --dry-run",
    "dualsd cache prune --prompt 'a photo of a {category}' --older-than 30d",
    "dualsd cache prune --noisy --t 350",
    "dualsd cache prune --gone",
)
PACK_EXAMPLES = examples("dualsd cache pack", "dualsd cache pack --store spair.zarr --json packed.json")
EXPORT_EXAMPLES = examples(
    "dualsd cache export --out maps.safetensors --split test",
    "dualsd eval --features maps.safetensors --dataset demo --size 128 --layers 2,3 --weights 0.8,0.6",
    "dualsd cache export --layers 2 --t 261 --layout sd4match --out featmaps.pt",
    "dualsd cache export --layers 2 --t 261 --layout dift --out spair_ft --split test",
)
SHOWN = 20
"""Bad rows that are printed; --json holds them all."""


@app.callback()
def _check_processes(context: typer.Context) -> None:
    from featstore.pipeline.distributed import check_divided

    check_divided(context.invoked_subcommand, DIVIDED)


@app.command("build", cls=Command, epilog=BUILD_EXAMPLES)
@taking(BuildConfig)
def _build(config: BuildConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Encode every image of a dataset once (VAE) and keep latents and noisy latents.

    A second run does only what is missing: images that are new or whose file changed are encoded, and those that are no
    longer there are named; their rows stay until `dualsd cache prune --gone`. Of an existing store, dataset and model
    need not be named again. Any number of jobs may fill one store at once, each with a --part of the images;
    under torchrun each process takes one.
    """
    with TerminalProgress() as progress:
        from featstore.pipeline.run_build import build, estimate_build

        if dry_run:
            write_json(json, asdict(estimate_build(config, progress)))
            return
        report = build(config, progress)
    counts = {name: value for name, value in asdict(report).items() if name not in ("bad", "bytes_written")}
    bad = [error.image_id for error in report.bad]
    write_json(json, {**counts, "bytes": report.bytes_written, "bad": bad})


@app.command("maps", cls=Command, epilog=MAPS_EXAMPLES)
@taking(MapsConfig)
def _maps(config: MapsConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Run the UNet as far as each layer and keep its feature maps; latents are made where they lack.

    One timestep per layer of the UNet; dino has none. `dualsd eval` makes the maps that it needs by itself; this is for
    making them beforehand. --part and torchrun divide the images as for `cache build`.
    """
    with TerminalProgress() as progress:
        from featstore.pipeline.run_build import estimate_making_maps, make_maps

        write_json(json, estimate_making_maps(config, progress) if dry_run else make_maps(config, progress).to_json())


@app.command("info", cls=Command)
@taking(StoreConfig)
def _info(config: StoreConfig, json: JsonOption = None) -> None:
    """What a store holds: made from what, which arrays, how complete, how large."""
    from featstore.store.store import open_store, summarise
    from matcher.configuration import Pad

    opened = open_store(parse_location(config.store))
    header, arrays = opened.header, summarise(opened)
    root = f" in {header.dataset_root}" if header.dataset_root else ""
    padded = ", padded" if header.pad is Pad.SQUARE else ""
    say(
        f"{config.store}: {len(opened.images.rows)} images of {header.dataset}{root}, {header.image_size} pixels a side"
        f"{padded}"
    )
    say(
        f"model {header.model_id}{f' at {header.model_revision}' if header.model_revision else ''}, fingerprint "
        f"{header.model_fingerprint[:8]}; latents {header.latents.value}, seed {header.seed}; made by dualsd "
        f"{header.creator}"
    )
    try:
        noise = header.schedule.spell()
    except InputError as error:  # of a store that can only be looked at
        noise = str(error)
    say(f"noise: {noise}" + (f"; latents shifted by {header.latent_shift:g}" if header.latent_shift else ""))
    rows = [
        [
            array.path,
            array.what,
            "x".join(map(str, array.row_shape)),
            f"{array.present}/{array.rows}",
            f"{100 * array.present // max(array.rows, 1)} %",  # 100 % is all of them
            human_bytes(array.bytes),
        ]
        for array in arrays
    ]
    print_table("arrays", ["array", "what", "a row", "rows", "complete", "size"], rows, left_columns=2)
    for name in opened.outdated():
        say(f"maps/{name}: maps of 8 bits, which are not read any more: `dualsd cache prune --extractor {name}`")
    if opened.images.gone:
        say(f"{len(opened.images.gone)} rows of images that are gone or changed: `dualsd cache prune --gone`")
    total = sum(array.bytes for array in arrays)
    say(f"{human_bytes(total)} in {sum(array.present for array in arrays)} rows")
    described = [{name: value for name, value in asdict(array).items() if name != "what"} for array in arrays]
    write_json(json, {**header.to_attributes(), "images": len(opened.images.rows), "arrays": described})


@app.command("verify", cls=Command, epilog=VERIFY_EXAMPLES)
@taking(VerifyConfig)
def _verify(config: VerifyConfig, json: JsonOption = None) -> None:
    """Read all that a store holds and hold it against its checksums, and noisy latents against the model's betas.

    Damaged rows and metadata, and files that killed runs left, are listed. A row that is missing is no damage: whatever
    needs it makes it. Without --drop damage ends in exit code 2. Where latents go, their noisy latents and maps go with
    them. What is made again comes out as it was where the batch size is the same; maps of learned prompts need their
    run under ./runs.

    Checksums agree with rows of another image, an edited header or weights that changed. --recompute N finds those:
    all noisy latents are compared with the formula, the model's files are hashed anew, images are read anew, and N rows
    of each array go through the model again. Half of the N are those that fit their image's latents least, the rest
    is chosen at random.
    """
    with TerminalProgress() as progress:
        from featstore.pipeline.care import check

        checked = check(config, progress)
    if checked.anew is not None:
        _print_recomputed(checked.anew)
    _print_found(checked)
    with TerminalProgress() as progress:
        dropped = checked.drop(progress) if config.drop else None
    if dropped is not None:
        _print_dropped(checked, dropped)
    write_json(json, checked.to_json() | ({} if dropped is None else asdict(dropped)))
    checked.require_sound(dropped is not None)


@app.command("prune", cls=Command, epilog=PRUNE_EXAMPLES)
@taking(PruneConfig)
def _prune(config: PruneConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Remove maps that meet all that is said of them, or noisy latents, or all rows of images that are gone.

    Latents of images that are there always stay, so that maps and noise can be made again without the VAE.
    """
    from featstore.pipeline.prune import choose, remove
    from featstore.store.care import drop_rows, gone_rows
    from featstore.store.store import open_store

    opened = open_store(parse_location(config.store))
    if config.gone:
        gone = gone_rows(opened)
        if not dry_run:
            with TerminalProgress() as progress:
                drop_rows(opened, gone, progress)
        say(f"{len(gone)} rows of {len(opened.images.gone)} images {'would be deleted' if dry_run else 'deleted'}")
        write_json(json, {"rows": len(gone), "images": len(opened.images.gone), "dry_run": dry_run})
        return
    chosen = choose(opened, config)
    if chosen:
        rows = [[array.path, array.what, array.files, human_bytes(array.bytes)] for array in chosen]
        print_table("arrays", ["array", "prompt", "files", "size"], rows, left_columns=2)
    if not dry_run:
        with TerminalProgress() as progress:
            remove(opened, chosen, progress)
    size, files = sum(array.bytes for array in chosen), sum(array.files for array in chosen)
    say(f"{human_bytes(size)} in {files} files of {len(chosen)} array(s) {'would be freed' if dry_run else 'freed'}")
    removed = [array.path for array in chosen]
    write_json(json, {"arrays": removed, "bytes": size, "files": files, "dry_run": dry_run})


@app.command("pack", cls=Command, epilog=PACK_EXAMPLES)
@taking(StoreConfig)
def _pack(config: StoreConfig, json: JsonOption = None) -> None:
    """Put the rows of finished arrays into few large files, which are read as before.

    For file systems that count files. What has to add rows to a packed array (more noise draws, an image that is new or
    changed) unpacks it first; pack again afterwards. Until an array is done it needs its room a second time.
    """
    from featstore.store.pack import pack
    from featstore.store.store import open_store

    with TerminalProgress() as progress:
        outcome = pack(open_store(parse_location(config.store)), progress)
    rows = [(own.path, own.why, human_bytes(own.bytes), own.files_before, own.files_after) for own in outcome]
    print_table("arrays", ["array", "left as it was", "size", "files before", "files now"], rows, left_columns=2)
    saved = sum(array.files_before - array.files_after for array in outcome)
    packed = [array.path for array in outcome if not array.why]
    say(f"{len(packed)} array(s) packed, {saved} files saved")
    left = {array.path: array.why for array in outcome if array.why}
    write_json(json, {"packed": packed, "files_saved": saved, "left": left})


@app.command("unpack", cls=Command)
@taking(StoreConfig)
def _unpack(config: StoreConfig, json: JsonOption = None) -> None:
    """Give every row of packed arrays a file of its own again."""
    from featstore.store.pack import unpack
    from featstore.store.store import open_store

    opened = open_store(parse_location(config.store))
    with TerminalProgress() as progress:
        unpacked = unpack(opened, opened.array_paths(), progress)
    say(f"{len(unpacked)} array(s) unpacked")
    write_json(json, {"unpacked": unpacked})


@app.command("export", cls=Command, epilog=EXPORT_EXAMPLES)
@taking(ExportConfig)
def _export(config: ExportConfig, json: JsonOption = None) -> None:
    """Write maps for other programs: what eval --features reads, or what SD4Match's and DIFT's code holds.

    Maps that the store lacks are made first. The .pt layouts hold one layer, in float32; the safetensors file holds
    any, in float16, as stored. Images are as `cache build` resized them.
    """
    with TerminalProgress() as progress:
        from featstore.pipeline.export import export_maps

        write_json(json, export_maps(config, progress).to_json())


def _print_found(checked: "Checked") -> None:
    found = checked.found
    rows = [
        [
            f"{array.path} (packed)" if array.packed else array.path,
            f"{array.present}/{array.rows}",
            human_bytes(array.bytes),
            len(array.bad),
        ]
        for array in found.arrays
    ]
    print_table("arrays", ["array", "rows", "size", "damaged"], rows)
    if found.bad:
        shown = [[bad.array, ",".join(map(str, bad.row)), bad.image, bad.why] for bad in found.bad[:SHOWN]]
        print_table("damaged rows", ["array", "row", "image", "what is wrong"], shown, left_columns=4)
        if len(found.bad) > SHOWN:
            say(f"and {len(found.bad) - SHOWN} more: --json FILE lists all")
    for damaged in found.metadata:
        say(f"damaged metadata of {damaged.path}: {damaged.why}")
    if found.left_over:
        size = human_bytes(sum(own.bytes for own in found.left_over))
        say(f"{len(found.left_over)} file(s) left over by killed runs, {size}: {found.left_over[0].path} ...")
    present = sum(array.present for array in found.arrays)
    say(f"{checked.store.path}: {present} rows read, {len(found.bad)} of them damaged")


def _print_dropped(checked: "Checked", dropped: "Dropped") -> None:
    deleted, damaged = sum(dropped.rows.values()), len({(bad.array, bad.row) for bad in checked.found.bad})
    if deleted:
        more = f", and {deleted - damaged} more that were damaged or made of them" if deleted > damaged else ""
        say(f"{damaged} damaged row(s) deleted{more}")
    for note in dropped.notes:
        say(note)
    if dropped.commands:
        say("These commands make them again:")
    for command in dict.fromkeys(dropped.commands.values()):
        say(f"# {', '.join(path for path, own in dropped.commands.items() if own == command)}", command)


def _print_recomputed(anew: "Recomputed") -> None:
    rows = [
        (own.path, own.rows, f"{own.relative:.2g}", "" if own.cell is None else f"{own.cell:.2g}", len(own.bad))
        for own in anew.arrays
        if not own.skipped
    ]
    print_table("made anew", ["array", "rows", "largest deviation", "of a cell (1 - cosine)", "others"], rows)
    for own in anew.arrays:
        if own.skipped:
            say(f"{own.path} was not compared: {own.skipped}")
    if anew.unreadable:
        say(f"{anew.unreadable} image(s) could not be read; their rows were not compared")
