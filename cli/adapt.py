"""`dualsd adapt`: learn an adapter on cached maps."""

import shlex
from dataclasses import asdict

import typer

from cli.options import JsonOption, examples, taking
from cli.output import say, typed_command, write_json
from cli.progress import TerminalProgress
from featstore.config import AdaptConfig

EXIT_INTERRUPTED = 130

EXAMPLES = examples(
    "dualsd adapt",
    "dualsd adapt --store spair.zarr --layers 2,3 --t 261,200 --flip",
    "dualsd adapt --prompts runs/class-2+3-001          (prompts first, an adapter on their maps)",
    "dualsd adapt --mode weights --layers 2,3 --t 50..400",
    "dualsd adapt --features mine.safetensors --dataset pf-willow --root PF --size 384 --layers s16,s8 "
    "--weights 0.8,0.6",
    "dualsd adapt --pseudo --relaxed 1                  (no keypoints needed)",
    "dualsd adapt --resume runs/residual-2+3-001",
)


def adapt(config: AdaptConfig, json: JsonOption = None) -> None:
    """Learn a light network, or weights alone, on top of cached maps, without the networks that made them.

    Maps come from the store, of whichever extractor, or from a file of features; those that lack are made first. Step 0
    of --mode residual is the maps as they are. `dualsd eval`, `grid` and `match` use the adapter with --adapter RUN.
    """
    with TerminalProgress() as progress:
        from featstore.adapters.train import adapt as run

        done = run(config, progress, typed_command())
    outcome, path = done.outcome, shlex.quote(str(done.run.path))
    best, baselines = outcome.best, outcome.baselines
    if outcome.stopped:
        again = f"dualsd adapt --resume {path}"
        say(f"stopped after step {outcome.steps} of {done.settings.steps}; nothing is lost: {again}")
    else:
        measured = "" if best is None else f", validation PCK@0.1 {100 * best:.2f} % with the adapter that is kept"
        say(f"{done.run.best}: {outcome.steps} steps{measured}")
        about = {"run": str(done.run.path), "steps": outcome.steps, "best": best, "parameters": done.parameters}
        if baselines is not None and baselines.lead is not None:
            about |= {"zero_shot": baselines.of_text, "initial": baselines.initial, "lead": asdict(baselines.lead)}
        write_json(json, about | done.listed)
    # last: the run is kept, whatever becomes of its page
    from cli.reports.training import report_training
    from featstore.tuning.runs import worth

    with TerminalProgress() as progress:
        progress.wait("writing the report")
        page = report_training(done.run.path)
    say(f"report: {page}, with table.md and table.tex beside it")
    if outcome.stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    if baselines is not None and baselines.lead is not None:
        say(worth(baselines, baselines.lead, done.run.words))


command = taking(AdaptConfig)(adapt)
