"""Our figures beside the paper's: numbers, tables of text, and what a reader has to know of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from cli.reports.tables import Block
from cli.reproduction.paper import ALL, DEMO, Column, Plan, Row, contradictions
from matcher.statistics import Interval

CellFigures = Mapping[float, Mapping[str, Interval]]
"""A cell's PCK as fractions with 95 % intervals: by alpha, and by category or `all`."""

NONE = "-"
OUTSIDE = "*"
"""Marks a difference where the paper's figure lies outside our interval."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One number. ours: a fraction, None where it was not run. paper: percent, None where it has none. is_of_same_data:
    whether ours was trained and tested on what the paper's was."""

    row: Row
    column: Column
    category: str
    alpha: float
    ours: Interval | None
    paper: float | None
    is_of_same_data: bool

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's in points; None unless both are there and of the same data."""
        if self.ours is None or self.paper is None or not self.is_of_same_data:
            return None
        return 100 * self.ours.mean - self.paper

    @property
    def paper_is_outside(self) -> bool:
        """Whether the paper's figure lies outside our interval."""
        if self.difference is None or self.ours is None or self.paper is None:
            return False
        return not 100 * self.ours.low <= self.paper <= 100 * self.ours.high

    def to_json(self) -> dict[str, Any]:
        """As a table's JSON file has it, PCK in percent."""
        ours = self.ours
        return {
            "row": self.row.name,
            "dataset": self.column.dataset,
            "category": self.category,
            "alpha": self.alpha,
            "pck_percent": None if ours is None else 100 * ours.mean,
            "low_percent": None if ours is None else 100 * ours.low,
            "high_percent": None if ours is None else 100 * ours.high,
            "paper_percent": self.paper,
            "paper_dataset": self.column.stands_for[0],
            "difference": self.difference,
            "paper_is_outside": self.paper_is_outside,
        }

    @property
    def texts(self) -> tuple[str, ...]:
        """Ours, the paper's and, unless the paper's is of other data, the difference."""
        ours, paper, difference = NONE, NONE if self.paper is None else f"{self.paper:.2f}", NONE
        if self.ours is not None:
            ours = f"{100 * self.ours.mean:.2f} [{100 * self.ours.low:.2f}, {100 * self.ours.high:.2f}]"
        if self.difference is not None:
            difference = f"{self.difference:+.2f}{OUTSIDE if self.paper_is_outside else ' '}"
        return (ours, paper) if self.column.is_stand_in else (ours, paper, difference)


def compare(plan: Plan, figures: Mapping[tuple[str, str], CellFigures]) -> list[Compared]:
    """Every number of a plan's table: row by row, dataset by dataset, alpha by alpha, category by category, `all` last.

    Args:
        figures: By (row, column's dataset), of the cells that were run.
    """
    categories = {column: _categories(plan, column, figures) for column in plan.columns}
    numbers: list[Compared] = []
    for row, column in product(plan.rows, plan.columns):
        where = row.name, column.dataset
        cell = plan.cells.get(where)
        trained_on = None if cell is None or cell.training is None else cell.training.dataset
        same_data = not column.is_stand_in and trained_on == row.trained_on
        for alpha, category in product(plan.table.alphas, categories[column]):
            ours = figures.get(where, {}).get(alpha, {}).get(category)
            paper = plan.table.figures.get((row.name, column.stands_for[0], category, alpha))
            if column.is_stand_in and category != ALL:
                paper = None  # the demo's categories share names with the paper's, and nothing else
            numbers.append(Compared(row, column, category, alpha, ours, paper, same_data))
    return numbers


def _categories(plan: Plan, column: Column, figures: Mapping[tuple[str, str], CellFigures]) -> tuple[str, ...]:
    """The paper's, or, in its place, those that the cells were scored on."""
    if not plan.table.by_category:
        return (ALL,)
    if not column.is_stand_in:
        return plan.table.categories
    own = (cell for (_, dataset), cell in figures.items() if dataset == column.dataset)
    scored = {name for cell in own for by_category in cell.values() for name in by_category}
    return (*sorted(scored - {ALL}), ALL)


def blocks(plan: Plan, numbers: Sequence[Compared]) -> list[Block]:
    """A block per dataset that something is run on: a row per method; where the paper's columns are categories, three
    lines per method and alpha."""
    found = []
    for column, own in _shown(plan, numbers):
        if plan.table.by_category:
            header, left_columns = ["method", "", *dict.fromkeys(number.category for number in own)], 2
            lines = _lines_by_category(own)
        else:
            header, left_columns = ["method", *_header(plan, column)], 1
            lines = _lines(own, lambda number: number.row.name)
        found.append(Block(_title(plan, column), tuple(header), tuple(lines), left_columns))
    return found


def narrow_blocks(plan: Plan, numbers: Sequence[Compared]) -> list[Block]:
    """The same for a narrow terminal where columns are categories: a block per method, a row per category."""
    return [
        Block(
            f"{row.name}, {_title(plan, column)}",
            ("category", *_header(plan, column)),
            tuple(_lines([number for number in own if number.row == row], lambda number: number.category)),
        )
        for column, own in _shown(plan, numbers)
        for row in plan.rows
    ]


def _shown(plan: Plan, numbers: Sequence[Compared]) -> Iterator[tuple[Column, list[Compared]]]:
    """The columns with their numbers; the paper's figures alone are no comparison."""
    for column in plan.columns:
        if any(dataset == column.dataset for _, dataset in plan.cells):
            yield column, [number for number in numbers if number.column == column]


def _lines(numbers: Sequence[Compared], name_of: Callable[[Compared], str]) -> Iterator[tuple[str, ...]]:
    """A line per name, with what there is of each alpha."""
    for name in dict.fromkeys(map(name_of, numbers)):
        yield name, *(text for number in numbers if name_of(number) == name for text in number.texts)


def _lines_by_category(numbers: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    for (row, alpha), own in groupby(numbers, lambda number: (number.row.name, number.alpha)):
        ours, paper, *difference = (list(line) for line in zip(*(number.texts for number in own), strict=True))
        ours[:-1] = [text.split(" ")[0] for text in ours[:-1]]  # intervals of `all` alone: 18 more would be too wide
        yield row, f"ours @{alpha:g}", *ours
        yield "", _paper_name(numbers[0].column), *paper
        for line in difference:
            yield "", "difference", *line


def _title(plan: Plan, column: Column) -> str:
    in_place = f" in place of {', '.join(column.stands_for)}" if column.is_stand_in else ""
    return f"{plan.table.title}, {column.dataset}{in_place}"


def _header(plan: Plan, column: Column) -> Iterator[str]:
    for alpha in plan.table.alphas:
        yield from (f"@{alpha:g}", _paper_name(column), *([] if column.is_stand_in else ["difference"]))


def _paper_name(column: Column) -> str:
    """Beside a stand-in the paper's figures are of other data, and no difference is taken."""
    return f"paper, {column.stands_for[0]}" if column.is_stand_in else "paper"


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
        *stand_ins(plan),
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
    return [*found, *contradictions(plan.table)]


def stand_ins(plan: Plan) -> list[str]:
    """What the demo stands for."""
    found = []
    trained = [(row.trained_on, plan.cells.get((row.name, own.dataset))) for row in plan.rows for own in plan.columns]
    replaced = dict.fromkeys(
        wanted
        for wanted, cell in trained
        if wanted is not None and cell is not None and cell.training is not None and cell.training.dataset != wanted
    )
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
