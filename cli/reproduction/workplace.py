"""Where a reproduction keeps what it makes, and what it runs on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.recipe import Recipe
from cli.recipe_options import Options, steps_for, train_options
from cli.reproduction.plan import DEMO, Training
from cli.reproduction.work import Work, bytes_of
from featstore.backbones import location
from featstore.backbones.dino_location import SUBFOLDER, DinoShape, read_shape
from featstore.backbones.latents import Latents
from featstore.backbones.model import Model
from featstore.datasets.records import Dataset
from featstore.datasets.registry import dataset_class, open_dataset
from featstore.errors import DatasetError
from featstore.pipeline.build import BuildRequest, header_of, open_or_create
from featstore.pipeline.compute import Compute
from featstore.progress import Progress
from featstore.store.schema import StoreHeader
from featstore.store.store import Store, open_if_there
from featstore.tuning.settings import DEMO_STEPS
from matcher.errors import InputError

SUBFOLDERS = {name: dataset_class(name).folders for name in ("spair", "pf-pascal", "pf-willow")}
"""Under which names datasets lie in a folder of datasets; SD4Match's first."""

SEED = 0

B14 = DinoShape(channels=768, patch=14, trained=518)
"""facebook/dinov2-base's."""


@dataclass(frozen=True, slots=True)
class Means:
    """How `train` and `eval` are to run, as their options say it."""

    device: str
    dtype: str
    batch_size: int
    dino: str | None
    accumulate: int
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class Workplace:
    """folder: of stores, runs, cells and tables. roots: of the datasets at hand; None for the demo. train_steps: to
    which trainings are cut short, None for the recipes' own length."""

    folder: Path
    model: Model
    compute: Compute
    means: Means
    recipes: Mapping[str, Recipe]
    roots: Mapping[str, Path | None]
    train_steps: int | None

    @property
    def image_size(self) -> int:
        """S in pixels: the model's own."""
        return self.model.image_size

    def dataset(self, name: str) -> Dataset:
        """One of those at hand."""
        return open_dataset(name, self.roots[name])

    def store_path(self, dataset: str) -> Path:
        """Where a dataset's store lies or will lie."""
        return self.folder / "stores" / f"{dataset}.zarr"

    def store_if_there(self, dataset: str) -> Store | None:
        """A dataset's store; None where none was made yet."""
        return open_if_there(self.store_path(dataset))

    def header(self, dataset: str) -> StoreHeader:
        """What a dataset's store is of."""
        return header_of(self.dataset(dataset), self.model, self._request(dataset))

    def open_store(self, dataset: str, progress: Progress) -> Store:
        """The same, made where it is missing, with no latents yet. Raises `StoreError` where it is another model's."""
        return open_or_create(self.dataset(dataset), self.model, self._request(dataset), progress)[0]

    def _request(self, dataset: str) -> BuildRequest:
        return BuildRequest(self.store_path(dataset), self.roots[dataset], None, Latents.SAMPLE, SEED, (), 1)

    def build_arguments(self, dataset: str) -> Options:
        """`cache build`'s for a dataset's store."""
        root = self.roots[dataset]
        found: Options = {"dataset": dataset, "model": self.model.location.id, "store": self.store_path(dataset)}
        return found if root is None else {**found, "root": root}

    def bytes_of(self, work: Work) -> int:
        """Of all rows of stores that a work makes: float16, and a checksum of 4 bytes a row."""
        side = self.model.latent_side(self.image_size)

        def map_bytes(layer: int) -> int:
            shape = self.model.shape(layer, self.image_size)
            return 2 * shape.channels * shape.side**2 + 4

        channels = self.dino_shape.channels
        latent_bytes = 2 * self.model.latent_channels * side**2 + 4
        return bytes_of(work, latent_bytes, map_bytes, lambda tokens: 2 * channels * tokens + 4)

    def flops_of(self, work: Work) -> int:
        """Of the VAE's and the UNet's passes of a work; DINOv2's and the matching's are not counted."""
        from featstore.backbones.flops import encode_flops, gradient_flops, pass_flops

        size = self.image_size
        found = len(work.latents) * encode_flops(self.model, size) if work.latents else 0
        found += sum(count * pass_flops(self.model, layer, size) for layer, count in work.passes.items())
        return found + sum(count * gradient_flops(self.model, layer, size) for layer, count in work.backward.items())

    @property
    def dino_shape(self) -> DinoShape:
        """The DINOv2's that is asked for, where it has a folder; B/14's where it may have to be fetched first."""
        brought = self.model.location.folder / SUBFOLDER
        folder = brought if self.means.dino is None else Path(self.means.dino).expanduser()
        return read_shape(folder) if folder.is_dir() else B14

    def training_options(self, training: Training, pairs: int) -> Options:
        """`train`'s, but for the store and the run. pairs: of the training set. What a recipe says for the published
        datasets gives way to `train`'s defaults on the demo, and what it says for SD 2-1's maps to those of a model of
        another image size."""
        recipe = self.recipes[training.recipe]
        on_demo = training.dataset == DEMO
        steps = self.train_steps or (DEMO_STEPS if on_demo else steps_for(recipe, training.dataset, pairs))
        options = train_options(recipe, steps)
        unfit = ["batch", "val_pairs"] if on_demo else []
        unfit += [] if self.image_size == recipe.inference.image_size.value else ["kernel"]
        return {name: value for name, value in options.items() if name not in unfit}

    def run_path(self, training: Training, steps: int) -> Path:
        """A training's run folder; one that is cut short is a run of its own."""
        return self.folder / "runs" / f"{training.name}-{steps}"


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


def check_alone() -> None:
    """Raise `InputError` under torchrun: cells are one process's work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "`dualsd reproduce` runs in one process: train its runs with `torchrun ... dualsd train` as --dry-run "
            "spells them, then reproduce goes on from there."
        )


def _spelled() -> str:
    return ", ".join(names[0] for names in SUBFOLDERS.values())
