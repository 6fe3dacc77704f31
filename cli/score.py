"""`dualsd score`: an evaluation that was kept, at other thresholds, in another frame."""

from pathlib import Path
from typing import Annotated

import typer

from cli import option_values
from cli.options import ByOption, CsvOption, FrameOption, JsonOption

EXAMPLES = (
    "Examples:\n\n"
    "dualsd score runs/eval-2+3-001 --alphas 0.01..0.2:0.01 --csv curve.csv\n\n"
    "dualsd score runs/eval-2+3-001 --frame original --by point\n\n"
    "dualsd score runs/eval-2+3-001 --readouts nn --json nn.json"
)


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that `dualsd eval` kept.")],
    alphas: Annotated[
        str | None,
        typer.Option("--alphas", help="Thresholds, e.g. 0.05,0.1 or 0.01..0.2:0.01.", show_default="those of the run"),
    ] = None,
    frame: FrameOption = None,
    by: ByOption = "image",
    readouts: Annotated[str | None, typer.Option("--readouts", help="Only these.", show_default="all")] = None,
    json: JsonOption = None,
    csv: CsvOption = None,
) -> None:
    """Score the predictions of an evaluation again, without matching.

    In the original frame, predictions and target points are mapped back to pixels of the target image as it came, and
    theta is measured there: with aspect ratios kept, as many published protocols do.
    """
    average, chosen_frame = option_values.parse_average(by), option_values.parse_frame(frame)
    chosen_alphas = None if alphas is None else option_values.parse_alphas(alphas)
    chosen_readouts = None if readouts is None else option_values.parse_readouts(readouts)

    from cli.output import check_writable, print_evaluation
    from cli.progress import TerminalProgress
    from featstore.pipeline.results import EvaluationRun

    check_writable(json, csv)
    result = EvaluationRun.open(run).scored(chosen_readouts, chosen_alphas, chosen_frame)
    for sentence in result.notes:
        TerminalProgress().note(sentence)
    print_evaluation(result, average, json, csv)
