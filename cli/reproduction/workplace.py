"""Where a reproduction keeps what it makes, what it runs on, the configs of what it runs, and how a plan stands there:
which trainings and cells are done, which are left, and which cannot be run.

cells/dual-single@spair on pf-willow-0f3a9c21/
    figures.json    what was scored with which settings, and PCK with its intervals
    run.json ...    what `dualsd eval --out` keeps, see `featstore.pipeline.results`
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from cli.reproduction.paper import DEMO, Cell, Plan, Training
from featstore.backbones.base import Compute
from featstore.backbones.dino import SUBFOLDER, DinoShape, read_shape
from featstore.backbones.models import Model
from featstore.backbones.noise import Latents
from featstore.config import BuildConfig, EvalConfig, GridConfig, ReproduceConfig, TrainConfig
from featstore.datasets.records import AnnotatedPairs, Dataset
from featstore.datasets.registry import dataset_class, open_dataset
from featstore.errors import DatasetError, TuningError
from featstore.parsing import to_json
from featstore.pipeline import pairs as lists
from featstore.pipeline.build import BuildRequest, header_of, open_or_create
from featstore.pipeline.results import is_finished
from featstore.progress import Progress, Silent
from featstore.prompts.saved import load_prompts
from featstore.recipes import Recipe
from featstore.tuning.run_folder import RunFolder, identity
from featstore.tuning.settings import TuningSettings, resumed, settings_of
from matcher.errors import InputError

STEPS_ON_DEMO = 300
"""Of each training, where none are named."""

FOLDERS = {name: dataset_class(name).folders for name in ("spair", "pf-pascal", "pf-willow")}
"""In which the paper's datasets lie in a folder of datasets; SD4Match's first."""

B14 = DinoShape(channels=(768,) * 12, strides=(14,) * 12, prefix=1, usual_size=840)
"""facebook/dinov2-base's."""

OfStore = TypeVar("OfStore", EvalConfig, GridConfig, TrainConfig)


@dataclass(frozen=True)
class Workplace:
    """asked: which folder, by which means. roots: of the datasets at hand; None for the demo."""

    asked: ReproduceConfig
    model: Model
    compute: Compute
    recipes: Mapping[str, Recipe]
    roots: Mapping[str, Path | None]
    seed: ClassVar[int] = 0

    def dataset(self, name: str) -> Dataset:
        """One of those at hand."""
        return open_dataset(name, self.roots[name])

    def make_store(self, dataset: str, progress: Progress) -> None:
        """See that a dataset's store is there, with no latents yet. Raises `StoreError` where it is another model's."""
        open_or_create(self.dataset(dataset), self.model, self._request(dataset), progress)

    def identity(self, dataset: str) -> str:
        """What is trained on a dataset's store is trained on, see `featstore.tuning.run_folder.identity`."""
        return identity(header_of(self.dataset(dataset), self.model, self._request(dataset)))

    def store_path(self, dataset: str) -> Path:
        """Where a dataset's store lies, once it is made."""
        return self.asked.work / "stores" / f"{dataset}.zarr"

    def _request(self, dataset: str) -> BuildRequest:
        return BuildRequest(self.store_path(dataset), self.roots[dataset], None, Latents.SAMPLE, self.seed, (), 1)

    @cached_property
    def dino_shape(self) -> DinoShape:
        """The DINOv2's that is asked for, where it has a folder; B/14's where it may have to be fetched first."""
        brought = self.model.location.folder / SUBFOLDER
        folder = brought if self.asked.dino is None else Path(self.asked.dino).expanduser()
        return read_shape(folder) if folder.is_dir() else B14

    def building(self, dataset: str) -> BuildConfig:
        """What makes a dataset's store."""
        store, model = str(self.store_path(dataset)), self.model.location.id
        return BuildConfig(dataset=dataset, root=self.roots[dataset], model=model, store=store)

    def evaluation(self, cell: Cell) -> EvalConfig:
        """A cell's method. What its recipe says for SD 2-1's images gives way to the defaults on those of another
        size."""
        recipe = self.recipes[cell.recipe]
        return recipe.eval if self.model.image_size == recipe.build.size else replace(recipe.eval, dino_size=None)

    def training(self, training: Training, pairs: int) -> TrainConfig:
        """A training's method. What its recipe says for the published datasets gives way to `train`'s defaults on the
        demo, and what it says for SD 2-1's maps to those of a model of another image size. pairs: of the training
        set."""
        recipe, steps = self.recipes[training.recipe], self.asked.train_steps
        assert recipe.train is not None, "only what is trained has a training"
        found = recipe.train if self.model.image_size == recipe.build.size else replace(recipe.train, kernel=None)
        if training.dataset == DEMO:
            return replace(found, steps=steps or STEPS_ON_DEMO, batch=None, validation_pairs=None)
        return replace(found, steps=steps or recipe.steps_for(training.dataset, pairs))

    def placed(self, method: OfStore, dataset: str, **more: Any) -> OfStore:
        """A method on a dataset's store, by this workplace's means, with what is said beside."""
        means = {name: getattr(self.asked, name) for name in ("dino", "device", "dtype", "batch_size")}
        return replace(method, store=str(self.store_path(dataset)), **means, **more)

    def listed_pairs(self, dataset: str, split: str | None = None) -> tuple[AnnotatedPairs, str]:
        """The pairs of a split, by default of that for reporting, and their list's hash."""
        found, size = self.dataset(dataset), self.model.image_size
        split = split or lists.default_split(found)
        pairs = lists.choose_pairs(found, split, ())
        sizes = lists.sizes_from_files(found, lists.images_of(pairs))
        return pairs, lists.list_hash(split, lists.in_resized_frame(found, pairs, sizes.__getitem__, size, Silent()))


