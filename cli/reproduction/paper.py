"""The figures of the paper's Tables 1 to 5, all 408, as `cli/reference/paper_tables.csv` has them; PCK in percent."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).parents[1] / "reference" / "paper_tables.csv"
ALL = "all"
TABLES = ("table1", "table2", "table3", "table4", "table5")
TRAINED_ON = "spair"
"""What prompts are learned from where a row does not say."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a table. method: as the row is named, `dual-single@spair` where the training set is part of it.
    category: one, or `all`. alpha: fraction of theta. percent: PCK."""

    table: str
    method: str
    dataset: str
    category: str
    alpha: float
    percent: float


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper. rows: methods, datasets, categories (with `all`), alphas in the paper's order. figures: by
    (method, dataset, category, alpha)."""

    name: str
    rows: tuple[str, ...]
    datasets: tuple[str, ...]
    categories: tuple[str, ...]
    alphas: tuple[float, ...]
    figures: dict[tuple[str, str, str, float], float]

    @property
    def by_category(self) -> bool:
        """Whether its columns are categories, as in Tables 3 and 4."""
        return self.categories != (ALL,)

    @property
    def title(self) -> str:
        """`Table 5`."""
        return title_of(self.name)


def title_of(table: str) -> str:
    """`table5` as `Table 5`."""
    return f"Table {table.removeprefix('table')}"


@cache
def load_figures() -> tuple[Figure, ...]:
    """All figures, in the file's order."""
    with FILE.open(newline="", encoding="utf-8") as stream:
        return tuple(
            Figure(
                row["table"],
                row["method"],
                row["dataset"],
                row["category"],
                float(row["alpha"]),
                float(row["pck_percent"]),
            )
            for row in csv.DictReader(stream)
        )


def load_table(name: str) -> PaperTable:
    """One of `TABLES`."""
    own = [figure for figure in load_figures() if figure.table == name]
    return PaperTable(
        name,
        tuple(dict.fromkeys(figure.method for figure in own)),
        tuple(dict.fromkeys(figure.dataset for figure in own)),
        tuple(dict.fromkeys(figure.category for figure in own)),
        tuple(dict.fromkeys(figure.alpha for figure in own)),
        {(figure.method, figure.dataset, figure.category, figure.alpha): figure.percent for figure in own},
    )


def contradictions(table: PaperTable) -> list[str]:
    """A sentence for each method and alpha of the table's `all` for which the paper's tables give several figures."""
    given: dict[tuple[str, str, float], dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for figure in load_figures():
        if figure.category == ALL:
            key = (_full_name(figure.method), figure.dataset, figure.alpha)
            given[key][figure.percent].append(figure.table.removeprefix("table"))
    sentences = []
    for row in table.rows:
        for dataset in table.datasets:
            for alpha in table.alphas:
                figures = given[_full_name(row), dataset, alpha]
                if len(figures) > 1:
                    parts = (f"{percent:.2f} in {_tables(names)}" for percent, names in sorted(figures.items()))
                    where = f"{row} on {dataset} @{alpha:g}"
                    sentences.append(f"The report contradicts itself: {where} is {' and '.join(parts)}.")
    return sentences


def _full_name(method: str) -> str:
    """A row's name with its training set, which Tables 3 and 4 leave out."""
    spelled = f"{method}@{TRAINED_ON}"
    return spelled if any(figure.method == spelled for figure in load_figures()) else method


def _tables(numbers: Sequence[str]) -> str:
    names = sorted(numbers)
    if len(names) == 1:
        return f"Table {names[0]}"
    return f"Tables {', '.join(names[:-1])} and {names[-1]}"
