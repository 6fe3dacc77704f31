"""Which cells a table has, what of them can be run with the datasets at hand, and what they share. Touches no disk."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cli.recipe import Recipe
from cli.reproduction.paper import TRAINED_ON, PaperTable
from matcher.errors import InputError

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. name: as the paper has it. trained_on: the training set of its prompts, by the paper; None
    where none are trained."""

    name: str
    recipe: str
    trained_on: str | None


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


def choose_rows(table: PaperTable, typed: str | None, recipes: Mapping[str, Recipe]) -> tuple[Row, ...]:
    """The table's rows; where some are typed (`dift,dual-single@spair`) those, and other recipes beside them, of which
    the paper has no figures. Raises `InputError` for a name that is neither."""
    names = table.rows if typed is None else [name.strip() for name in typed.split(",")]
    return tuple(dict.fromkeys(_row(table, name, recipes) for name in names))


def plan_table(table: PaperTable, rows: Sequence[Row], found: Collection[str], stand_in: str | None) -> Plan:
    """The cells of `rows` on the table's datasets. found: the datasets at hand. stand_in: the dataset that is taken in
    place of those that are not, for training and testing; None: their cells are left out."""

    def at_hand(dataset: str) -> str | None:
        return dataset if dataset in found else stand_in

    columns: dict[str, list[str]] = {}
    for dataset in table.datasets:
        columns.setdefault(at_hand(dataset) or dataset, []).append(dataset)
    cells: dict[tuple[str, str], Cell] = {}
    missing: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in rows:
        for dataset, stands_for in columns.items():
            wanted = [stands_for[0]] + ([] if row.trained_on is None else [row.trained_on])
            lacking = tuple(dict.fromkeys(name for name in wanted if at_hand(name) is None))
            if lacking:
                missing[row.name, dataset] = lacking
                continue
            trained_on = None if row.trained_on is None else at_hand(row.trained_on)
            training = None if trained_on is None else Training(row.recipe, trained_on)
            cells[row.name, dataset] = Cell(row.recipe, training, dataset)
    return Plan(table, tuple(rows), tuple(Column(name, tuple(own)) for name, own in columns.items()), cells, missing)


def _row(table: PaperTable, name: str, recipes: Mapping[str, Recipe]) -> Row:
    known = f"the rows of {table.title} are {', '.join(table.rows)}, and any recipe goes beside them"
    recipe_name, _, trained_on = name.partition("@")
    recipe = recipes.get(recipe_name)
    if recipe is None:
        raise InputError(f"--rows names {name!r}, which is no row and no recipe: {known}.")
    if recipe.training is None:
        if trained_on:
            raise InputError(f"--rows names {name!r}, but {recipe_name} is not trained: {known}.")
        return Row(name, recipe_name, None)
    trained_on = trained_on or TRAINED_ON
    if trained_on not in recipe.training.epochs:
        sets = ", ".join(recipe.training.epochs)
        raise InputError(f"--rows names {name!r}, but {recipe_name} is trained on {sets}: {known}.")
    spelled = f"{recipe_name}@{trained_on}"
    # Tables 3 and 4 leave the usual training set out of their rows' names
    aliases = (spelled, recipe_name) if trained_on == TRAINED_ON else (spelled,)
    return Row(next((row for row in table.rows if row in aliases), spelled), recipe_name, trained_on)
