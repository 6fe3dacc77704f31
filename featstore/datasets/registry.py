"""Data sets by the name that `--dataset` takes. A data set is a file of this folder, which is imported only when it is
asked for: its `DATASET` is a class that says its name, what it is, how it opens and what theta is measured on."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import DatasetError

if TYPE_CHECKING:
    from featstore.datasets.records import Dataset

DATASET_NAMES = ("ap10k", "coco", "cub", "demo", "folder", "pf-pascal", "pf-willow", "spair", "spair-u")
"""The file of pf-pascal is pf_pascal.py."""

ONE_OF = f"{', '.join(DATASET_NAMES[:-1])} or {DATASET_NAMES[-1]}"
"""The names as help texts have them."""


def dataset_class(name: str) -> Any:
    """The class of a data set, see `featstore.datasets.listed.ListedDataset`. Raises `DatasetError` for an unknown
    name."""
    if name not in DATASET_NAMES:
        raise DatasetError(f"There is no dataset {name!r}; choose one of {', '.join(DATASET_NAMES)}.")
    return import_module(f"featstore.datasets.{name.replace('-', '_')}").DATASET


def open_dataset(name: str, root: Path | None, annotations: Path | None = None) -> "Dataset":
    """A data set.

    Args:
        name: one of `DATASET_NAMES`.
        root: the folder that it is in, or the one that holds this; None for the demo, which comes along.
        annotations: the file of annotations of one that takes such, a path in `root` or anywhere.

    Raises:
        DatasetError: for an unknown name, a root that is missing or holds no such data set, one given to the demo, and
            annotations that are missing or given to a data set that has its own.
    """
    kind = dataset_class(name)
    found: Dataset
    if getattr(kind, "takes_annotations", False):
        found = kind.open(root, annotations)
    elif annotations is None:
        found = kind.open(root)
    else:
        raise DatasetError(f"The dataset {name} has its own annotations: leave out --annotations {annotations}.")
    return found


def annotations_of(dataset: "Dataset") -> str | None:
    """What `open_dataset` takes as `annotations` of a data set, relative to its root where they lie there; None of one
    that has its own."""
    file: Path | None = getattr(dataset, "annotations", None)
    return None if file is None else str(file)
