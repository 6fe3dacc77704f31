"""`dualsd reproduce`: the report's tables, run and set beside its figures."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import option_values
from cli.options import BatchOption, DeviceOption, DinoOption, DtypeOption, JsonOption, RevisionOption
from matcher.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cli.recipe import Recipe
    from cli.reproduction.comparison import Comparison
    from cli.reproduction.plan import Plan
    from cli.reproduction.workplace import Workplace

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


def reproduce(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="table1, table2, table3, table4, table5 or figure2.")],
    dataset_root: Annotated[
        Path | None,
        typer.Option("--dataset-root", metavar="DIR", help="Folder of SPair-71k, pf-pascal, pf-willow; each may lack."),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="demo", help="demo: its own dataset in place of each that is not at hand."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="sd2-1, sd1-5, demo, a hub name owner/model, or a folder in diffusers' layout.",
            show_default="sd2-1; with --on demo, demo",
        ),
    ] = None,
    revision: RevisionOption = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", help="Only these, e.g. dift,dual-single@spair; other recipes too.", show_default="all"),
    ] = None,
    train_steps: Annotated[
        int | None,
        typer.Option(
            "--train-steps", min=1, help="Cut trainings short.", show_default="the published epochs; on the demo 300"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")] = False,
    work: Annotated[
        Path, typer.Option("--work", metavar="DIR", help="Folder of its stores, runs, results and tables.")
    ] = Path("reproduce"),
    dino: DinoOption = None,
    accumulate: Annotated[int, typer.Option("--accumulate", min=1, help="Parts a training batch is taken in.")] = 1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Train in half the memory, a third more time.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    batch_size: BatchOption = 8,
    json: JsonOption = None,
) -> None:
    """Run a table's methods and print it beside the paper's figures; what it takes is said first.

    Stores are shared between rows, prompts are trained where they are needed, and what was done is not done again: the
    same command goes on. The table is also written as Markdown, LaTeX and JSON.
    """
    from cli.output import check_writable, say
    from cli.recipe import load_recipes
    from cli.reproduction.paper import TABLES
    from cli.reproduction.plan import DEMO

    if what != FIGURE and what not in TABLES:
        raise InputError(f"There is no {what!r} to reproduce: choose from {', '.join([*TABLES, FIGURE])}.")
    if on not in (None, DEMO):
        raise InputError(f"--on is demo, not {on!r}: real datasets are found in --dataset-root.")
    if what == FIGURE and (rows is not None or train_steps is not None):
        raise InputError("--rows and --train-steps go with a table: Figure 2 is of text prompts, layer by layer.")
    check_writable(json)
    from cli.reproduction.workplace import Means, Workplace, check_alone, find_datasets, is_at_hand
    from featstore.backbones.model import open_model

    check_alone()
    recipes = load_recipes()
    roots = {**find_datasets(dataset_root), **({} if on is None else {DEMO: None})}
    plan = None if what == FIGURE else _plan(what, rows, recipes, roots, on)
    real = {"spair"} & roots.keys() if plan is None else {*plan.datasets} - {DEMO}
    # the report's model; the demo's stands for it on drawn pictures alone
    name = model or ("sd2-1" if on is None else option_values.model_for(min(real, default=DEMO), None))
    if dry_run and not is_at_hand(name, revision):
        say(f"The model {name} is not on this machine: what this takes can be counted once it is.")
        return
    place = Workplace(
        work,
        open_model(name, revision),
        option_values.choose_compute(device, dtype, batch_size),
        Means(device, dtype, batch_size, dino, accumulate, gradient_checkpointing),
        recipes,
        roots,
        train_steps,
    )
    say(f"model {place.model.location.id}, images of {place.image_size} pixels")
    if plan is None:
        from cli.reproduction.figure import reproduce_figure

        reproduce_figure(place, dry_run, json)
        return
    _reproduce_table(place, plan, name, dry_run, json)


def _plan(
    what: str, rows: str | None, recipes: "Mapping[str, Recipe]", roots: "Mapping[str, Path | None]", on: str | None
) -> "Plan":
    """What is to be run; says what is replaced and what is missing."""
    from cli.output import say
    from cli.reproduction.notes import missing, stand_ins
    from cli.reproduction.paper import load_table
    from cli.reproduction.plan import choose_rows, plan_table

    table = load_table(what)
    plan = plan_table(table, choose_rows(table, rows, recipes), roots.keys(), on)
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
    from cli.command_line import describe_origin
    from cli.output import say, write_json
    from cli.reports.tables import write_tables
    from cli.reproduction.comparison import compare, to_json
    from cli.reproduction.layout import blocks
    from cli.reproduction.notes import notes
    from cli.reproduction.pricing import prices, print_prices
    from cli.reproduction.run import commands, pieces, run_pieces, spelled_settings, survey

    found = survey(place, plan)
    if found.figures:
        say(f"{len(found.figures)} cell(s) were scored before")
    left = pieces(place, found)
    priced = prices(place, left) if left else []
    if priced:
        print_prices(place, priced)
    if dry_run:
        write_json(json, {"table": plan.table.name, "left": [asdict(price) for price in priced]})
        say("The same by hand, e.g. to train with torchrun (reproduce goes on from runs that it finds):")
        for command in commands(place, found):
            say(f"  {command}")
        return
    outcome = run_pieces(place, found)
    comparison = compare(
        plan, {where: outcome.figures[cell] for where, cell in plan.cells.items() if cell in outcome.figures}
    )
    said = notes(plan, model, place.image_size, place.train_steps, outcome.failures)
    say("")
    _print_blocks(comparison)
    for note in said:
        say(f"- {note}")
    parts, table = blocks(comparison), plan.table
    content = {
        "table": table.name,
        "model": place.model.location.id,
        "model_fingerprint": place.model.fingerprint,
        "train_steps": place.train_steps,
        "notes": said,
        "figures": to_json(list(comparison.numbers.values())),
        "commands": spelled_settings(place, found),
        **describe_origin(),
    }
    folder = place.folder / "tables"
    write_tables(folder, table.name, table.title, parts, said)
    write_json(folder / f"{table.name}.json", content)
    write_json(json, content)
    say(f"{folder}/{table.name}.md, .tex and .json hold the same")
    from cli.reports.reproduction import report_reproduction
    from featstore.plain_text import printable

    say(f"report: {report_reproduction(place.folder)}, with every table made in {place.folder}")
    if outcome.failures:
        for name, sentence in outcome.failures.items():
            typer.echo(f"dualsd: {printable(f'{name} was not run: {sentence}')}", err=True)
        raise typer.Exit(EXIT_INPUT)


def _print_blocks(comparison: "Comparison") -> None:
    """As in the paper, or, where its columns are too many for the terminal, a table a method."""
    from cli.output import console, print_table
    from cli.reproduction.layout import blocks, narrow_blocks

    wide = blocks(comparison)
    fits = all(block.width <= console().width for block in wide)
    for block in wide if fits or not comparison.plan.table.by_category else narrow_blocks(comparison):
        print_table(block.title, block.header, block.rows, block.left_columns)
