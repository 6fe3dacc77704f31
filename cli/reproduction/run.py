"""Running a plan: first what its datasets hold and what was done before, then trainings, then cells. What cannot be run
leaves the rest alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from cli.progress import TerminalProgress
from cli.recipe_options import eval_options, to_command
from cli.reproduction.cells import OpenCell, eval_arguments, kept_figures, score_cell
from cli.reproduction.comparison import CellFigures
from cli.reproduction.cost import work_of_cell, work_of_training
from cli.reproduction.plan import Cell, Plan, Training
from cli.reproduction.pricing import Piece
from cli.reproduction.training import is_finished, learn, open_run, settings_of, train_arguments
from cli.reproduction.work import Work
from cli.reproduction.workplace import Workplace
from featstore.datasets.records import Pair
from featstore.pipeline.evaluate import choose_pairs, default_split
from featstore.pipeline.grid import choose_some
from featstore.tuning.run_folder import RunFolder
from matcher.errors import InputError

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class OpenTraining:
    """A training that can be run. pairs: of its training set. held_out: those that it validates on. run: where it has
    begun."""

    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    run: RunFolder | None


@dataclass(frozen=True, slots=True)
class Survey:
    """How a plan stands. trainings, cells: those that can be run; a cell comes with the pairs of its test split.
    figures: of cells that were scored before. failures: a sentence for each training or cell that cannot be run, by
    name."""

    trainings: Mapping[Training, OpenTraining]
    cells: Mapping[Cell, Sequence[Pair]]
    figures: Mapping[Cell, CellFigures]
    failures: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """figures: of the cells that are scored. failures: see `Survey`."""

    figures: Mapping[Cell, CellFigures]
    failures: Mapping[str, str]


def survey(place: Workplace, plan: Plan) -> Survey:
    """Read the datasets' lists and what the workplace holds."""
    failures: dict[str, str] = {}
    trainings: dict[Training, OpenTraining] = {}
    cells: dict[Cell, Sequence[Pair]] = {}
    figures: dict[Cell, CellFigures] = {}
    test: dict[str, Sequence[Pair]] = {}
    trained: dict[str, Sequence[Pair]] = {}

    def open_training(training: Training) -> OpenTraining:
        dataset = place.dataset(training.dataset)
        if training.dataset not in trained:
            trained[training.dataset] = choose_pairs(dataset, "trn", ())
        pairs = trained[training.dataset]
        count = settings_of(place, training, len(pairs)).validation_pairs
        held_out = choose_some(dataset.pairs("val") if "val" in dataset.splits else (), count)
        return OpenTraining(pairs, held_out, open_run(place, training, len(pairs)))

    def open_cell(cell: Cell) -> Sequence[Pair]:
        if cell.dataset not in test:
            dataset = place.dataset(cell.dataset)
            test[cell.dataset] = choose_pairs(dataset, default_split(dataset), ())
        return test[cell.dataset]

    for training in plan.trainings:
        opened = _attempt(failures, training.name, partial(open_training, training))
        if opened is not None:
            trainings[training] = opened
    for cell in plan.distinct_cells:
        if cell.training is not None and cell.training not in trainings:
            failures[cell.name] = f"The training {cell.training.name} cannot be run."
            continue
        pairs = _attempt(failures, cell.name, partial(open_cell, cell))
        if pairs is None:
            continue
        cells[cell] = pairs
        run = None if cell.training is None else trainings[cell.training].run
        if cell.training is None or is_finished(run):
            kept = kept_figures(place, _open_cell(place, cell, pairs, run))
            if kept is not None:
                figures[cell] = kept
    return Survey(trainings, cells, figures, failures)


