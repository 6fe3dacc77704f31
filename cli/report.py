"""`dualsd report`: the page of a run, made again."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "Examples:\n\n"
    "dualsd report runs/eval-2+3-001\n\n"
    "dualsd report runs/eval-2+3-001 --root data/SPair-71k          (where the images are by now)\n\n"
    "dualsd report runs/class-2+3-001"
)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `dualsd eval` or `dualsd train` kept.")],
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Where an evaluation's images are by now.", show_default="where they were"),
    ] = None,
) -> None:
    """Write report.html, table.md and table.tex into a run's folder again, from what it keeps.

    Nothing is matched or trained. The best and the worst pairs of an evaluation are drawn where the dataset is found.
    """
    from cli.output import say
    from featstore.errors import EvaluationError
    from featstore.pipeline.results import FORMAT as EVALUATION
    from featstore.tuning.run_folder import FORMAT as TRAINING
    from featstore.tuning.run_folder import format_of

    found = format_of(run)
    if found == EVALUATION:
        from cli.reports.evaluation import report_evaluation

        file = report_evaluation(run, root)
    elif found == TRAINING:
        from cli.reports.training import report_training

        file = report_training(run)
    else:
        raise EvaluationError(f"{run} is no run of `dualsd eval` or `dualsd train`: it has no run.json of theirs.")
    say(f"report: {file}, with table.md and table.tex beside it")
