"""The paper's Tables 1 to 5, all 408 figures as `cli/reference/paper_tables.csv` has them (PCK in percent): which cells
a table has, what of them can be run with the datasets at hand, and what they share."""

import csv
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from cli.reports.tables import in_words
from featstore.recipes import Recipe
from matcher.errors import InputError

FILE = Path(__file__).parents[1] / "reference" / "paper_tables.csv"
ALL = "all"
DEMO = "demo"
TABLES = ("table1", "table2", "table3", "table4", "table5")
TRAINED_ON = "spair"
"""What prompts are learned from where a row does not say."""
HYPOTHESES = {("table3", "dift"): "dift-50", ("table4", "dift"): "dift-50"}
"""By table and row: a recipe that may be what the row's figures are of. It is run as well, and stands beside them."""
PUBLISHED = {("sd4match-cpm", "spair", 0.05): 59.5, ("sd4match-cpm", "spair", 0.1): 75.5}
"""What SD4Match's own paper has for rows of this one, PCK in percent by (method, dataset, alpha)."""
AHEAD = "dual-cpm"
"""The report's method that is the best by its tables, and is compared with SD4Match's."""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table of the paper. rows: methods, datasets, categories (with `all`), alphas in the paper's order. figures: PCK
    in percent by (method, dataset, category, alpha); a method is named as its row, `dual-single@spair` where the
    training set is part of it."""

    name: str
    rows: tuple[str, ...]
    datasets: tuple[str, ...]
    categories: tuple[str, ...]
    alphas: tuple[float, ...]
    figures: Mapping[tuple[str, str, str, float], float]

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
def load_tables() -> Mapping[str, PaperTable]:
    """All of `TABLES`, by name."""
    figures: dict[str, dict[tuple[str, str, str, float], float]] = defaultdict(dict)
    with FILE.open(newline="", encoding="utf-8") as stream:
        _, *lines = csv.reader(stream)
    for table, method, dataset, category, alpha, percent in lines:
        figures[table][method, dataset, category, float(alpha)] = float(percent)
    tables = {}
    for name, own in figures.items():
        rows, datasets, categories, alphas = (tuple(dict.fromkeys(column)) for column in zip(*own, strict=True))
        tables[name] = PaperTable(name, rows, datasets, categories, alphas, own)
    return tables


def contradictions(table: PaperTable) -> list[str]:
    """A sentence for each method and alpha of the table's `all` for which the paper's tables give several figures."""
    usual = f"@{TRAINED_ON}"  # which Tables 3 and 4 leave out
    given: dict[tuple[str, str, float], dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, other in load_tables().items():
        for (method, dataset, category, alpha), percent in other.figures.items():
            if category == ALL:
                given[method.removesuffix(usual), dataset, alpha][percent].append(name.removeprefix("table"))
    found = []
    for row, dataset, alpha in product(table.rows, table.datasets, table.alphas):
        figures = given[row.removesuffix(usual), dataset, alpha]
        if len(figures) > 1:
            values = (f"{value:.2f} in {in_words('Table', sorted(own))}" for value, own in sorted(figures.items()))
            about = f"{row} on {dataset} @{alpha:g}"
            found.append(f"The report contradicts itself: {about} is {' and '.join(values)}.")
    return found


def published_leads(table: PaperTable) -> list[str]:
    """A sentence for each figure of the table that SD4Match's own paper has otherwise: how far the report's method is
    ahead of it."""
    found = []
    for (method, dataset, alpha), percent in PUBLISHED.items():
        ours = table.figures.get((AHEAD, dataset, ALL, alpha))
        theirs = table.figures.get((method, dataset, ALL, alpha))
        if ours is not None and theirs is not None:
            found.append(
                f"SD4Match's own paper has {percent:.2f} for {method} on {dataset} @{alpha:g}, {table.title} "
                f"{theirs:.2f}: {AHEAD}'s {ours:.2f} leads by {ours - percent:+.1f} over the one, {ours - theirs:+.1f} "
                "over the other."
            )
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table.

    Args:
        name: As the paper has it.
        recipe: What it is.
        trained_on: The training set of its prompts, by the paper; None where none are trained.
        readouts: By which it is scored.
        beside: The row whose figures of the paper it stands beside; itself but for one of `HYPOTHESES`.
    """

    name: str
    recipe: str
    trained_on: str | None
    readouts: tuple[str, ...]
    beside: str


@dataclass(frozen=True, slots=True)
class Training:
    """Prompts to be learned: by which recipe, from which dataset."""

    recipe: str
    dataset: str

    @property
    def name(self) -> str:
        """`dual-single@spair`."""
        return f"{self.recipe}@{self.dataset}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A recipe on a dataset's test split, with the prompts of a training where it has one."""

    recipe: str
    training: Training | None
    dataset: str

    @property
    def name(self) -> str:
        """`dual-single@spair on pf-willow`."""
        return f"{self.recipe if self.training is None else self.training.name} on {self.dataset}"


