"""Our figures beside the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.reproduction.paper import ALL
from cli.reproduction.plan import Column, Plan, Row
from matcher.statistics import Interval

CellFigures = Mapping[float, Mapping[str, Interval]]
"""A cell's PCK as fractions with 95 % intervals: by alpha, and by category or `all`."""


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


@dataclass(frozen=True, slots=True)
class Comparison:
    """All numbers of a plan's table, by (row, column's dataset, category, alpha). categories: of each column's dataset,
    `all` last."""

    plan: Plan
    categories: Mapping[str, tuple[str, ...]]
    numbers: Mapping[tuple[str, str, str, float], Compared]

    def of(self, row: Row, column: Column, category: str, alpha: float) -> Compared:
        """One number."""
        return self.numbers[row.name, column.dataset, category, alpha]


def compare(plan: Plan, figures: Mapping[tuple[str, str], CellFigures]) -> Comparison:
    """Every number of a plan's table. figures: by (row, column's dataset), of the cells that were run."""
    categories = {column.dataset: _categories(plan, column, figures) for column in plan.columns}
    numbers = {
        (row.name, column.dataset, category, alpha): Compared(
            row,
            column,
            category,
            alpha,
            figures.get((row.name, column.dataset), {}).get(alpha, {}).get(category),
            # the demo's categories share names with the paper's, and nothing else
            plan.table.figures.get((row.name, column.stands_for[0], category, alpha))
            if category == ALL or not column.is_stand_in
            else None,
            _is_of_same_data(plan, row, column),
        )
        for row in plan.rows
        for column in plan.columns
        for alpha in plan.table.alphas
        for category in categories[column.dataset]
    }
    return Comparison(plan, categories, numbers)


def to_json(numbers: Sequence[Compared]) -> list[dict[str, Any]]:
    """A dictionary a number, PCK in percent."""
    return [
        {
            "row": one.row.name,
            "dataset": one.column.dataset,
            "category": one.category,
            "alpha": one.alpha,
            **_percent(one.ours),
            "paper_percent": one.paper,
            "paper_dataset": one.column.stands_for[0],
            "difference": one.difference,
            "paper_is_outside": one.paper_is_outside,
        }
        for one in numbers
    ]


def _percent(ours: Interval | None) -> dict[str, float | None]:
    if ours is None:
        return dict.fromkeys(("pck_percent", "low_percent", "high_percent"))
    return {"pck_percent": 100 * ours.mean, "low_percent": 100 * ours.low, "high_percent": 100 * ours.high}


def _is_of_same_data(plan: Plan, row: Row, column: Column) -> bool:
    cell = plan.cells.get((row.name, column.dataset))
    trained_on = None if cell is None or cell.training is None else cell.training.dataset
    return not column.is_stand_in and trained_on == row.trained_on


def _categories(plan: Plan, column: Column, figures: Mapping[tuple[str, str], CellFigures]) -> tuple[str, ...]:
    """The paper's, or, in its place, those that the cells were scored on."""
    if not plan.table.by_category:
        return (ALL,)
    if not column.is_stand_in:
        return plan.table.categories
    scored = (
        name
        for (_, dataset), own in figures.items()
        if dataset == column.dataset
        for by_category in own.values()
        for name in by_category
    )
    return (*sorted(set(scored) - {ALL}), ALL)