@dataclass(frozen=True, slots=True)
class OpenTraining:
    """A training that can be run.

    Args:
        method: Its recipe's, with the steps that are taken.
        config: All that `train` is told.
        path: Its run's folder; a training that is cut short is a run of its own.
        settings: What `train` makes of the method.
        pairs: Of its training set.
        held_out: The pairs that it validates on.
        run: Where it has begun.
    """

    of: Training
    method: TrainConfig
    config: TrainConfig
    path: Path
    settings: TuningSettings
    pairs: AnnotatedPairs
    held_out: AnnotatedPairs
    run: RunFolder | None

    @property
    def is_finished(self) -> bool:
        """Whether all its steps are done."""
        return self.run is not None and self.run.is_finished


@dataclass(frozen=True, slots=True)
class OpenCell:
    """A cell that can be scored. method: its recipe's. config: all that `eval` is told. pairs: of the test split.
    listed: their list's hash. training: that of its prompts."""

    of: Cell
    method: EvalConfig
    config: EvalConfig
    pairs: AnnotatedPairs
    listed: str
    training: OpenTraining | None

    def describe(self, place: Workplace) -> dict[str, Any]:
        """All that its figures depend on. Its prompts must be there."""
        prompts = None if self.training is None else load_prompts(self.training.path)
        return {
            "cell": self.of.name,
            "recipe": self.of.recipe,
            "eval": to_json(self.method),
            "prompts": None if prompts is None else {str(layer): prompts.content(layer) for layer in prompts.layers},
            "dataset": self.of.dataset,
            "pairs": self.listed,
            "model": place.model.fingerprint,
            "image_size": place.model.image_size,
            "seed": place.seed,
            "dtype": place.compute.dtype_name,
            "dino": None if place.recipes[self.of.recipe].defaults.dino is None else place.asked.dino,
        }

    def folder(self, place: Workplace) -> Path:
        """Where it is kept; other settings, prompts or pairs are another folder."""
        return place.asked.work / "cells" / f"{self.of.name}-{short_hash(self.describe(place))}"


