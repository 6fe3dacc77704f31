"""`dualsd compare`: is one evaluation better than another, and by how much."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import option_values
from cli.options import ByOption, CsvOption, FrameOption, JsonOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.pipeline.evaluation_run import EvaluationRun
    from matcher.pck import Columns
    from matcher.statistics import Difference

    Differences = Mapping[float, Columns[Difference]]

EXAMPLES = (
    "Examples:\n\n"
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001\n\n"
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001 runs/eval-2+3-002 --readout kernelsoftmax --alphas 0.1\n\n"
    "dualsd compare runs/ours runs/theirs --frame original --by point --json lead.json"
)

MOST_RUNS = 26
"""Each has a letter."""

CSV_HEADER = (
    *("first", "run", "readout", "average", "frame", "alpha", "category"),
    *("first_percent", "run_percent", "lead_percent", "lead_low_percent", "lead_high_percent", "p"),
)


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
    from featstore.pair_list import describe_list, spell_list
    from featstore.pipeline.compare import compare_runs
    from featstore.pipeline.evaluation_run import EvaluationRun

    check_writable(json, csv)
    first, *others = (EvaluationRun.open(path) for path in runs)
    chosen = first.scoring.alphas if typed is None else typed
    found = [(other, compare_runs(first, other, wanted[0], chosen, average, chosen_frame)) for other in others]
    for sentence in dict.fromkeys(sentence for run in (first, *others) for sentence in run.notes):
        TerminalProgress().note(sentence)
    measured = chosen_frame or first.scoring.frame_of(wanted[0])
    pairs = [match.pair for match in first.matched]
    say(
        f"PCK in percent, {wanted[0].value}, {average.value} average, {measured.value} frame: {first.dataset} "
        f"{first.split}, {spell_list(first.split, pairs)}"
    )
    say(f"A = {first.path}: {describe(first.scoring, first.features)}")
    for place, (other, differences) in enumerate(found):
        letter = chr(ord("B") + place)
        say(f"{letter} = {other.path}: {describe(other.scoring, other.features)}")
        for alpha, columns in differences.items():
            header = ["category", "A", letter, f"{letter} - A", "95 % interval", "p"]
            rows = [[name, *_spelled(difference)] for name, difference in columns.named().items()]
            print_table(f"{letter} - A at {alpha:g}", header, rows)
    say(
        "Intervals resample images, p values flip images. Each stands for itself: of many categories, thresholds and "
        "runs, one in 20 has p below 0.05 where nothing differs."
    )
    settings = {"readout": wanted[0].value, "average": average.value, "frame": measured.value}
    about = {"dataset": first.dataset, "split": first.split, **describe_list(first.split, pairs)}
    comparisons = [{"run": str(other.path), "results": _to_json(differences)} for other, differences in found]
    write_json(json, {**about, **settings, "first": str(first.path), "comparisons": comparisons})
    write_csv(csv, CSV_HEADER, _to_rows(first, found, tuple(settings.values())))


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


def _to_json(differences: "Differences") -> dict[str, Any]:
    return {
        f"{alpha:g}": {
            name: {
                "first": difference.first,
                "run": difference.second,
                "lead": {"mean": difference.lead.mean, "low": difference.lead.low, "high": difference.lead.high},
                "p": difference.p,
            }
            for name, difference in columns.named().items()
        }
        for alpha, columns in differences.items()
    }


def _to_rows(
    first: "EvaluationRun", found: "Sequence[tuple[EvaluationRun, Differences]]", settings: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    for other, differences in found:
        for alpha, columns in differences.items():
            for name, difference in columns.named().items():
                lead = difference.lead
                fractions = (difference.first, difference.second, lead.mean, lead.low, lead.high)
                percent = (f"{100 * value:.4f}" for value in fractions)
                yield (str(first.path), str(other.path), *settings, f"{alpha:g}", name, *percent, f"{difference.p:.4f}")
