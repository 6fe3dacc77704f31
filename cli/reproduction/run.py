"""Running a plan: first what its datasets hold and what was done before, then trainings, then cells. What is done is
not done again, and what cannot be run leaves the rest alone.

cells/dual-single@spair on pf-willow-0f3a9c21/
    figures.json    what was scored with which settings, and PCK with its intervals
    run.json ...    what `dualsd eval --out` keeps, see `featstore.pipeline.results`
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from cli.evaluate import evaluate
from cli.options import command_of
from cli.output import say
from cli.progress import TerminalProgress
from cli.reproduction.paper import Cell, Plan, Training
from cli.reproduction.tables import CellFigures
from cli.reproduction.work import Prices, Work, price, work_of_cell, work_of_training
from cli.reproduction.workplace import SEED, Workplace
from cli.train import train
from featstore.config import EvalConfig, TrainConfig, to_json
from featstore.datasets.records import Dataset, Pair
from featstore.errors import TuningError
from featstore.files import write_whole
from featstore.pipeline.pairs import (
    choose_pairs,
    choose_some,
    default_split,
    images_of,
    in_resized_frame,
    list_hash,
    sizes_from_files,
)
from featstore.pipeline.results import EvaluationRun, is_finished
from featstore.progress import Silent
from featstore.prompts.file import load_prompts
from featstore.sealed import check_seal, seal
from featstore.tuning.run_folder import RunFolder, identity
from featstore.tuning.settings import TuningSettings, resumed, settings_of
from matcher.errors import InputError
from matcher.pck import Average
from matcher.statistics import Interval, pck_intervals

FIGURES = "figures.json"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class OpenTraining:
    """A training that can be run.

    Args:
        method: Its recipe's, with the steps that are taken.
        path: Its run's folder.
        settings: What `train` makes of the method.
        pairs: Of its training set.
        held_out: The pairs that it validates on.
        run: Where it has begun.
    """

    of: Training
    method: TrainConfig
    path: Path
    settings: TuningSettings
    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    run: RunFolder | None

    @property
    def is_finished(self) -> bool:
        """Whether all its steps are done."""
        return self.run is not None and self.run.is_finished

    def config(self, place: Workplace) -> TrainConfig:
        """All that `train` is told."""
        own, path = place.asked, self.path
        begun = {"name": path.name, "runs": path.parent} if self.run is None else {"resume": path}
        saving = {"accumulate": own.accumulate, "gradient_checkpointing": own.gradient_checkpointing}
        return place.placed(self.method, self.of.dataset, **begun, **saving)


@dataclass(frozen=True, slots=True)
class OpenCell:
    """A cell that can be scored. method: its recipe's. pairs: of the test split. listed: their list's hash. run: the
    folder of its prompts, None where they are not learned."""

    of: Cell
    method: EvalConfig
    pairs: Sequence[Pair]
    listed: str
    run: Path | None

    def config(self, place: Workplace) -> EvalConfig:
        """All that `eval` is told."""
        return place.placed(self.method, self.of.dataset, prompts=self.run)

    def describe(self, place: Workplace) -> dict[str, Any]:
        """All that its figures depend on. Its prompts must be there."""
        prompts = None if self.run is None else load_prompts(self.run)
        return {
            "cell": self.of.name,
            "recipe": self.of.recipe,
            "eval": to_json(self.method),
            "prompts": None if prompts is None else {str(layer): prompts.content(layer) for layer in prompts.layers},
            "dataset": self.of.dataset,
            "pairs": self.listed,
            "model": place.model.fingerprint,
            "image_size": place.image_size,
            "seed": SEED,
            "dtype": place.compute.dtype_name,
            "dino": None if place.recipes[self.of.recipe].defaults.dino is None else place.asked.dino,
        }

    def folder(self, place: Workplace) -> Path:
        """Where it is kept; other settings, prompts or pairs are another folder."""
        return place.folder / "cells" / f"{self.of.name}-{short_hash(self.describe(place))}"


def short_hash(content: Any) -> str:
    """8 hex digits of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class Survey:
    """How a plan stands. trainings, cells: those that can be run. figures: of cells that were scored before. failures:
    a sentence for each training or cell that cannot be run, by name."""

    trainings: Mapping[Training, OpenTraining]
    cells: Mapping[Cell, OpenCell]
    figures: Mapping[Cell, CellFigures]
    failures: Mapping[str, str]

    @property
    def left_cells(self) -> list[OpenCell]:
        """Those that are not scored yet."""
        return [opened for cell, opened in self.cells.items() if cell not in self.figures]

    @property
    def left_trainings(self) -> list[OpenTraining]:
        """Those that are not done, and whose prompts a cell that is left needs."""
        needed = {opened.of.training for opened in self.left_cells}
        return [own for training, own in self.trainings.items() if training in needed and not own.is_finished]


