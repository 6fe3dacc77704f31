"""`dualsd grid`: which layer, which timestep, which two together, with which weights."""

from cli.options import CsvOption, JsonOption, taking
from featstore.config import GridConfig

EXAMPLES = (
    "Examples:\n\n"
    "dualsd grid --layers 2,3 --t 50..400\n\n"
    "dualsd grid --store spair.zarr --layers 2,3 --t 50..400 --weights sweep --max-pairs 2000 --stream\n\n"
    "dualsd grid --layers 2 --t 0..950:25 --upsample 1x,2x --readouts nn,kernelsoftmax --csv grid.csv"
)


def grid(config: GridConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Score every layer at every timestep, and all layers together at every choice of timesteps and weights.

    Costs one UNet pass per image, noise draw and timestep, and one matrix product per map and target image; every
    further combination is a weighted sum. May be stopped at any time: the same command goes on.
    """
    from cli.command_line import describe_origin, now
    from cli.output import check_writable, say, write_csv, write_json
    from cli.progress import TerminalProgress
    from cli.reports.tables import check_folder
    from featstore.config import to_json as config_to_json
    from featstore.pair_list import spell_list
    from featstore.pipeline.distributed import launched
    from featstore.pipeline.run_grid import grid as run
    from matcher.grid import CSV_HEADER, to_rows

    check_writable(json, csv)
    check_folder(config.out)
    with TerminalProgress() as progress:
        done = run(config, progress)
    if launched().rank > 0:
        return
    from cli.reports.grid import draw, report_grid
    from cli.reports.grid_tables import RankedGrid, print_scores, print_winners, to_json

    scores, ranked = done.scores, RankedGrid.of(done)
    say(f"PCK over {done.dataset} {done.split}, {spell_list(done.split, scores.pairs)}")
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
