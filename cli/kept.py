"""`dualsd score | compare | report`: what becomes of runs that were kept."""

from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import CsvOption, JsonOption, examples, taking
from cli.output import describe, print_evaluation, print_table, say, write_csv, write_json
from cli.progress import TerminalProgress
from featstore.errors import EvaluationError
from featstore.kept_config import CompareConfig, ScoreConfig

if TYPE_CHECKING:
    from matcher.statistics import Difference

SCORE_EXAMPLES = examples(
    "dualsd score runs/eval-2+3-001 --alphas 0.01..0.2:0.01 --csv curve.csv",
    "dualsd score runs/eval-2+3-001 --frame original --by point",
    "dualsd score runs/eval-2+3-001 --readouts nn --json nn.json",
    "dualsd score runs/eval-2+3-001 --theta image --strict",
    "dualsd score runs/eval-2+3-001 --readouts nn --errors",
)
COMPARE_EXAMPLES = examples(
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001",
    "dualsd compare runs/eval-2-001 runs/eval-2+3-001 runs/eval-2+3-002 --readout kernelsoftmax --alphas 0.1",
    "dualsd compare runs/ours runs/theirs --frame original --by point --json lead.json",
)
REPORT_EXAMPLES = examples(
    "dualsd report runs/eval-2+3-001",
    "dualsd report runs/eval-2+3-001 --root data/SPair-71k          (where the images are by now)",
    "dualsd report runs/class-2+3-001",
)


@taking(ScoreConfig)
def score(config: ScoreConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Score the predictions of an evaluation again, without matching.

    In the original frame, predictions and target points are mapped back to pixels of the target image as it came, and
    theta is measured there: with aspect ratios kept, as many published protocols do.
    """
    from cli.reports.misses import READING, aware_block, misses_block
    from cli.reports.scores import shown_alpha
    from cli.reports.tables import print_block
    from featstore.pipeline.misses import misses_of
    from featstore.pipeline.results import EvaluationRun
    from matcher.configuration import Frame
    from matcher.pck import Average

    readouts = None if config.readouts is None else [*dict.fromkeys(config.readouts)]
    frame = None if config.frame is None else Frame(config.frame)
    result = EvaluationRun.open(config.run).scored(readouts, config.alphas, frame, config.theta, config.strict)
    for sentence in result.notes:
        TerminalProgress().note(sentence)
    misses = misses_of(result) if config.errors else None
    print_evaluation(result, Average(config.average), json, csv, {} if misses is None else misses.to_json())
    if misses is not None:
        alpha = shown_alpha(result.scoring.alphas)
        for readout in misses.shares:
            print_block(misses_block(misses, readout, alpha))
        say(READING)
        aware = aware_block(misses)
        if aware is not None:
            print_block(aware)


@taking(CompareConfig)
def compare(config: CompareConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Compare evaluations over the same pairs with the first, by category and over all.

    Pairs that share an image are not independent. The 95 % interval of a difference resamples images; its p value is
    that of a permutation test that flips what images do to the difference, not pairs.
    """
    from cli.reports.misses import repairs_block
    from cli.reports.tables import print_block
    from featstore.pipeline.compare import CSV_HEADER, compare_runs
    from featstore.pipeline.misses import repairs
    from featstore.pipeline.results import EvaluationRun
    from matcher.configuration import Frame
    from matcher.misses import KINDS
    from matcher.pck import Average

    frame = None if config.frame is None else Frame(config.frame)
    opened = [EvaluationRun.open(path) for path in config.runs]
    how = config.readout, config.alphas, Average(config.average), frame
    found = compare_runs(opened, *how, theta=config.theta, strict=config.strict)
    for sentence in dict.fromkeys(sentence for run in opened for sentence in run.notes):
        TerminalProgress().note(sentence)
    kept: dict[str, dict[str, list[list[int]]]] = {}
    say(found.title)
    say(f"A = {found.first.path}: {describe(found.first.scoring, found.first.features)}")
    for letter, (other, differences) in zip(ascii_uppercase[1:], found.others, strict=False):
        say(f"{letter} = {other.path}: {describe(other.scoring, other.features)}")
        for alpha, columns in differences.items():
            header = ["category", "A", letter, f"{letter} - A", "95 % interval", "p"]
            rows = [[name, *_spelled(difference)] for name, difference in columns.named().items()]
            print_table(f"{letter} - A at {alpha:g}", header, rows)
        for alpha in differences if config.errors else ():
            print_block(repairs_block(repaired := repairs(found, other, alpha), letter, alpha))
            kept.setdefault(str(other.path), {})[f"{alpha:g}"] = repaired.tolist()
    say(
        "Intervals resample images, p values flip images. Each stands for itself: of many categories, thresholds and "
        "runs, one in 20 has p below 0.05 where nothing differs."
    )
    write_json(json, found.to_json() | ({"kinds": [kind.value for kind in KINDS], "repairs": kept} if kept else {}))
    write_csv(csv, CSV_HEADER, found.to_rows())


def _spelled(difference: "Difference") -> tuple[str, ...]:
    lead = difference.lead
    # + 0.0: a zero that was rounded from below would be spelled -0.00
    mean, low, high = (round(100 * value, 2) + 0.0 for value in (lead.mean, lead.low, lead.high))
    both = f"{100 * difference.first:.2f}", f"{100 * difference.run:.2f}"
    return (*both, f"{mean:+.2f}", f"[{low:+.2f}, {high:+.2f}]", f"{difference.p:.4f}")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `dualsd eval`, `train` or `adapt` kept.")],
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Where an evaluation's images are by now.", show_default="where they were"),
    ] = None,
) -> None:
    """Write report.html, table.md and table.tex into a run's folder again, from what it keeps.

    Nothing is matched or trained. The best and the worst pairs of an evaluation are drawn where the dataset is found.
    """
    from featstore.pipeline.results import FORMAT as EVALUATION
    from featstore.tuning.runs import ADAPTATION, format_of
    from featstore.tuning.runs import FORMAT as TRAINING

    found = format_of(run)
    if found == EVALUATION:
        from cli.reports.evaluation import report_evaluation

        file = report_evaluation(run, root)
    elif found in (TRAINING, ADAPTATION):
        from cli.reports.training import report_training

        file = report_training(run)
    else:
        raise EvaluationError(f"{run} is no run of `dualsd eval` or `dualsd train`: it has no run.json of theirs.")
    say(f"report: {file}, with table.md and table.tex beside it")