@dataclass(frozen=True, slots=True)
class Column:
    """A dataset that figures are of. stands_for: the paper's datasets: itself, or those in whose place the demo is."""

    dataset: str
    stands_for: tuple[str, ...]

    @property
    def is_stand_in(self) -> bool:
        """Whether the paper's figures are of other data."""
        return self.stands_for != (self.dataset,)


@dataclass(frozen=True, slots=True)
class Plan:
    """cells: what is run for (row, column's dataset); rows that ask for the same share it. missing: for the others, the
    datasets that they lack."""

    table: PaperTable
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], Cell]
    missing: Mapping[tuple[str, str], tuple[str, ...]]

    @property
    def distinct_cells(self) -> tuple[Cell, ...]:
        """Each once, in the order in which rows ask for them."""
        return tuple(dict.fromkeys(self.cells.values()))

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Each once."""
        return tuple(dict.fromkeys(cell.training for cell in self.distinct_cells if cell.training is not None))

    @property
    def datasets(self) -> tuple[str, ...]:
        """All that are read, for training or testing, each once."""
        trained = (training.dataset for training in self.trainings)
        return tuple(dict.fromkeys([*trained, *(cell.dataset for cell in self.distinct_cells)]))


def choose_rows(table: PaperTable, names: Sequence[str] | None, recipes: Mapping[str, Recipe]) -> tuple[Row, ...]:
    """The rows that are run.

    Args:
        names: Some of the table's (`dift`, `dual-single@spair`), and other recipes beside them, of which the paper has
            no figures; None for all of the table's, and what they may be.

    Raises:
        InputError: For a name that is neither.
    """
    usual = (name for row in table.rows for name in (row, HYPOTHESES.get((table.name, row))) if name is not None)
    return tuple(dict.fromkeys(_row(table, name, recipes) for name in names or usual))


def _row(table: PaperTable, name: str, recipes: Mapping[str, Recipe]) -> Row:
    recipe_name, _, typed = name.partition("@")
    recipe, trained_on = recipes.get(recipe_name), typed or TRAINED_ON
    wrong = None
    if recipe is None:
        wrong = "which is no row and no recipe"
    elif recipe.train is None:
        if not typed:
            hypotheses = {recipe: row for (own, row), recipe in HYPOTHESES.items() if own == table.name}
            return Row(name, recipe_name, None, recipe.eval.readouts, hypotheses.get(name, name))
        wrong = f"but {recipe_name} is not trained"
    elif trained_on not in recipe.epochs:
        wrong = f"but {recipe_name} is trained on {', '.join(recipe.epochs)}"
    if wrong is not None or recipe is None:
        known = f"the rows of {table.title} are {', '.join(table.rows)}, and any recipe goes beside them"
        raise InputError(f"--rows names {name!r}, {wrong}: {known}.")
    spelled = f"{recipe_name}@{trained_on}"
    # Tables 3 and 4 leave the usual training set out of their rows' names
    aliases = (spelled, recipe_name) if trained_on == TRAINED_ON else (spelled,)
    found = next((row for row in table.rows if row in aliases), spelled)
    return Row(found, recipe_name, trained_on, recipe.eval.readouts, found)


def plan_table(table: PaperTable, rows: Sequence[Row], found: Collection[str], stand_in: str | None) -> Plan:
    """The cells of some rows on the table's datasets.

    Args:
        found: The datasets at hand.
        stand_in: The dataset that is taken in place of those that are not, for training and testing; None: their cells
            are left out.
    """

    def at_hand(dataset: str) -> str | None:
        return dataset if dataset in found else stand_in

    columns: dict[str, list[str]] = {}
    for dataset in table.datasets:
        columns.setdefault(at_hand(dataset) or dataset, []).append(dataset)
    cells: dict[tuple[str, str], Cell] = {}
    missing: dict[tuple[str, str], tuple[str, ...]] = {}
    for row, (dataset, stands_for) in product(rows, columns.items()):
        wanted = [name for name in (stands_for[0], row.trained_on) if name is not None]
        lacking = tuple(dict.fromkeys(name for name in wanted if at_hand(name) is None))
        if lacking:
            missing[row.name, dataset] = lacking
            continue
        trained_on = None if row.trained_on is None else at_hand(row.trained_on)
        training = None if trained_on is None else Training(row.recipe, trained_on)
        cells[row.name, dataset] = Cell(row.recipe, training, dataset)
    return Plan(table, tuple(rows), tuple(Column(name, tuple(own)) for name, own in columns.items()), cells, missing)
