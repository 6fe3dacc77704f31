"""`dualsd reproduce`: the report's tables, run and set beside its figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import JsonOption, taking
from featstore.config import ReproduceConfig
from matcher.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.reproduction.paper import Plan
    from cli.reproduction.workplace import Workplace
    from featstore.recipes import Recipe

EXAMPLES = (
    "Examples:\n\n"
    "dualsd reproduce table5 --on demo --train-steps 50\n\n"
    "dualsd reproduce table5 --dataset-root data --dry-run\n\n"
    "dualsd reproduce table5 --dataset-root data --rows dift,dual-single@spair\n\n"
    "dualsd reproduce table1 --dataset-root data --rows dift,dino,sd-dino\n\n"
    "dualsd reproduce table5 --dataset-root data --on demo        (the demo in place of datasets that are not in data)"
)
FIGURE = "figure2"
EXIT_INPUT = 2

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")]


def reproduce(config: ReproduceConfig, dry_run: DryRunOption = False, json: JsonOption = None) -> None:
    """Run a table's methods and print it beside the paper's figures; what it takes is said first.

    Stores are shared between rows, prompts are trained where they are needed, and what was done is not done again: the
    same command goes on. The table is also written as Markdown, LaTeX and JSON.
    """
    from cli.output import check_writable, say
    from cli.reproduction.paper import DEMO, TABLES
    from featstore.recipes import load_recipes

    if config.what not in (*TABLES, FIGURE):
        raise InputError(f"There is no {config.what!r} to reproduce: choose from {', '.join([*TABLES, FIGURE])}.")
    if config.on not in (None, DEMO):
        raise InputError(f"--on is demo, not {config.on!r}: real datasets are found in --dataset-root.")
    if config.what == FIGURE and (config.rows is not None or config.train_steps is not None):
        raise InputError("--rows and --train-steps go with a table: Figure 2 is of text prompts, layer by layer.")
    check_writable(json)
    from cli.reproduction.workplace import Workplace, find_datasets, is_at_hand
    from featstore.backbones.stable_diffusion import open_model
    from featstore.pipeline.defaults import choose_compute, model_for

    recipes = load_recipes()
    roots = {**find_datasets(config.dataset_root), **({} if config.on is None else {DEMO: None})}
    plan = None if config.what == FIGURE else _plan(config, recipes, roots)
    real = {"spair"} & roots.keys() if plan is None else {*plan.datasets} - {DEMO}
    # the report's model; the demo's stands for it on drawn pictures alone
    name = config.model or ("sd2-1" if config.on is None else model_for(min(real, default=DEMO), None))
    if dry_run and not is_at_hand(name, config.revision):
        say(f"The model {name} is not on this machine: what this takes can be counted once it is.")
        return
    place = Workplace(
        config,
        open_model(name, config.revision),
        choose_compute(config.device, config.dtype, config.batch_size),
        recipes,
        roots,
    )
    say(f"model {place.model.location.id}, images of {place.image_size} pixels")
    if plan is not None:
        _reproduce_table(place, plan, name, dry_run, json)
        return
    from cli.reproduction.figure import reproduce_figure

    reproduce_figure(place, dry_run, json)


def _plan(config: ReproduceConfig, recipes: "Mapping[str, Recipe]", roots: "Mapping[str, Path | None]") -> "Plan":
    """What is to be run; says what is replaced and what is missing."""
    from cli.output import say
    from cli.reproduction.paper import choose_rows, load_table, plan_table
    from cli.reproduction.tables import missing, stand_ins

    table = load_table(config.what)
    plan = plan_table(table, choose_rows(table, config.rows, recipes), roots.keys(), config.on)
    for sentence in (*stand_ins(plan), *missing(plan)):
        say(sentence)
    if not plan.cells:
        raise InputError(
            f"Nothing of {table.title} can be run without a dataset: give the folder of {', '.join(table.datasets)} "
            "with --dataset-root, or take --on demo."
        )
    say(
        f"{table.title}: {len(plan.rows)} row(s) on {', '.join(column.dataset for column in plan.columns)}; "
        f"{len(plan.distinct_cells)} cell(s) to score, {len(plan.trainings)} training(s)"
    )
    return plan


def _reproduce_table(place: "Workplace", plan: "Plan", model: str, dry_run: bool, json: Path | None) -> None:
    from cli.output import console, describe_origin, print_table, say, write_json
    from cli.reports.reproduction import report_reproduction
    from cli.reports.tables import write_tables
    from cli.reproduction.run import commands, prices, run_left, spelled_methods, survey
    from cli.reproduction.tables import blocks, compare, narrow_blocks, notes
    from cli.reproduction.work import print_prices
    from featstore.config import to_json
    from featstore.plain_text import printable

    found, table = survey(place, plan), plan.table
    if found.figures:
        say(f"{len(found.figures)} cell(s) were scored before")
    priced = prices(place, found)
    if priced:
        print_prices(place, priced)
    if dry_run:
        write_json(json, {"table": table.name, "left": priced})
        say("The same by hand, e.g. to train with torchrun (reproduce goes on from runs that it finds):")
        for command in commands(place, found):
            say(f"  {command}")
        return
    outcome = run_left(place, found)
    scored = {where: outcome.figures[cell] for where, cell in plan.cells.items() if cell in outcome.figures}
    numbers = compare(plan, scored)
    said = notes(plan, model, place.image_size, place.asked.train_steps, outcome.failures)
    say("")
    parts = blocks(plan, numbers)
    fits = not table.by_category or all(block.width <= console().width for block in parts)
    for block in parts if fits else narrow_blocks(plan, numbers):
        print_table(block.title, block.header, block.rows, block.left_columns)
    for note in said:
        say(f"- {note}")
    content = {
        "table": table.name,
        "model": place.model.location.id,
        "model_fingerprint": place.model.fingerprint,
        "train_steps": place.asked.train_steps,
        "notes": said,
        "figures": [number.to_json() for number in numbers],
        "commands": spelled_methods(found),
        "config": to_json(place.asked),
        **describe_origin(),
    }
    folder = place.folder / "tables"
    write_tables(folder, table.name, table.title, parts, said)
    write_json(folder / f"{table.name}.json", content)
    write_json(json, content)
    say(f"{folder}/{table.name}.md, .tex and .json hold the same")
    say(f"report: {report_reproduction(place.folder)}, with every table made in {place.folder}")
    for name, sentence in outcome.failures.items():
        typer.echo(f"dualsd: {printable(f'{name} was not run: {sentence}')}", err=True)
    if outcome.failures:
        raise typer.Exit(EXIT_INPUT)


command = taking(ReproduceConfig)(reproduce)
