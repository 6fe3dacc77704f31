"""`dualsd grid`: which layer, which timestep, which two together, with which weights."""

from cli.options import CsvOption, JsonOption, examples, taking
from cli.output import describe_origin, now, say, write_csv, write_json
from cli.progress import TerminalProgress
from featstore.config import GridConfig
from featstore.parsing import to_json as config_to_json
from featstore.pipeline.distributed import launched

EXAMPLES = examples(
    "dualsd grid --layers 2,3 --t 50..400",
    "dualsd grid --store spair.zarr --layers 2,3 --t 50..400 --weights sweep --max-pairs 2000 --stream",
    "dualsd grid --layers 2 --t 0..950:25 --upsample 1x,2x --readouts nn,kernelsoftmax --csv grid.csv",
)


def grid(config: GridConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Score every layer at every timestep, and all layers together at every choice of timesteps and weights.

    Costs one UNet pass per image, noise draw and timestep, and one matrix product per map and target image; every
    further combination is a weighted sum. May be stopped at any time: the same command goes on.
    """
    from cli.reports.tables import check_folder
    from featstore.pipeline.grid import grid as run
    from featstore.pipeline.pairs import spell_list
    from matcher.grid import CSV_HEADER, to_rows

    check_folder(config.out)
    with TerminalProgress() as progress:
        done = run(config, progress)
    if launched().rank > 0:
        return
    from cli.reports.grid import draw, report_grid
    from cli.reports.grid_tables import RankedGrid, print_scores, print_winners, to_json

    scores, ranked = done.scores, RankedGrid.of(done)
    say(f"PCK over {done.dataset} {done.split}, {spell_list(done.split, scores.pairs)}")
    say(f"distance {'<' if done.config.strict else '<='} alpha theta, theta the {done.theta}")
    print_scores(ranked)
    print_winners(ranked)
    write_json(json, to_json(ranked))
    write_csv(csv, CSV_HEADER, to_rows(scores))
    draw(ranked, config.out)
    root = None if config.root is None else str(config.root.resolve())
    about = {"store": done.store, "root": root, "theta": done.theta, "config": config_to_json(done.config)}
    origin = describe_origin(created=now(), **about)
    say(f"report: {report_grid(ranked, config.out, origin)}, with table.md and table.tex beside it")
    done.forget()


command = taking(GridConfig)(grid)