def survey(place: Workplace, plan: Plan) -> Survey:
    """Read the datasets' lists and what the workplace holds."""
    failures: dict[str, str] = {}
    trainings: dict[Training, OpenTraining] = {}
    cells: dict[Cell, OpenCell] = {}
    figures: dict[Cell, CellFigures] = {}
    trained = cache(lambda dataset: choose_pairs(place.dataset(dataset), "trn", ()))
    tested = cache(lambda dataset: listed_pairs(place, place.dataset(dataset), default_split(place.dataset(dataset))))
    for training in plan.trainings:
        with_pairs = partial(_open_training, place, training, partial(trained, training.dataset))
        opened = _attempt(failures, training.name, with_pairs)
        if opened is not None:
            trainings[training] = opened
    for cell in plan.distinct_cells:
        own = None if cell.training is None else trainings.get(cell.training)
        if cell.training is not None and own is None:
            failures[cell.name] = f"The training {cell.training.name} cannot be run."
            continue
        listed = _attempt(failures, cell.name, partial(tested, cell.dataset))
        if listed is None:
            continue
        cells[cell] = OpenCell(cell, place.evaluation(cell), *listed, None if own is None else own.path)
        if own is None or own.is_finished:
            kept = kept_figures(cells[cell].folder(place))
            if kept is not None:
                figures[cell] = kept
    return Survey(trainings, cells, figures, failures)


def listed_pairs(place: Workplace, dataset: Dataset, split: str) -> tuple[Sequence[Pair], str]:
    """The pairs of a split, and their list's hash."""
    pairs = choose_pairs(dataset, split, ())
    sizes = sizes_from_files(dataset, images_of(pairs))
    return pairs, list_hash(split, in_resized_frame(dataset, pairs, sizes.__getitem__, place.image_size, Silent()))


def _open_training(place: Workplace, training: Training, pairs_of: Callable[[], Sequence[Pair]]) -> OpenTraining:
    """Raises `TuningError` where a run of its name has other settings, or was trained on something else."""
    pairs, dataset = pairs_of(), place.dataset(training.dataset)
    method = place.training(training, len(pairs))
    accumulated = replace(method, accumulate=place.asked.accumulate)
    settings = settings_of(accumulated, dataset.name, len(pairs), place.model, place.image_size, "float32")
    held_out = choose_some(dataset.pairs("val") if "val" in dataset.splits else (), settings.validation_pairs)
    path, run = place.run_path(training, method), None
    if path.exists():
        run = RunFolder.open(path)
        if run.identity != identity(place.header(training.dataset)):
            raise TuningError(
                f"{path} was trained on another model, size or dataset than is asked for now: take another --work "
                "folder."
            )
        resumed(run.settings, method, run.settings.dtype, path)
    return OpenTraining(training, method, path, settings, pairs, held_out, run)


def prices(place: Workplace, found: Survey) -> Prices:
    """Of what is left, in the order in which it is done, each beyond what those before it make; last of all together,
    where anything is left."""
    works: list[tuple[str, Work]] = []
    for own in found.left_trainings:
        work = work_of_training(place, own.of.dataset, own.settings, own.pairs, own.held_out, own.run)
        works.append((f"train {own.of.name}", work))
    for opened in found.left_cells:
        cell = opened.of
        trained = None if cell.training is None else found.trainings[cell.training]
        run = trained.run if trained is not None and trained.is_finished else None
        works.append((cell.name, work_of_cell(place, cell, opened.pairs, run)))
    priced, planned = [], Work()
    for name, work in works:
        priced.append(price(place, name, work.without(planned)))
        planned |= work
    return [*priced, price(place, "all", planned)] if priced else []


