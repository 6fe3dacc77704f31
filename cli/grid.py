"""`dualsd grid`: which layer, which timestep, which layers together, with which weights, and whether that is more than
one layer."""

from cli.options import CsvOption, JsonOption, examples, taking
from cli.output import describe_origin, now, say, write_csv, write_json
from cli.progress import TerminalProgress
from featstore.config import GridConfig
from featstore.parsing import to_json as config_to_json
from featstore.pipeline.distributed import launched

EXAMPLES = examples(
    "dualsd grid --layers 2,3 --t 50..400",
    "dualsd grid --store spair.zarr --layers 1,2,3,4 --t 50..400 --max-pairs 2000 --stream",
    "dualsd grid --layers 2,3 --t 50..400 --weights 0.8:0.6          (the report's weights alone)",
    "dualsd grid --layers 2 --t 0..950:25 --upsample 1x,2x --readouts nn,kernelsoftmax --csv grid.csv",
)


def grid(config: GridConfig, json: JsonOption = None, csv: CsvOption = None) -> None:
    """Say whether layers together beat the best single one: score every layer at every timestep, and layers together at
    every choice of timesteps and weights.

    Unless --weights says otherwise, every two of the layers are put together with 11 weightings, and of three layers or
    more all with equal weights and with each one doubled (all at the same timestep where every choice would be more
    than 4096 configurations). What is tried, and the memory that it takes, is said before it starts.

    Costs one UNet pass per image, noise draw and timestep, and one matrix product per map and target image; every
    further combination is a weighted sum. May be stopped at any time: the same command goes on.
    """
    with TerminalProgress() as progress:
        from cli.reports.tables import check_folder
        from featstore.pipeline.grid import grid as run
        from featstore.pipeline.pairs import spell_list
        from matcher.grid import CSV_HEADER, to_rows

        check_folder(config.out)
        done = run(config, progress)
    if launched().rank > 0:
        return
    from cli.reports.grid import draw, report_grid
    from cli.reports.grid_tables import RankedGrid, print_answer, print_scores, to_json, winners_block
    from cli.reports.tables import print_block
    from featstore.pipeline.grid_results import keep_grid

    scores, ranked = done.scores, RankedGrid.of(done)
    print_answer(ranked)
    say(f"PCK over {done.dataset} {done.split}, {spell_list(done.split, scores.pairs)}")
    say(f"distance {'<' if done.config.strict else '<='} alpha theta, theta the {done.theta}")
    print_scores(ranked)
    print_block(winners_block(ranked))
    if json is not None:  # of thousands of configurations it takes a while to make
        write_json(json, to_json(ranked))
    write_csv(csv, CSV_HEADER, to_rows(scores))
    draw(ranked, config.out)
    keep_grid(done, config.out)
    root = None if config.root is None else str(config.root.resolve())
    about = {"store": done.store, "root": root, "theta": done.theta, "config": config_to_json(done.config)}
    origin = describe_origin(created=now(), **about)
    with TerminalProgress() as progress:
        progress.wait("writing the report")
        page = report_grid(ranked, config.out, origin)
    say(f"report: {page}, with table.md and table.tex beside it")
    done.forget()


command = taking(GridConfig)(grid)
