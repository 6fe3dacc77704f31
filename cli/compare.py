"""`dualsd compare`: is one evaluation better than another, and by how much."""

from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values
from cli.options import ByOption, CsvOption, FrameOption, JsonOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from matcher.statistics import Difference

EXAMPLES = (
    "Examples:\n\n"
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001\n\n"
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001 runs/eval-2+3-002 --readout kernelsoftmax --alphas 0.1\n\n"
    "dualsd compare runs/ours runs/theirs --frame original --by point --json lead.json"
)

MOST_RUNS = len(ascii_uppercase)
"""Each has a letter."""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_A RUN_B ...", help="Folders that `dualsd eval` kept.")],
    readout: Annotated[str, typer.Option("--readout", help="Which of the runs' readouts.")] = "nn",
    alphas: Annotated[
        str | None,
        typer.Option("--alphas", help="Thresholds, e.g. 0.05,0.1 or 0.01..0.2:0.01.", show_default="those of RUN_A"),
    ] = None,
    by: ByOption = "image",
    frame: FrameOption = None,
    json: JsonOption = None,
    csv: CsvOption = None,
) -> None:
    """Compare evaluations over the same pairs with the first, by category and over all.

    Pairs that share an image are not independent. The 95 % interval of a difference resamples images; its p value is
    that of a permutation test that flips what images do to the difference, not pairs.
    """
    average, chosen_frame = option_values.parse_average(by), option_values.parse_frame(frame)
    wanted = option_values.parse_readouts(readout)
    if len(wanted) != 1:
        raise InputError(f"--readout takes one readout, not {readout!r}.")
    if not 2 <= len(runs) <= MOST_RUNS:
        raise InputError(
            f"compare takes 2 to {MOST_RUNS} runs, of which the first is what the others are compared with."
        )
    typed = None if alphas is None else option_values.parse_alphas(alphas)

    from cli.output import check_writable, describe, print_table, say, write_csv, write_json
    from cli.progress import TerminalProgress
    from featstore.pipeline.compare import CSV_HEADER, compare_runs
    from featstore.pipeline.results import EvaluationRun

    check_writable(json, csv)
    opened = [EvaluationRun.open(path) for path in runs]
    found = compare_runs(opened, wanted[0], typed, average, chosen_frame)
    for sentence in dict.fromkeys(sentence for run in opened for sentence in run.notes):
        TerminalProgress().note(sentence)
    say(found.title)
    say(f"A = {found.first.path}: {describe(found.first.scoring, found.first.features)}")
    for letter, (other, differences) in zip(ascii_uppercase[1:], found.others, strict=False):
        say(f"{letter} = {other.path}: {describe(other.scoring, other.features)}")
        for alpha, columns in differences.items():
            header = ["category", "A", letter, f"{letter} - A", "95 % interval", "p"]
            rows = [[name, *_spelled(difference)] for name, difference in columns.named().items()]
            print_table(f"{letter} - A at {alpha:g}", header, rows)
    say(
        "Intervals resample images, p values flip images. Each stands for itself: of many categories, thresholds and "
        "runs, one in 20 has p below 0.05 where nothing differs."
    )
    write_json(json, found.to_json())
    write_csv(csv, CSV_HEADER, found.to_rows())


def _spelled(difference: "Difference") -> tuple[str, ...]:
    lead = difference.lead
    # + 0.0: a zero that was rounded from below would be spelled -0.00
    mean, low, high = (round(100 * value, 2) + 0.0 for value in (lead.mean, lead.low, lead.high))
    return (
        f"{100 * difference.first:.2f}",
        f"{100 * difference.second:.2f}",
        f"{mean:+.2f}",
        f"[{low:+.2f}, {high:+.2f}]",
        f"{difference.p:.4f}",
    )
