"""`dualsd cache build | maps`, and what the other modules of the cache's care add."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli import cache_care, cache_export, cache_info
from cli.options import JsonOption, taking
from featstore.config import BuildConfig, MapsConfig

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


def build(config: BuildConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Encode every image of a dataset once (VAE) and keep latents and noisy latents.

    A second run does only what is missing; an image whose file changed is encoded anew. Of an existing store, dataset
    and model need not be named again. Any number of jobs may fill one store at once, each with a --part of the images;
    under torchrun each process takes one.
    """
    from cli.output import check_writable, write_json
    from cli.progress import TerminalProgress
    from featstore.pipeline.run_build import build, estimate_build

    check_writable(json)
    with TerminalProgress() as progress:
        if dry_run:
            write_json(json, asdict(estimate_build(config, progress)))
            return
        report = build(config, progress)
    counts = {name: value for name, value in asdict(report).items() if name not in ("bad", "bytes_written")}
    bad = [error.image_id for error in report.bad]
    write_json(json, {**counts, "bytes": report.bytes_written, "bad": bad})


def maps(config: MapsConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Run the UNet as far as each layer and keep its feature maps; latents and noise are made where they lack.

    One timestep per layer of the UNet; dino has none. `dualsd eval` makes the maps that it needs by itself; this is for
    making them beforehand. --part and torchrun divide the images as for `cache build`.
    """
    from cli.output import check_writable, write_json
    from cli.progress import TerminalProgress
    from featstore.pipeline.run_build import estimate_making_maps, make_maps

    check_writable(json)
    with TerminalProgress() as progress:
        if dry_run:
            write_json(json, estimate_making_maps(config, progress))
            return
        report = make_maps(config, progress)
    write_json(json, {name: value for name, value in asdict(report).items() if value is not None and name != "bad"})


app.command("build", epilog=BUILD_EXAMPLES)(taking(BuildConfig)(build))
app.command("maps", epilog=MAPS_EXAMPLES)(taking(MapsConfig)(maps))
app.command("info")(cache_info.info)
app.command("verify", epilog=cache_care.VERIFY_EXAMPLES)(cache_care.verify)
app.command("prune", epilog=cache_care.PRUNE_EXAMPLES)(cache_care.prune)
app.command("pack", epilog=cache_care.PACK_EXAMPLES)(cache_care.pack)
app.command("unpack")(cache_care.unpack)
app.command("export", epilog=cache_export.EXAMPLES)(cache_export.export)
