"""Running a plan, trainings before cells, and Figure 2, which is what `dualsd grid` draws: accuracy against timestep, a
curve per layer. What is done is not done again, and what cannot be run leaves the rest alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import typer
from pydantic import TypeAdapter

from cli.evaluate import evaluate
from cli.grid import grid
from cli.options import command_of
from cli.output import console, describe_origin, say, write_json
from cli.progress import TerminalProgress
from cli.reports.tables import print_block, write_tables
from cli.reproduction import tables
from cli.reproduction.paper import DEMO, Cell, Plan, choose_rows, load_tables, plan_table
from cli.reproduction.work import price_of_grid, prices_of, print_prices
from cli.reproduction.workplace import OpenCell, OpenTraining, Survey, Workplace, noted, short_hash, survey
from cli.train import train
from featstore.config import GridConfig, ReproduceConfig
from featstore.files import write_whole
from featstore.parsing import to_json
from featstore.pipeline.pairs import images_of
from featstore.pipeline.results import EvaluationRun, is_finished
from featstore.plain_text import printable
from featstore.recipes import Recipe
from featstore.sealed import seal
from matcher.errors import InputError
from matcher.pck import Average
from matcher.statistics import pck_intervals

EXIT_INPUT = 2
FIGURE2 = GridConfig(
    layers=("2", "3"),
    timesteps=tuple(sorted([*range(50, 401, 50), 261])),  # at 261 the report takes layer 2
    weightings=((0.8, 0.6),),
    readouts=("nn", "kernelsoftmax"),
    split="val",
    prompt="a photo of a {category}",
    ensemble=8,
    stream=True,
)
"""The figure's numbers are not known: these are the layers of the report's method, on the split for choosing."""
FIGURE2_DATASET = "spair"


def plan_of(config: ReproduceConfig, recipes: Mapping[str, Recipe], roots: Mapping[str, Path | None]) -> Plan:
    """What is to be run of a table; says what is replaced and what is missing.

    Args:
        config: Which table, and which of its rows.
        recipes: All by name.
        roots: Of the datasets at hand, by name.

    Raises:
        InputError: For a row that there is not, or where nothing can be run.
    """
    table = load_tables()[config.what]
    plan = plan_table(table, choose_rows(table, config.rows, recipes), roots.keys(), config.on)
    for sentence in (*tables.stand_ins(plan), *tables.missing(plan)):
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


def reproduce_table(place: Workplace, plan: Plan, model: str, dry_run: bool, file: Path | None) -> None:
    """Run what is left of a plan, print the table beside the paper's figures, and write it.

    Args:
        place: Where it is run, by which means.
        plan: What the table asks for.
        model: By the name it was asked for.
        dry_run: Whether it is only said what that would take.
        file: Gets the table's JSON, too, or what it would take.

    Raises:
        typer.Exit: Something could not be run, which was said.
    """
    found, table = survey(place, plan), plan.table
    if found.scored:
        say(f"{len(found.scored)} cell(s) were scored before")
    priced = prices_of(place, found)
    if priced:
        print_prices(place, priced)
    if dry_run:
        write_json(file, {"table": table.name, "left": priced})
        say("The same by hand, e.g. to train with torchrun (reproduce goes on from runs that it finds):")
        left: list[OpenTraining | OpenCell] = [*found.left_trainings, *found.left_cells]
        builds = dict.fromkeys(command_of(place.building(own.of.dataset), "cache", "build") for own in left)
        runs = (command_of(own.config, "train" if own in found.left_trainings else "eval") for own in left)
        say(*(f"  {command}" for command in [*builds, *runs]))
        return
    figures, failures = run_left(place, found)
    scored = {where: figures[cell] for where, cell in plan.cells.items() if cell in figures}
    numbers = tables.compare(plan, scored)
    said = tables.notes(plan, model, place.model.image_size, place.asked.train_steps, failures)
    say("")
    parts = tables.blocks(plan, numbers)
    fits = not table.by_category or all(block.width <= console().width for block in parts)
    for block in parts if fits else tables.narrow_blocks(numbers, tables.titles_of(plan)):
        print_block(block)
    say(*(f"- {note}" for note in said))
    methods = {own.of.name: command_of(own.method, "train") for own in found.trainings.values()}
    methods |= {own.of.name: command_of(own.method, "eval") for own in found.cells.values()}
    content = {
        "table": table.name,
        "model": place.model.location.id,
        "model_fingerprint": place.model.fingerprint,
        "train_steps": place.asked.train_steps,
        "notes": said,
        "figures": list(map(asdict, numbers)),
        "commands": methods,
        "config": to_json(place.asked),
        **describe_origin(),
    }
    folder = place.asked.work / "tables"
    write_tables(folder, table.name, table.title, parts, said)
    write_json(folder / f"{table.name}.json", content)
    write_json(file, content)
    say(f"{folder}/{table.name}.md, .tex and .json hold the same")
    say(f"report: {tables.report_reproduction(place.asked.work)}, with every table made in {place.asked.work}")
    for name, sentence in failures.items():
        typer.echo(f"dualsd: {printable(f'{name} was not run: {sentence}')}", err=True)
    if failures:
        raise typer.Exit(EXIT_INPUT)


def run_left(place: Workplace, found: Survey) -> tuple[dict[Cell, tables.CellFigures], dict[str, str]]:
    """Do what is left: the figures of all cells, and a sentence for each training and cell that could not be run. One
    whose input is wrong fails with its sentence, and the next one is done."""
    figures, failures = dict[Cell, tables.CellFigures](), dict(found.failures)

    @cache
    def make_store(dataset: str) -> None:
        with TerminalProgress() as progress:
            place.make_store(dataset, progress)

    for own in found.left_trainings:
        with noted(failures, own.of.name):
            make_store(own.of.dataset)
            say("", f"$ {command_of(own.config, 'train')}")
            train(own.config)
    for cell, opened in found.cells.items():
        with noted(failures, cell.name):
            if cell.training is not None and cell.training.name in failures:
                raise InputError(f"The training {cell.training.name} failed.")
            config = replace(opened.config, out=opened.folder(place))
            if not is_finished(opened.folder(place)):  # another training may have ended in the same prompts
                make_store(cell.dataset)
                say("", f"$ {command_of(config, 'eval')}")
                evaluate(config)
            figures[cell] = _figures_of(opened, place)
    return figures, failures


def _figures_of(opened: OpenCell, place: Workplace) -> tables.CellFigures:
    """PCK of a scored cell with 95 % intervals, which are kept beside it. Raises `EvaluationError` where it is
    damaged."""
    folder, average = opened.folder(place), Average(opened.method.average)
    run = EvaluationRun.open(folder)
    found = pck_intervals(run.matched, run.scoring.readouts, run.scoring.alphas, average, run.scoring.pixels)
    figures = {
        readout: {alpha: columns.named() for alpha, columns in by_alpha.items()} for readout, by_alpha in found.items()
    }
    plain = TypeAdapter(tables.CellFigures).dump_python(figures, mode="json")
    written = seal({**opened.describe(place), "figures": plain})
    write_whole(folder / "figures.json", (json.dumps(written, indent=2) + "\n").encode())
    return figures


def reproduce_figure(place: Workplace, dry_run: bool, file: Path | None) -> None:
    """Run the grid, whose pictures and numbers are kept.

    Args:
        place: Where it is run, by which means.
        dry_run: Whether it is only said what that would take.
        file: Gets the numbers, too, or what they would take.

    Raises:
        InputError: Where the dataset is missing.
    """
    dataset = FIGURE2_DATASET if FIGURE2_DATASET in place.roots else DEMO
    if dataset not in place.roots:
        raise InputError(
            f"Figure 2 needs {FIGURE2_DATASET}: give its folder's folder with --dataset-root, or take --on demo."
        )
    if dataset == DEMO:
        say(f"The demo's own dataset stands for {FIGURE2_DATASET}.")
    pairs, listed = place.listed_pairs(dataset, FIGURE2.split)
    # other pairs, models or settings are another folder
    model, dtype = place.model, place.compute.dtype_name
    own = (listed, model.fingerprint, model.image_size, place.seed, dtype, to_json(FIGURE2))
    folder = place.asked.work / "figures" / f"figure2 on {dataset}-{short_hash(own)}"
    numbers = folder / "grid.json"
    config = place.placed(FIGURE2, dataset, out=folder)
    commands = [command_of(place.building(dataset), "cache", "build"), f"{command_of(config, 'grid')} --json {numbers}"]
    if numbers.is_file():
        say(f"Figure 2 was made before: {folder} has its pictures and numbers")
    else:
        passes, last = len(FIGURE2.timesteps or ()) * FIGURE2.ensemble, max(map(int, FIGURE2.layers or ()))
        priced = price_of_grid(place, dataset, images_of(pairs), passes, last)
        print_prices(place, priced)
        if dry_run:
            write_json(file, {"figure": "figure2", "left": priced})
            say("The same by hand:", *(f"  {command}" for command in commands))
            return
        with TerminalProgress() as progress:
            place.make_store(dataset, progress)
        folder.mkdir(parents=True, exist_ok=True)
        say("", f"$ {commands[-1]}")
        grid(config, json=numbers)
    content = json.loads(numbers.read_text(encoding="utf-8"))
    print_block(tables.maxima_block(content["cells"], FIGURE2.readouts))
    write_json(file, content)
