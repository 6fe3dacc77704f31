"""`dualsd train`: learn prompts, and nothing else, from the cache."""

import shlex
from dataclasses import asdict

import typer

from cli.options import JsonOption, examples, taking
from cli.output import say, typed_command, write_json
from cli.progress import TerminalProgress
from featstore.config import TrainConfig
from featstore.pipeline.distributed import launched

EXIT_INTERRUPTED = 130

EXAMPLES = examples(
    "dualsd train --mode class",
    "dualsd train --store spair.zarr --mode single --layers 2 --t 261          (SD4Match)",
    "dualsd train --store spair.zarr --mode cpm --steps 11853 --dtype bfloat16 --gradient-checkpointing",
    "dualsd train --resume runs/class-2+3-001",
    "torchrun --nproc_per_node 4 --no-python dualsd train --store spair.zarr --mode class",
)


def train(config: TrainConfig, json: JsonOption = None) -> None:
    """Learn prompts for one layer (SD4Match) or for two (the dual method), one set per layer, trained together.

    Steps never call the VAE: latents come from the store, which is filled first. `dualsd eval`, `grid` and `match` use
    the prompts with --prompts RUN, and take those of the newest finished run where neither --layers, --t nor --prompt
    is typed and it has the layers 2,3.
    """
    from featstore.prompts.base import Mode

    if config.mode is not None:
        Mode.named(config.mode)  # before torch is loaded
    with TerminalProgress() as progress:
        from featstore.tuning.train import train as run

        done = run(config, progress, typed_command())
    if launched().rank > 0:
        return
    outcome, path = done.outcome, shlex.quote(str(done.run.path))
    if outcome.stopped:
        again = f"dualsd train --resume {path}"
        say(f"stopped after step {outcome.steps} of {done.settings.steps}; nothing is lost: {again}")
    else:
        best = outcome.best
        measured = "" if best is None else f", validation PCK@0.1 {100 * best:.2f} % with the prompts that are kept"
        say(f"{done.run.prompts}: {outcome.steps} steps{measured}")
        say(f"  dualsd eval --store {shlex.quote(str(done.store))} --prompts {path}")
        about = {"run": str(done.run.path), "steps": outcome.steps, "best": best, "passes": outcome.passes}
        baselines = outcome.baselines
        if baselines is not None and baselines.lead is not None:
            about |= {"text": baselines.of_text, "initial": baselines.initial, "lead": asdict(baselines.lead)}
        write_json(json, about | done.listed)
    # last: the run is kept, whatever becomes of its page
    from cli.reports.training import report_training

    with TerminalProgress() as progress:
        progress.wait("writing the report")
        page = report_training(done.run.path)
    say(f"report: {page}, with table.md and table.tex beside it")
    if outcome.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    if outcome.baselines is not None and outcome.baselines.lead is not None:
        from featstore.tuning.runs import worth

        say(worth(outcome.baselines, outcome.baselines.lead, done.run.words))


command = taking(TrainConfig)(train)
