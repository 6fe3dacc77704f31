"""`dualsd eval`: PCK of cached maps, or of anybody's features."""

import shlex

from cli.options import CsvOption, JsonOption, examples, taking
from cli.output import print_evaluation, say, typed_command
from cli.progress import TerminalProgress
from featstore.config import EvalConfig
from featstore.pipeline.distributed import launched

EXAMPLES = examples(
    "dualsd eval",
    "dualsd eval --store W.zarr --layers 2,3 --t 261,200 --weights 0.8,0.6 --json out.json",
    "dualsd eval --prompts runs/class-2+3-001",
    "dualsd eval --layers 2,dino --t 261",
    "dualsd eval --layers 2 --t 261 --upsample 2x --readouts nn --out runs/dift-2x",
    "dualsd eval --layers 2,dino --t 261 --readouts window --window 5",
    "dualsd eval --alphas 0.01..0.2:0.01",
    "dualsd eval --config runs/eval-2+3-001/run.json --readouts nn",
    "dualsd eval --features F.safetensors --dataset pf-willow --root DIR --size 384 --layers s16",
)


def evaluate(config: EvalConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Match the keypoints of a split's pairs and print PCK by category.

    Maps and latents that are not cached are made and kept, and so are the predictions: `dualsd score` and `dualsd
    compare` need no matching. With --features no store and no model is needed.
    """
    with TerminalProgress() as progress:
        from featstore.pipeline.evaluate import evaluate as run
        from featstore.pipeline.results import check_place, kept_evaluation
        from matcher.pck import Average

        check_place(config.out)
        done = run(config, progress)
    if launched().rank > 0:
        return
    average = Average(config.average)
    print_evaluation(done, average, json, csv)
    from cli.reports.evaluation import report_evaluation

    with kept_evaluation(done, config.out, {"command": typed_command()}) as kept:
        del done  # the report reads what is kept
        say(f"kept in {kept}: `dualsd score {shlex.quote(str(kept))}` scores it again, `dualsd compare` compares it")
        with TerminalProgress() as progress:
            progress.wait("writing the report")
            page = report_evaluation(kept)
    say(f"report: {page}, with table.md and table.tex beside it")


command = taking(EvalConfig)(evaluate)
