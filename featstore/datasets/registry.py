"""Datasets by the name that `--dataset` takes. Adapters are imported only when asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from featstore.datasets.reading import is_file, is_folder, subfolders
from featstore.datasets.records import Dataset
from featstore.errors import DatasetError

DATASET_NAMES = ("demo", "folder", "pf-pascal", "pf-willow", "spair")


def open_dataset(name: str, root: Path | None) -> Dataset:
    """The dataset `name` in the folder `root`; the demo, which comes along, takes none.

    A folder that holds the dataset in the sub-folder that SD4Match uses (SPair-71k, pf-pascal, pf-willow) is accepted
    as well. Raises `DatasetError` for a name that is not in `DATASET_NAMES`, for a root that is missing, does not exist
    or holds no such dataset, and for a root given to the demo.
    """
    match name:
        case "demo":
            from featstore.datasets.demo import DemoDataset

            if root is not None:
                raise DatasetError(f"The demo dataset comes with dualsd and takes no root; leave out {root}.")
            return DemoDataset()
        case "folder":
            from featstore.datasets import folder

            return folder.FolderDataset(_existing(name, root))
        case "pf-pascal":
            from featstore.datasets import pf_pascal

            found = _locate(_existing(name, root), name, "pf-pascal", pf_pascal.find_lists, pf_pascal.EXPECTED)
            return pf_pascal.PfPascalDataset(found)
        case "pf-willow":
            from featstore.datasets import pf_willow

            found = _locate(_existing(name, root), name, "pf-willow", pf_willow.find_lists, pf_willow.EXPECTED)
            return pf_willow.PfWillowDataset(found)
        case "spair":
            from featstore.datasets import spair

            found = _locate(_existing(name, root), name, "SPair-71k", spair.find_lists, spair.EXPECTED)
            return spair.SpairDataset(found)
        case _:
            raise DatasetError(f"There is no dataset {name!r}; choose one of {', '.join(DATASET_NAMES)}.")


def _existing(name: str, root: Path | None) -> Path:
    if root is None:
        raise DatasetError(f"The dataset {name} needs the folder that it is in; give it with --root DIR.")
    if not is_folder(root):
        what = "is a file" if is_file(root) else "does not exist"
        raise DatasetError(f"The root {root} of the dataset {name} {what}; give the folder that the dataset is in.")
    return root


def _locate(root: Path, name: str, usual: str, find_lists: Callable[[Path], Mapping[str, Path]], expected: str) -> Path:
    """The folder that holds the lists: `root`, or its sub-folder `usual`."""
    for folder in (root, root / usual):
        if find_lists(folder):
            return folder
    children = [child for child in subfolders(root) if find_lists(child)]
    advice = f"it is in {children[0]}: give that" if children else "give the folder that the dataset was unpacked to"
    raise DatasetError(f"{root} holds no {name} dataset (looked for {expected}); {advice}.")
