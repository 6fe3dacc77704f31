"""`dualsd train`: learn prompts, and nothing else, from the cache."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values, options
from cli.options import AlignOption, DeviceOption, JsonOption, RootOption, StoreLocation, WeightsOption
from featstore.store.keys import parse_location
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.tuning.settings import TuningSettings

EXIT_INTERRUPTED = 130

EXAMPLES = (
    "Examples:\n\n"
    "dualsd train --mode class\n\n"
    "dualsd train --store spair.zarr --mode single --layers 2 --t 261          (SD4Match)\n\n"
    "dualsd train --store spair.zarr --mode cpm --steps 11853 --dtype bfloat16 --gradient-checkpointing\n\n"
    "dualsd train --resume runs/class-2+3-001\n\n"
    "torchrun --nproc_per_node 4 --no-python dualsd train --store spair.zarr --mode class"
)


def train(
    mode: Annotated[
        str | None, typer.Option("--mode", help="single (one prompt), class (one a category) or cpm (one a pair).")
    ] = None,
    store: Annotated[
        StoreLocation | None,
        typer.Option(
            "--store",
            metavar="PLACE",
            parser=parse_location,
            help="The store's folder, or s3://bucket/prefix.",
            show_default="dualsd.zarr, or the run's own",
        ),
    ] = None,
    root: RootOption = None,
    layers: Annotated[str | None, typer.Option("--layers", help="One layer or more.", show_default="2,3")] = None,
    t: Annotated[
        str | None,
        typer.Option("--t", help="A timestep a layer to learn at.", show_default="261 for layer 2, 350 for layer 3"),
    ] = None,
    weights: WeightsOption = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Of the optimiser.", show_default="the published epochs; on the demo 300"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Pairs per optimiser step.", show_default="9; on the demo 3"),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option("--accumulate", min=1, help="Parts a batch is taken in.", show_default="1")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="Of the vectors.", show_default="0.01")] = None,
    network_lr: Annotated[
        float | None, typer.Option("--network-lr", min=0, help="Of a cpm's linear maps.", show_default="0.001")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", min=1, help="N, learned vectors a prompt.", show_default="75")
    ] = None,
    kernel: Annotated[
        int | None,
        typer.Option("--kernel", help="Of the loss, in cells.", show_default="7 on maps of 48 cells and more, else 3"),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option("--noise", help="cached (a draw of the store's) or fresh each step.", show_default="cached"),
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=1, help="Cached noise draws a timestep.", show_default="4")
    ] = None,
    val_every: Annotated[
        int | None, typer.Option("--val-every", min=1, help="Steps between validations.", show_default="a tenth of all")
    ] = None,
    val_pairs: Annotated[
        int | None,
        typer.Option(
            "--val-pairs", min=1, help="Pairs of val, a fixed choice.", show_default="500; for cpm on the demo 100"
        ),
    ] = None,
    val_t: Annotated[
        str | None, typer.Option("--val-t", help="A timestep a layer to validate at.", show_default="as --t")
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.", show_default="100")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option("--geometry", help="Pixel to cell: corners or half-pixel.", show_default="corners")
    ] = None,
    upsample_align: AlignOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of prompts and batches.", show_default="0")] = None,
    dino: Annotated[
        str | None,
        typer.Option("--dino", help="For cpm: a folder or hub name.", show_default="the model's own, or DINOv2-B/14"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the run's folder.", show_default="<mode>-<layers>-<number>")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the run's folder.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped or killed.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Precision: float32, float16, bfloat16, float64.", show_default="float32 on a CPU"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a pass in validation.")] = 8,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Half the memory, a third more time.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the networks first (torch.compile).")] = False,
    json: JsonOption = None,
) -> None:
    """Learn prompts for one layer (SD4Match) or for two (the dual method), a set a layer, trained together.

    Steps never call the VAE: latents and noisy latents come from the store, which is filled first. `dualsd eval`,
    `grid` and `match` use the prompts with --prompts RUN, and take those of the newest finished run where neither
    --layers, --t nor --prompt is typed and it has the layers 2,3.
    """
    from cli.command_line import typed_command
    from cli.output import check_writable, print_shapes, say, write_json

    check_writable(json)
    if resume is None and mode is None:
        raise InputError("Say what is to be learned: --mode single, class or cpm.")
    if resume is not None and name is not None:
        raise InputError("--name goes with a new run: one that is resumed keeps its own.")
    option_values.check_typed(None, None, weights)
    from cli.progress import TerminalProgress
    from cli.train_processes import open_processes, run_folder, training_compute, when_main
    from cli.train_settings import check_resumed, published, typed_settings, with_typed
    from featstore.pair_list import describe_list, note_oddities, spell_list
    from featstore.pipeline.evaluate import choose_pairs, images_of, in_resized_frame
    from featstore.pipeline.grid import choose_some
    from featstore.pipeline.images import check_unchanged
    from featstore.pipeline.needed import model_of
    from featstore.progress import Silent
    from featstore.store.store import open_store
    from featstore.tuning.prepare import Sparing, fill_caches, prepare
    from featstore.tuning.run_folder import create_run, identity, resume_run
    from featstore.tuning.train import train as learn

    earlier = None if resume is None else resume_run(resume)
    opened = open_store(store or (options.DEFAULT_STORE if earlier is None else earlier.store))
    if earlier is not None and earlier.identity != identity(opened):
        raise InputError(f"{resume} was not trained on {opened.path}: name its own store with --store.")
    size = opened.header.image_size
    numbers = {
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "rate": lr,
        "network_rate": network_lr,
        "length": length,
        "kernel": kernel,
        "draws": draws,
        "validate_every": val_every,
        "validation_pairs": val_pairs,
        "checkpoint_every": checkpoint_every,
        "seed": seed,
    }
    typed = typed_settings(size, mode, layers, t, val_t, weights, noise, geometry, upsample_align, numbers)
    dataset, model = option_values.dataset_of(opened, root), model_of(opened)
    pairs = choose_pairs(dataset, "trn", ())
    compute = training_compute(device, dtype if earlier is None else dtype or earlier.settings.dtype, batch_size)
    typed["dtype"] = compute.dtype_name
    if earlier is None:
        settings = with_typed(published(typed, dataset.name, len(pairs), model, size), typed)
    else:
        settings = check_resumed(earlier.settings, typed, earlier.path)
        dino = earlier.dino if dino is None else dino
    model.schedule.check_timesteps([*settings.timesteps, *settings.validation_timesteps])
    held_out = choose_some(dataset.pairs("val") if "val" in dataset.splits else (), settings.validation_pairs)
    processes = open_processes(compute)
    with TerminalProgress() if processes.is_main else Silent() as progress:
        images = images_of([*pairs, *held_out])
        check_unchanged(opened, dataset, images, progress)
        splits = ["trn", *(["val"] if held_out else [])]
        note_oddities(dataset, splits, images, opened.images.known_keys, progress)
        framed, framed_held_out = (
            in_resized_frame(dataset, part, opened.images.size, size, progress) for part in (pairs, held_out)
        )
        with when_main(processes):  # one process makes what all read
            fill_caches(
                opened, dataset, model.location, framed, framed_held_out, settings, dino, processes.compute, progress
            )
        problem = prepare(
            opened,
            model.location,
            framed,
            framed_held_out,
            settings,
            dino,
            processes.compute,
            Sparing(gradient_checkpointing, compile),
            processes.autocast,
        )
        listed = describe_list("trn", framed)
        about = {"dino": dino, "processes": processes.count, "command": typed_command(), **listed}
        run = earlier or run_folder(processes, lambda: create_run(runs, name, opened, settings, about))
        if processes.is_main:
            print_shapes(model.shape(layer, size) for layer in settings.layers)
            say(f"model {opened.header.model_id}, images of {size} pixels")
            say(describe(settings, spell_list("trn", framed), len(framed_held_out), run.path))
        outcome = learn(problem, run, settings, processes.accelerator, progress)
    if not processes.is_main:
        return
    if outcome.stopped:
        again = f"dualsd train --resume {shlex.quote(str(run.path))}"
        say(f"stopped after step {outcome.steps} of {settings.steps}; nothing is lost: {again}")
    else:
        best = (
            ""
            if outcome.best is None
            else f", validation PCK@0.1 {100 * outcome.best:.2f} % with the prompts that are kept"
        )
        say(f"{run.prompts}: {outcome.steps} steps{best}")
        say(f"  dualsd eval --store {shlex.quote(str(opened.path))} --prompts {shlex.quote(str(run.path))}")
        write_json(
            json,
            {"run": str(run.path), "steps": outcome.steps, "best": outcome.best, "passes": outcome.passes, **listed},
        )
    # last: the run is kept, whatever becomes of its page
    from cli.reports.training import report_training

    say(f"report: {report_training(run.path)}, with table.md and table.tex beside it")
    if outcome.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)


def describe(settings: "TuningSettings", pairs: str, held_out: int, run: Path) -> str:
    """What is learned, from what, with which settings."""
    layers = " + ".join(
        f"layer {layer} at t = {timestep}" for layer, timestep in zip(settings.layers, settings.timesteps, strict=True)
    )
    return (
        f"{settings.mode.value} prompts of {settings.length} vectors for {layers}; {pairs}, "
        f"{settings.batch} pairs per step, {settings.steps} steps, kernel {settings.kernel} cells, "
        f"noise {settings.noise.value}; {held_out} pairs of val every {settings.validate_every} steps; {run}"
    )