def short_hash(content: Any) -> str:
    """8 hex digits of what JSON can hold."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()


@dataclass(frozen=True, slots=True)
class Survey:
    """How a plan stands. trainings, cells: those that can be run. scored: cells that were scored before. failures: a
    sentence for each training or cell that cannot be run, by name."""

    trainings: Mapping[Training, OpenTraining]
    cells: Mapping[Cell, OpenCell]
    scored: Collection[Cell]
    failures: Mapping[str, str]

    @property
    def left_cells(self) -> list[OpenCell]:
        """Those that are not scored yet."""
        return [opened for cell, opened in self.cells.items() if cell not in self.scored]

    @property
    def left_trainings(self) -> list[OpenTraining]:
        """Those that are not done, and whose prompts a cell that is left needs."""
        needed = {opened.of.training for opened in self.left_cells}
        return [own for training, own in self.trainings.items() if training in needed and not own.is_finished]


@contextmanager
def noted(failures: dict[str, str], name: str) -> Iterator[None]:
    """Leave off where the input is wrong; the sentence goes among the failures."""
    try:
        yield
    except InputError as error:
        failures[name] = str(error)


def survey(place: Workplace, plan: Plan) -> Survey:
    """Read the datasets' lists and what the workplace holds."""
    failures: dict[str, str] = {}
    trainings: dict[Training, OpenTraining] = {}
    cells: dict[Cell, OpenCell] = {}
    scored: set[Cell] = set()
    trained = cache(lambda dataset: lists.choose_pairs(place.dataset(dataset), "trn", ()))
    tested = cache(place.listed_pairs)
    for training in plan.trainings:
        with noted(failures, training.name):
            trainings[training] = _open_training(place, training, trained(training.dataset))
    for cell in plan.distinct_cells:
        with noted(failures, cell.name):
            own = None if cell.training is None else trainings.get(cell.training)
            if cell.training is not None and own is None:
                raise TuningError(f"The training {cell.training.name} cannot be run.")
            method = place.evaluation(cell)
            config = place.placed(method, cell.dataset, prompts=None if own is None else own.path)
            cells[cell] = OpenCell(cell, method, config, *tested(cell.dataset), own)
            if (own is None or own.is_finished) and is_finished(cells[cell].folder(place)):
                scored.add(cell)
    return Survey(trainings, cells, scored, failures)


def _open_training(place: Workplace, training: Training, pairs: AnnotatedPairs) -> OpenTraining:
    """Raises `TuningError` where a run of its name has other settings, or was trained on something else."""
    dataset, method = place.dataset(training.dataset), place.training(training, len(pairs))
    saving = {name: getattr(place.asked, name) for name in ("accumulate", "gradient_checkpointing")}
    config = place.placed(method, training.dataset, **saving)
    settings = settings_of(config, dataset.name, len(pairs), place.model, place.model.image_size, "float32")
    held_out = lists.choose_held_out(dataset, settings.validation_pairs)
    path, run = place.asked.work / "runs" / f"{training.name}-{method.steps}", None
    begun: dict[str, Any] = {"name": path.name, "runs": path.parent}
    if path.exists():
        run = RunFolder.open(path)
        if run.identity != place.identity(training.dataset):
            raise TuningError(
                f"{path} was trained on another model, size or dataset than is asked for now: take another --work "
                "folder."
            )
        resumed(run.settings, method, run.settings.dtype, path)
        begun = {"resume": path}
    return OpenTraining(training, method, replace(config, **begun), path, settings, pairs, held_out, run)


def find_datasets(root: Path | None) -> dict[str, Path]:
    """The paper's datasets in a folder of datasets, by name. Raises `InputError` where the folder does not exist or
    holds none of them."""
    if root is None:
        return {}
    usual = ", ".join(names[0] for names in FOLDERS.values())
    if not root.is_dir():
        raise InputError(f"--dataset-root {root} is no folder: give the one that {usual} lie in.")
    found: dict[str, Path] = {}
    for name, folder in ((name, root / own) for name, names in FOLDERS.items() for own in reversed(names)):
        with suppress(DatasetError):
            open_dataset(name, folder)
            found[name] = folder  # the first of the names wins
    if not found:
        raise InputError(f"--dataset-root {root} holds no dataset of the paper: it is looked through for {usual}.")
    return found