def run_left(place: Workplace, found: Survey) -> Survey:
    """Do what is left, and say how the plan stands then. A training or cell whose input is wrong fails with its
    sentence, and the next one is done."""
    figures, failures = dict(found.figures), dict(found.failures)

    @cache
    def make_store(dataset: str) -> None:
        with TerminalProgress() as progress:
            place.make_store(dataset, progress)

    def learn(opened: OpenTraining) -> None:
        make_store(opened.of.dataset)
        config = opened.config(place)
        say("", f"$ {command_of(config, 'train')}")
        train(config)

    def score(opened: OpenCell) -> CellFigures:
        make_store(opened.of.dataset)
        return score_cell(place, opened)

    for own in found.left_trainings:
        _attempt(failures, own.of.name, partial(learn, own))
    for opened in found.left_cells:
        cell = opened.of
        if cell.training is not None and cell.training.name in failures:
            failures[cell.name] = f"The training {cell.training.name} failed."
            continue
        scored = _attempt(failures, cell.name, partial(score, opened))
        if scored is not None:
            figures[cell] = scored
    return replace(found, figures=figures, failures=failures)


def score_cell(place: Workplace, opened: OpenCell) -> CellFigures:
    """Score a cell, whose store must be there, and keep its figures. Raises what `dualsd eval` raises."""
    folder = opened.folder(place)
    if not is_finished(folder):  # else it was stopped before its figures were written
        config = replace(opened.config(place), out=folder)
        say("", f"$ {command_of(config, 'eval')}")
        evaluate(config)
    figures = figures_of(EvaluationRun.open(folder), Average(opened.method.average))
    plain = {
        f"{alpha:g}": {category: asdict(interval) for category, interval in by_category.items()}
        for alpha, by_category in figures.items()
    }
    written = {**opened.describe(place), "figures": plain}
    write_whole(folder / FIGURES, (json.dumps(seal(written), indent=2) + "\n").encode())
    return figures


def kept_figures(folder: Path) -> CellFigures | None:
    """Of a cell that was scored before; None where it was not."""
    try:
        kept = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        check_seal(kept)  # damaged, they are made again from the predictions
        return {
            float(alpha): {category: Interval(**interval) for category, interval in by_category.items()}
            for alpha, by_category in kept["figures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def figures_of(run: EvaluationRun, average: Average) -> CellFigures:
    """PCK of an evaluation's one readout with 95 % intervals, by alpha and category."""
    (readout,) = run.scoring.readouts
    found = pck_intervals(run.matched, [readout], run.scoring.alphas, average, run.scoring.pixels)
    return {alpha: columns.named() for alpha, columns in found[readout].items()}


def commands(place: Workplace, found: Survey) -> list[str]:
    """What is left as commands of `dualsd`."""
    trainings, cells = found.left_trainings, found.left_cells
    datasets = dict.fromkeys([*(own.of.dataset for own in trainings), *(own.of.dataset for own in cells)])
    return [
        *(command_of(place.building(dataset), "cache", "build") for dataset in datasets),
        *(command_of(own.config(place), "train") for own in trainings),
        *(command_of(own.config(place), "eval") for own in cells),
    ]


def spelled_methods(found: Survey) -> dict[str, str]:
    """The method of every training and cell as options of `dualsd`, by name."""
    trained = {own.of.name: command_of(own.method, "train") for own in found.trainings.values()}
    return trained | {own.of.name: command_of(own.method, "eval") for own in found.cells.values()}


def _attempt(failures: dict[str, str], name: str, work: Callable[[], Found]) -> Found | None:
    """What `work` gives; None, and its sentence among the failures, where the input is wrong."""
    try:
        return work()
    except InputError as error:
        failures[name] = str(error)
        return None
