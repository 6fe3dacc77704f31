"""`dualsd cache verify | prune | pack | unpack`: a store kept whole, and small."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import option_values, options
from cli.options import BatchOption, DeviceOption, JsonOption, RootOption, StoreOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.care import Dropped
    from featstore.pipeline.recompute import Recomputed
    from featstore.prompts.base import LearnedPrompts
    from featstore.store.keys import StoreLocation
    from featstore.store.store import Store
    from featstore.store.verify import Verification

VERIFY_EXAMPLES = (
    "Examples:\n\n"
    "dualsd cache verify\n\n"
    "dualsd cache verify --recompute 16\n\n"
    "dualsd cache verify --store spair.zarr --drop"
)
PRUNE_EXAMPLES = (
    "Examples:\n\n"
    "dualsd cache prune --layers 3 --t 350 --dry-run\n\n"
    "dualsd cache prune --prompt 'a photo of a {category}' --older-than 30d\n\n"
    "dualsd cache prune --noisy --t 350"
)
PACK_EXAMPLES = "Examples:\n\ndualsd cache pack\n\ndualsd cache pack --store spair.zarr --json packed.json"

SHOWN = 20
"""Bad rows that are printed; --json holds them all."""


def verify(
    store: StoreOption = options.DEFAULT_STORE,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete what is damaged, and print the commands that make it again.")
    ] = False,
    recompute: Annotated[
        str | None,
        typer.Option(
            "--recompute",
            metavar="N",
            help="Rows of each array to make anew from the images and compare, or all; noisy latents are always all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the choice of rows for --recompute.")] = 0,
    root: RootOption = None,
    device: DeviceOption = "auto",
    batch_size: BatchOption = 8,
    json: JsonOption = None,
) -> None:
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
    from cli.output import check_writable, write_json
    from cli.progress import TerminalProgress
    from featstore.errors import StoreError
    from featstore.pipeline.care import drop as drop_damage
    from featstore.pipeline.care import rows_at_hand
    from featstore.pipeline.noisy import with_maps_made_of, with_noise_checked
    from featstore.store import verify as care
    from featstore.store.store import open_store

    count = None if recompute is None else option_values.parse_count(recompute, "--recompute")
    check_writable(json)
    opened = open_store(store)
    dropped: Dropped | None = None
    anew: Recomputed | None = None
    with TerminalProgress() as progress:
        expected = rows_at_hand(opened, progress)
        found = care.verify(opened, progress, expected)
        if recompute is None:
            found = with_noise_checked(opened, found, progress)
        else:
            from featstore.pipeline.recompute import recompute as make_anew

            dataset = option_values.dataset_of(opened, root)
            compute = option_values.choose_compute(device, "auto", batch_size)
            runs = [*_learned_here(opened).values()]
            anew = make_anew(opened, dataset, found, runs, count, seed, compute, progress)
            found = with_maps_made_of(opened, anew.added_to(found), [bad for own in anew.arrays for bad in own.bad])
            _print_recomputed(anew)
            # else all of a store would be deleted for a header that is wrong
            drop = drop and not anew.nothing_fits
        _print_found(opened, found)
        if drop:
            dropped = drop_damage(opened, found, expected, _learned_here(opened), progress)
    if dropped is not None:
        _print_dropped(found, dropped)
    written = _verification_json(store, found) | ({} if dropped is None else asdict(dropped))
    write_json(json, written | ({} if anew is None else _recomputed_json(anew)))
    if anew is not None and anew.images:
        first = anew.images[0]
        raise StoreError(
            f"Of {len(anew.images)} image(s) of {store} the table of images is not right, e.g. of {first.image!r} "
            f"{first.why}: run `dualsd cache build`, which writes it and what was made of those images anew."
        )
    if anew is not None and anew.nothing_fits:
        raise StoreError(
            f"Of the latents or the noisy latents of {store} none that was compared fits: rather the seed or the kind "
            "of latents that its header (zarr.json) names are not those that it was made with. Nothing was changed: "
            "set the header right, or remove the noisy latents with `dualsd cache prune --noisy`."
        )
    if not found.sound and dropped is None:
        raise StoreError(
            f"{len(found.bad)} damaged row(s) and {len(found.metadata)} damaged metadata file(s) in {store}: --drop "
            "deletes them and prints the commands that make them again."
        )


def prune(
    store: StoreOption = options.DEFAULT_STORE,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Maps made with this text prompt.")] = None,
    extractor: Annotated[
        str | None, typer.Option("--extractor", metavar="KEY", help="Maps of the extractors whose key begins so.")
    ] = None,
    layers: Annotated[str | None, typer.Option("--layers", "--layer", help="Maps of these layers, e.g. 2,3.")] = None,
    t: Annotated[str | None, typer.Option("--t", help="At these timesteps, e.g. 261,200 or 50..400.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Of which no row is younger, e.g. 12h, 30d, 2w.")
    ] = None,
    noisy: Annotated[bool, typer.Option("--noisy", help="Noisy latents instead of maps.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and do nothing.")] = False,
    json: JsonOption = None,
) -> None:
    """Remove maps that meet all that is said of them, or noisy latents.

    Latents stay always, and so whatever is removed can be made again without the VAE.
    """
    from cli.output import check_writable, human_bytes, print_table, say, write_json
    from featstore.store import prune as care
    from featstore.store.store import open_store

    check_writable(json)
    chosen_layers = None if layers is None else option_values.parse_layers(layers)
    timesteps = None if t is None else option_values.parse_timesteps(t)
    age = None if older_than is None else care.parse_age(older_than)
    if noisy and (prompt, extractor, layers) != (None, None, None):
        raise InputError("--noisy goes with --t and --older-than: noisy latents have no prompt, extractor or layer.")
    opened = open_store(store)
    if noisy:
        chosen = care.choose_noisy(opened, care.NoisyCriteria(timesteps, age))
    else:
        chosen = care.choose_maps(opened, care.MapCriteria(prompt, extractor, chosen_layers, timesteps, age))
    if chosen:
        print_table(
            "arrays",
            ["array", "prompt", "files", "size"],
            [[array.path, array.what, str(array.files), human_bytes(array.bytes)] for array in chosen],
            left_columns=2,
        )
    if not dry_run:
        care.prune(opened, chosen)
    size, files = sum(array.bytes for array in chosen), sum(array.files for array in chosen)
    say(f"{human_bytes(size)} in {files} files of {len(chosen)} array(s) {'would be freed' if dry_run else 'freed'}")
    removed = [array.path for array in chosen]
    write_json(json, {"arrays": removed, "bytes": size, "files": files, "dry_run": dry_run})


def pack(store: StoreOption = options.DEFAULT_STORE, json: JsonOption = None) -> None:
    """Put the rows of finished arrays into few large files, which are read as before.

    For file systems that count files. What has to change a packed array (more noise draws, an image that changed)
    unpacks it first; pack again afterwards. Until an array is done it needs its room a second time.
    """
    from cli.output import check_writable, human_bytes, print_table, say, write_json
    from cli.progress import TerminalProgress
    from featstore.store.pack import pack as pack_store
    from featstore.store.store import open_store

    check_writable(json)
    opened = open_store(store)
    with TerminalProgress() as progress:
        outcome = pack_store(opened, progress)
    print_table(
        "arrays",
        ["array", "left as it was", "size", "files before", "files now"],
        [
            [array.path, array.why, human_bytes(array.bytes), str(array.files_before), str(array.files_after)]
            for array in outcome
        ],
        left_columns=2,
    )
    saved = sum(array.files_before - array.files_after for array in outcome)
    packed = [array.path for array in outcome if not array.why]
    say(f"{len(packed)} array(s) packed, {saved} files saved")
    write_json(
        json, {"packed": packed, "files_saved": saved, "left": {own.path: own.why for own in outcome if own.why}}
    )


def unpack(store: StoreOption = options.DEFAULT_STORE, json: JsonOption = None) -> None:
    """Give every row of packed arrays a file of its own again."""
    from cli.output import check_writable, say, write_json
    from cli.progress import TerminalProgress
    from featstore.store.pack import unpack as unpack_store
    from featstore.store.store import open_store

    check_writable(json)
    opened = open_store(store)
    with TerminalProgress() as progress:
        unpacked = unpack_store(opened, opened.array_paths(), progress)
    say(f"{len(unpacked)} array(s) unpacked")
    write_json(json, {"unpacked": unpacked})


def _print_found(store: "Store", found: "Verification") -> None:
    from cli.output import human_bytes, print_table, say

    print_table(
        "arrays",
        ["array", "rows", "size", "damaged"],
        [
            [
                f"{array.path} (packed)" if array.packed else array.path,
                f"{array.present}/{array.rows}",
                human_bytes(array.bytes),
                str(len(array.bad)),
            ]
            for array in found.arrays
        ],
    )
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
    say(f"{store.path}: {present} rows read, {len(found.bad)} of them damaged")


def _print_dropped(found: "Verification", dropped: "Dropped") -> None:
    from cli.output import say

    deleted, damaged = sum(dropped.rows.values()), len({(bad.array, bad.row) for bad in found.bad})
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
    from cli.output import print_table, say

    print_table(
        "made anew",
        ["array", "rows", "largest deviation", "of a cell (1 - cosine)", "others"],
        [
            [
                own.path,
                str(own.rows),
                f"{own.relative:.2g}",
                "" if own.cell is None else f"{own.cell:.2g}",
                str(len(own.bad)),
            ]
            for own in anew.arrays
            if not own.skipped
        ],
    )
    for own in anew.arrays:
        if own.skipped:
            say(f"{own.path} was not compared: {own.skipped}")
    if anew.unreadable:
        say(f"{anew.unreadable} image(s) could not be read; their rows were not compared")


def _learned_here(store: "Store") -> "dict[Path, LearnedPrompts]":
    """The prompts of all runs under ./runs that were trained on this store, by what `--prompts` takes for them."""
    from featstore.errors import PromptError
    from featstore.prompts.saved import load_prompts
    from featstore.tuning.run_folder import runs_newest_first

    found = {}
    for run in runs_newest_first(store, on_damage=lambda _: None):
        for path in (run.path, run.last_prompts):
            try:
                found[path] = load_prompts(path)
            except PromptError:  # one that is damaged is no prompt that maps can be made with
                continue
    return found


def _verification_json(store: "StoreLocation", found: "Verification") -> dict[str, Any]:
    arrays = [asdict(array) | {"damaged": len(array.bad)} for array in found.arrays]
    return {
        "store": str(store),
        "sound": found.sound,
        "arrays": [{name: value for name, value in array.items() if name != "bad"} for array in arrays],
        "bad": [asdict(bad) for bad in found.bad],
        "metadata": [asdict(damaged) for damaged in found.metadata],
        "left_over": [asdict(own) for own in found.left_over],
    }


def _recomputed_json(anew: "Recomputed") -> dict[str, Any]:
    arrays = [asdict(own) | {"others": [bad.row for bad in own.bad]} for own in anew.arrays]
    return {
        "recomputed": [{name: value for name, value in own.items() if name != "bad"} for own in arrays],
        "images": [{"image": bad.image, "why": bad.why} for bad in anew.images],
    }