def pieces(place: Workplace, found: Survey) -> list[Piece]:
    """What is left, in the order in which it is done."""
    left: list[Piece] = []
    planned = Work()
    needed = {cell.training for cell in found.cells if cell not in found.figures}
    for training, opened in found.trainings.items():
        if training in needed and not is_finished(opened.run):
            work = work_of_training(place, training, opened.pairs, opened.held_out, opened.run)
            left.append(Piece(f"train {training.name}", work.without(planned)))
            planned |= work
    for cell, pairs in found.cells.items():
        if cell not in found.figures:
            run = None if cell.training is None else found.trainings[cell.training].run
            work = work_of_cell(place, cell, pairs, run if is_finished(run) else None)
            left.append(Piece(cell.name, work.without(planned)))
            planned |= work
    return left


def run_pieces(place: Workplace, found: Survey) -> Outcome:
    """Do what is left. A training or cell whose input is wrong fails with its sentence, and the next one is done."""
    figures, failures = dict(found.figures), dict(found.failures)
    runs: dict[Training, RunFolder] = {}
    opened: set[str] = set()

    def open_store(dataset: str) -> None:
        if dataset not in opened:
            with TerminalProgress() as progress:
                place.open_store(dataset, progress)
            opened.add(dataset)

    def run_training(training: Training) -> RunFolder:
        open_store(training.dataset)
        return learn(place, training, len(found.trainings[training].pairs))

    def score(cell: Cell) -> CellFigures:
        open_store(cell.dataset)
        run = None if cell.training is None else runs[cell.training]
        return score_cell(place, _open_cell(place, cell, found.cells[cell], run))

    left = [cell for cell in found.cells if cell not in figures]
    for training in dict.fromkeys(cell.training for cell in left if cell.training is not None):
        run = _attempt(failures, training.name, partial(run_training, training))
        if run is not None:
            runs[training] = run
    for cell in left:
        if cell.training is not None and cell.training not in runs:
            failures[cell.name] = f"The training {cell.training.name} failed."
            continue
        scored = _attempt(failures, cell.name, partial(score, cell))
        if scored is not None:
            figures[cell] = scored
    return Outcome(figures, failures)


def commands(place: Workplace, found: Survey) -> list[str]:
    """What is left as commands of `dualsd`."""
    left = [cell for cell in found.cells if cell not in found.figures]
    trainings = [own for own in dict.fromkeys(cell.training for cell in left) if own is not None]
    datasets = dict.fromkeys([*(own.dataset for own in trainings), *(cell.dataset for cell in left)])
    spelled = [to_command("cache build", place.build_arguments(dataset)) for dataset in datasets]
    runs: dict[Training, Path] = {}
    for training in trainings:
        opened = found.trainings[training]
        count = len(opened.pairs)
        runs[training] = place.run_path(training, settings_of(place, training, count).steps)
        if not is_finished(opened.run):
            spelled.append(to_command("train", train_arguments(place, training, count, opened.run)))
    for cell in left:
        run = None if cell.training is None else runs[cell.training]
        spelled.append(to_command("eval", eval_arguments(place, place.recipes[cell.recipe], cell, run)))
    return spelled


def spelled_settings(place: Workplace, found: Survey) -> dict[str, str]:
    """The settings of every training and cell as options of `dualsd`, by name."""
    trained = {
        training.name: to_command("train", place.training_options(training, len(opened.pairs)))
        for training, opened in found.trainings.items()
    }
    scored = {
        cell.name: to_command("eval", eval_options(place.recipes[cell.recipe], place.image_size))
        for cell in found.cells
    }
    return trained | scored


def _open_cell(place: Workplace, cell: Cell, pairs: Sequence[Pair], run: RunFolder | None) -> OpenCell:
    return OpenCell(cell, place.recipes[cell.recipe], pairs, None if run is None else run.path)


def _attempt(failures: dict[str, str], name: str, work: Callable[[], Found]) -> Found | None:
    """What `work` gives; None, and its sentence among the failures, where the input is wrong."""
    try:
        return work()
    except InputError as error:
        failures[name] = str(error)
        return None
