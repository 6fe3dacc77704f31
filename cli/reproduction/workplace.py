"""Where a reproduction keeps what it makes, what it runs on, and the configs of what it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cli.reproduction.paper import DEMO, Cell, Training
from featstore.backbones import locate as location
from featstore.backbones.base import Compute
from featstore.backbones.dino import SUBFOLDER, DinoShape, read_shape
from featstore.backbones.noise import Latents
from featstore.backbones.stable_diffusion import Model
from featstore.config import BuildConfig, EvalConfig, GridConfig, ReproduceConfig, TrainConfig
from featstore.datasets.records import Dataset
from featstore.datasets.registry import dataset_class, open_dataset
from featstore.errors import DatasetError
from featstore.pipeline.build import BuildRequest, header_of, open_or_create
from featstore.progress import Progress
from featstore.recipes import Recipe
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, open_if_there
from featstore.tuning.settings import DEMO_STEPS
from matcher.errors import InputError

SUBFOLDERS = {name: dataset_class(name).folders for name in ("spair", "pf-pascal", "pf-willow")}
"""Under which names datasets lie in a folder of datasets; SD4Match's first."""

SEED = 0

B14 = DinoShape(channels=768, patch=14, trained=518)
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

    @property
    def folder(self) -> Path:
        """Of stores, runs, cells and tables."""
        return self.asked.work

    @property
    def image_size(self) -> int:
        """S in pixels: the model's own."""
        return self.model.image_size

    def dataset(self, name: str) -> Dataset:
        """One of those at hand."""
        return open_dataset(name, self.roots[name])

    def store_if_there(self, dataset: str) -> Store | None:
        """A dataset's store; None where none was made yet."""
        return open_if_there(self._store_path(dataset))

    def header(self, dataset: str) -> StoreHeader:
        """What a dataset's store is of."""
        return header_of(self.dataset(dataset), self.model, self._request(dataset))

    def make_store(self, dataset: str, progress: Progress) -> None:
        """See that a dataset's store is there, with no latents yet. Raises `StoreError` where it is another model's."""
        open_or_create(self.dataset(dataset), self.model, self._request(dataset), progress)

    def _store_path(self, dataset: str) -> Path:
        return self.folder / "stores" / f"{dataset}.zarr"

    def _request(self, dataset: str) -> BuildRequest:
        return BuildRequest(self._store_path(dataset), self.roots[dataset], None, Latents.SAMPLE, SEED, (), 1)

    @cached_property
    def dino_shape(self) -> DinoShape:
        """The DINOv2's that is asked for, where it has a folder; B/14's where it may have to be fetched first."""
        brought = self.model.location.folder / SUBFOLDER
        folder = brought if self.asked.dino is None else Path(self.asked.dino).expanduser()
        return read_shape(folder) if folder.is_dir() else B14

    def building(self, dataset: str) -> BuildConfig:
        """What makes a dataset's store."""
        store, model = str(self._store_path(dataset)), self.model.location.id
        return BuildConfig(dataset=dataset, root=self.roots[dataset], model=model, store=store)

    def evaluation(self, cell: Cell) -> EvalConfig:
        """A cell's method. What its recipe says for SD 2-1's images gives way to the defaults on those of another
        size."""
        recipe = self.recipes[cell.recipe]
        return recipe.eval if self._has_size_of(recipe) else replace(recipe.eval, dino_size=None)

    def training(self, training: Training, pairs: int) -> TrainConfig:
        """A training's method. What its recipe says for the published datasets gives way to `train`'s defaults on the
        demo, and what it says for SD 2-1's maps to those of a model of another image size. pairs: of the training
        set."""
        recipe, steps = self.recipes[training.recipe], self.asked.train_steps
        assert recipe.train is not None, "only what is trained has a training"
        found = recipe.train if self._has_size_of(recipe) else replace(recipe.train, kernel=None)
        if training.dataset == DEMO:
            return replace(found, steps=steps or DEMO_STEPS, batch=None, validation_pairs=None)
        return replace(found, steps=steps or recipe.steps_for(training.dataset, pairs))

    def _has_size_of(self, recipe: Recipe) -> bool:
        return self.image_size == recipe.build.size

    def run_path(self, training: Training, method: TrainConfig) -> Path:
        """A training's run folder; one that is cut short is a run of its own."""
        return self.folder / "runs" / f"{training.name}-{method.steps}"

    def placed(self, method: OfStore, dataset: str, **more: Any) -> OfStore:
        """A method on a dataset's store, by this workplace's means, with what is said beside."""
        own = self.asked
        means: dict[str, Any] = {
            "dino": own.dino,
            "device": own.device,
            "dtype": own.dtype,
            "batch_size": own.batch_size,
        }
        return replace(method, store=str(self._store_path(dataset)), **means, **more)


def find_datasets(root: Path | None) -> dict[str, Path]:
    """The paper's datasets in a folder of datasets, by name. Raises `InputError` where the folder does not exist or
    holds none of them."""
    if root is None:
        return {}
    if not root.is_dir():
        raise InputError(f"--dataset-root {root} is no folder: give the one that {_spelled()} lie in.")
    found = {}
    for name, subfolders in SUBFOLDERS.items():
        for subfolder in subfolders:
            try:
                splits = open_dataset(name, root / subfolder).splits
            except DatasetError:
                continue
            if splits:
                found[name] = root / subfolder
                break
    if not found:
        raise InputError(f"--dataset-root {root} holds no dataset of the paper: it is looked through for {_spelled()}.")
    return found


def is_at_hand(model: str, revision: str | None) -> bool:
    """Whether a model lies on this machine. Raises `ModelError` for a name that can be none."""
    if model == location.DEMO or Path(model).expanduser().is_dir():
        return True
    return location.downloaded(location.hub_name_of(model), revision) is not None


def _spelled() -> str:
    return ", ".join(names[0] for names in SUBFOLDERS.values())
