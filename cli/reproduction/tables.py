"""Our figures beside the paper's: numbers, tables of text, what a reader has to know of them, and `report.html`: every
table that was made in a work folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cli.output import now
from cli.reports import page
from cli.reports.tables import Block, in_words
from cli.reproduction.paper import ALL, DEMO, TABLES, Column, Plan, contradictions, published_leads, title_of
from matcher.statistics import Interval

CellFigures = Mapping[str, Mapping[float, Mapping[str, Interval]]]
"""A cell's PCK as fractions with 95 % intervals: by readout, by alpha, and by category or `all`."""

NONE = "-"
OUTSIDE = "*"
"""Marks a difference where the paper's figure lies outside our interval."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One number, ours and the paper's, as a table's JSON file has it: PCK in percent, None where there is none.

    Args:
        row: The method, as the table names it.
        dataset: What ours is of.
        category: One, or `all`.
        alpha: Fraction of theta.
        pck_percent: Ours.
        low_percent: Where its 95 % interval begins.
        high_percent: Where that ends.
        paper_percent: The paper's.
        paper_dataset: What the paper's is of.
        difference: Ours minus the paper's in points; None unless both are there and of the same data.
        paper_is_outside: Whether the paper's figure lies outside our interval.
        readout: By which ours was read. The paper does not name its own.
    """

    row: str
    dataset: str
    category: str
    alpha: float
    pck_percent: float | None
    low_percent: float | None
    high_percent: float | None
    paper_percent: float | None
    paper_dataset: str
    difference: float | None
    paper_is_outside: bool
    readout: str = "nn"  # tables of dualsd 0.1 know no other

    @property
    def method(self) -> str:
        """`dift by nn`."""
        return f"{self.row} by {self.readout}"

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Header and text of each column: ours, the paper's and, unless the paper's is of other data, the
        difference."""
        ours = paper = difference = NONE
        if self.pck_percent is not None:
            ours = f"{self.pck_percent:.2f} [{self.low_percent:.2f}, {self.high_percent:.2f}]"
        if self.paper_percent is not None:
            paper = f"{self.paper_percent:.2f}"
        if self.difference is not None:
            difference = f"{self.difference:+.2f}{OUTSIDE if self.paper_is_outside else ' '}"
        if self.paper_dataset != self.dataset:
            return (f"@{self.alpha:g}", ours), (f"paper, {self.paper_dataset}", paper)
        return (f"@{self.alpha:g}", ours), ("paper", paper), ("difference", difference)


def compare(plan: Plan, figures: Mapping[tuple[str, str], CellFigures]) -> list[Compared]:
    """Every number of a plan's table: row by row, dataset by dataset, readout by readout, alpha by alpha, category by
    category, `all` last.

    Args:
        plan: What was to be run.
        figures: By (row, column's dataset), of the cells that were run.
    """
    categories = {column: _categories(plan, column, figures) for column in plan.columns}
    numbers: list[Compared] = []
    for row, column in product(plan.rows, plan.columns):
        where = row.name, column.dataset
        cell = plan.cells.get(where)
        trained_on = None if cell is None or cell.training is None else cell.training.dataset
        same_data = not column.is_stand_in and trained_on == row.trained_on
        for readout, alpha, category in product(row.readouts, plan.table.alphas, categories[column]):
            ours = figures.get(where, {}).get(readout, {}).get(alpha, {}).get(category)
            paper = plan.table.figures.get((row.beside, column.stands_for[0], category, alpha))
            if column.is_stand_in and category != ALL:
                paper = None  # the demo's categories share names with the paper's, and nothing else
            percents: list[Any] = [None] * 3 if ours is None else [100 * value for value in astuple(ours)]
            mean, low, high = percents
            comparable = same_data and ours is not None and paper is not None
            difference = mean - paper if comparable else None
            outside = comparable and (low > paper or high < paper)
            about = category, alpha, *percents, paper, column.stands_for[0], difference, outside, readout
            numbers.append(Compared(row.name, column.dataset, *about))
    return numbers


def _categories(plan: Plan, column: Column, figures: Mapping[tuple[str, str], CellFigures]) -> tuple[str, ...]:
    """The paper's, or, in its place, those that the cells were scored on."""
    if not plan.table.by_category:
        return (ALL,)
    if not column.is_stand_in:
        return plan.table.categories
    own = (cell for (_, dataset), cell in figures.items() if dataset == column.dataset)
    scored = {name for cell in own for read in cell.values() for by_category in read.values() for name in by_category}
    return (*sorted(scored - {ALL}), ALL)


def blocks(plan: Plan, numbers: Sequence[Compared]) -> list[Block]:
    """A block per dataset that something was measured on: a row per method; where the paper's columns are categories,
    three lines per method and alpha."""
    if not plan.table.by_category:
        return narrow_blocks(numbers, titles_of(plan))
    return [
        Block(title, ("method", "", *grouped("category", own)), tuple(_lines_by_category(own)), left_columns=2)
        for dataset, title in titles_of(plan).items()
        if (own := measured(numbers).get(dataset))
    ]


def narrow_blocks(numbers: Sequence[Compared], titles: Mapping[str, str] = MappingProxyType({})) -> list[Block]:
    """The same for narrow terminals and pages: where columns are categories, a block per method, a row per category.
    titles: of datasets, where not their names."""
    found: list[Block] = []
    for dataset, own in measured(numbers).items():
        title = titles.get(dataset, dataset)
        if {number.category for number in own} == {ALL}:
            found.append(block_of(title, "method", own))
        else:
            found += [block_of(f"{name}, {title}", "category", part) for name, part in grouped("method", own).items()]
    return found


def titles_of(plan: Plan) -> dict[str, str]:
    """What a table says of its datasets."""
    in_place = {own.dataset: f" in place of {', '.join(own.stands_for)}" for own in plan.columns if own.is_stand_in}
    return {own.dataset: f"{plan.table.title}, {own.dataset}{in_place.get(own.dataset, '')}" for own in plan.columns}


def measured(numbers: Sequence[Compared]) -> dict[str, list[Compared]]:
    """All numbers by dataset, of those that something was measured on: the paper's figures alone are no comparison."""
    groups = grouped("dataset", numbers).items()
    return {dataset: own for dataset, own in groups if any(number.pck_percent is not None for number in own)}


def block_of(title: str, key: str, numbers: Sequence[Compared]) -> Block:
    """Two or three columns per alpha.

    Args:
        title: Of the table.
        key: What rows are of: `method` or `category`.
        numbers: At least one, all of the same data set.
    """
    groups = grouped(key, numbers)
    first = next(iter(groups.values()))
    header = (key, *(name for number in first for name, _ in number.cells))
    rows = ((value, *(text for number in own for _, text in number.cells)) for value, own in groups.items())
    return Block(title, header, tuple(rows))


def grouped(key: str, numbers: Sequence[Compared]) -> dict[Any, list[Compared]]:
    """In groups of one value each of `key`, in order."""
    found: dict[Any, list[Compared]] = {}
    for number in numbers:
        found.setdefault(getattr(number, key), []).append(number)
    return found


def _lines_by_category(numbers: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    for (method, alpha), own in groupby(numbers, attrgetter("method", "alpha")):
        for place, line in enumerate(zip(*(number.cells for number in own), strict=True)):
            names, texts = zip(*line, strict=True)
            if place > 0:
                yield "", names[0], *texts
            else:  # intervals of `all` alone: 18 more would be too wide
                yield method, f"ours @{alpha:g}", *(text.split(" ")[0] for text in texts[:-1]), texts[-1]


def notes(plan: Plan, model: str, image_size: int, train_steps: int | None, failures: Mapping[str, str]) -> list[str]:
    """What a reader of a table has to know.

    Args:
        model: By the name it was asked for.
        image_size: In pixels.
        train_steps: To which trainings were cut short, None for their own length.
        failures: A sentence for each training or cell that could not be run.

    Returns:
        Sentences, the weightiest first.
    """
    found = [
        f"PCK in percent, model {model}, images of {image_size} pixels, every other setting as `dualsd recipes NAME` "
        "shows it; 95 % intervals, images resampled; difference: ours minus the paper's, "
        f"{OUTSIDE} where the paper's lies outside our interval.",
        "The report does not name its readout, which is open: the same figure of the paper stands beside each readout "
        "of ours.",
        *stand_ins(plan),
    ]
    found += [
        f"{row.name} may be what the paper's {row.beside} is, and stands beside its figures: see `dualsd recipes "
        f"{row.recipe}`."
        for row in plan.rows
        if row.beside != row.name
    ]
    if model == DEMO:
        found.append(
            "The model is the demo's, drawn pictures are all it knows: its figures say nothing of Stable Diffusion's."
        )
    if plan.trainings and train_steps is not None:
        found.append(f"Trainings took {train_steps} steps, as --train-steps says, not their own length.")
    elif DEMO in plan.datasets and plan.trainings:
        found.append("Trainings on the demo are as short as `dualsd train` makes them there.")
    found += missing(plan)
    found += [f"{name} was not run: {sentence}" for name, sentence in failures.items()]
    return [*found, *published_leads(plan.table), *contradictions(plan.table)]


def stand_ins(plan: Plan) -> list[str]:
    """What the demo stands for."""
    found = []
    asked = [(row.trained_on, plan.cells.get((row.name, own.dataset))) for row in plan.rows for own in plan.columns]
    trained = [(wanted, cell.training.dataset) for wanted, cell in asked if cell is not None and cell.training]
    replaced = dict.fromkeys(str(wanted) for wanted, dataset in trained if wanted != dataset)
    if replaced:
        found.append(
            f"The demo's own trn stands for the training set(s) {', '.join(replaced)}: prompts are trained on "
            "it once, rows that differ in the training set alone show the same figures, and no difference is taken."
        )
    found += [
        f"The demo's own test split stands for {', '.join(column.stands_for)}: the paper's figures beside it are of "
        f"{column.stands_for[0]}, to show which rows it has ahead, and no difference is taken."
        for column in plan.columns
        if column.is_stand_in
    ]
    return found


def missing(plan: Plan) -> list[str]:
    """Which cells lack which datasets."""
    lacking: dict[tuple[str, ...], list[str]] = {}
    for column in plan.columns:
        own = {row.name: plan.missing.get((row.name, column.dataset), ()) for row in plan.rows}
        if all(column.dataset in names for names in own.values()):
            lacking.setdefault((column.dataset,), []).append(f"all rows on {column.dataset}")
            continue
        for row, names in own.items():
            if names:
                lacking.setdefault(names, []).append(f"{row} on {column.dataset}")
    return [f"Not run, for want of {' and '.join(names)}: {', '.join(cells)}." for names, cells in lacking.items()]


MAXIMA = ((350, "alone (2.3)", [3], ()), (200, "with layer 2 at t = 261 (2.3)", [2, 3], (261,)))
"""Where Figure 2 has its maxima by the report: the timestep of layer 3, in which company, the layers of those cells,
and the timesteps of the layers before it."""
AFTER_TRAINING = ("after training (2.4)", "150", "`dualsd grid --layers 2,3 --prompts RUN` tells")


def maxima_block(cells: Sequence[Mapping[str, Any]], readouts: Sequence[str]) -> Block:
    """Figure 2's maxima as the report states them, and ours at alpha 0.1. cells: of the grid, as its JSON has them."""
    rows = []
    for stated, company, layers, before in MAXIMA:
        own = [cell for cell in cells if cell["layers"] == layers and tuple(cell["t"][:-1]) == before]
        found = []
        for readout in readouts:
            pck = {cell["t"][-1]: cell["results"][readout]["image"]["0.1"][ALL] for cell in own}
            best = max(pck, key=pck.__getitem__)
            found.append(f"{best} ({100 * pck[best]:.2f} %, {100 * pck[stated]:.2f} % at {stated})")
        rows.append((company, str(stated), *found))
    header = ("layer 3", "the report", *(f"ours by {readout}" for readout in readouts))
    last = (*AFTER_TRAINING, *[NONE] * (len(readouts) - 1))
    return Block("Figure 2: the best timestep of layer 3, PCK@0.1", header, (*rows, last))


def report_reproduction(folder: Path) -> Path:
    """Write `report.html` into a work folder, from the tables that it holds.

    Args:
        folder: The work folder.

    Returns:
        Where the report is.

    Raises:
        InputError: It cannot be written.
    """
    files = {title_of(name): folder / "tables" / f"{name}.json" for name in TABLES}
    tables = {title: json.loads(file.read_text("utf-8")) for title, file in files.items() if file.is_file()}
    numbers = {title: [Compared(**number) for number in content["figures"]] for title, content in tables.items()}
    every = [number for own in numbers.values() for number in own]
    ours = [number for number in every if number.pck_percent is not None]
    settings: dict[str, page.Facts] = {}
    for title, content in tables.items():
        own = page.facts_of(content, "model", "model_fingerprint", "train_steps")
        settings |= {title: own | content["commands"], f"{title}: origin and versions": page.origin_facts(content)}
    report = page.Page(
        kind="Reproduction",
        title=f"{in_words('Table', [title.removeprefix('Table ') for title in tables])} of the report, run again",
        origin={"created": now()},
        headline=_headline(ours),
        highlights={
            "Model": page.unique(str(content.get("model")) for content in tables.values()),
            "Measured on": page.unique(one.dataset for one in ours) or "nothing yet",
            "Methods": len({one.row for one in ours}),
        },
        settings=settings,
        sections={
            "How to read it": [
                "Ours is PCK in percent with its 95 % interval, images resampled; the difference is ours minus the "
                f"paper's, in points. Where it is marked ({OUTSIDE}), the paper's figure lies outside our interval: "
                "more than other images of the same kind would explain. A dash is a figure that is not there.",
                "The paper gives no intervals, and does not name its readout: its figure stands beside each of ours. A "
                "difference may come from the method, from a setting that the paper does not state, or from other "
                "weights of the model: every setting with its source is in `dualsd recipes NAME`.",
            ],
            **{
                title: [*map(_marked, narrow_blocks(own)), *tables[title].get("notes", ())]
                for title, own in numbers.items()
            },
        },
    )
    return page.write_report(report, folder)


def _headline(numbers: Sequence[Compared]) -> page.Headline:
    compared = [one for one in numbers if one.difference is not None]
    if not compared:
        return page.Headline(
            "Figures measured",
            str(len(numbers)),
            "None of them is of the data that the paper's figures are of, so that no difference is taken: what can be "
            "compared is which method is ahead of which.",
        )
    largest = max(compared, key=lambda number: abs(number.difference or 0))
    return page.Headline(
        "The paper's figures that lie inside our 95 % intervals",
        str(sum(not number.paper_is_outside for number in compared)),
        f"The largest difference is {largest.difference:+.2f} points: {largest.method} on {largest.dataset}, "
        f"{largest.category}, PCK@{largest.alpha:g}.",
        f" of {len(compared)}",
        f"{len(numbers)} figures measured, {len(compared)} of them on the paper's own data",
    )


def _marked(block: Block) -> Block:
    """The differences that the paper's interval does not explain stand out."""
    rows = tuple((row[0], *(text.replace(OUTSIDE, f" {OUTSIDE}").rstrip() for text in row[1:])) for row in block.rows)
    marked = {(index, place) for index, row in enumerate(rows) for place, text in enumerate(row) if OUTSIDE in text}
    return replace(block, rows=rows, marked=marked)
