"""What a config leaves open, settled: device and precision, model and data set."""

from pathlib import Path
from typing import TYPE_CHECKING

from featstore.backbones.base import Compute, compute_on
from featstore.backbones.locate import ALIASES, DEMO
from featstore.pipeline.distributed import launched
from featstore.store.keys import RAW
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.datasets.records import Dataset
    from featstore.store.store import Store


def check_kept(encoding: str, what: str) -> None:
    """Raise `InputError` where maps are to be kept otherwise than usual that are not kept at all."""
    if encoding != RAW:
        raise InputError(f"--encoding is for maps that are kept, which those of {what} are not: leave it out.")


def choose_compute(device: str, dtype: str, batch_size: int) -> Compute:
    """Where to run: `auto` takes a GPU where there is one, and float16 there, float32 on the CPU. Each of several
    processes takes a GPU of its own.

    Raises:
        InputError: For a device that cannot be used here, or that several processes cannot share out.
    """
    return compute_on(own_device(device), dtype, batch_size)


def own_device(name: str) -> str:
    """The device of this process: each of several on a machine takes a GPU of its own, shared where there are fewer.
    Raises `InputError` for one that several processes cannot share out."""
    import torch

    own = launched()
    if own.count > 1:
        if name not in ("auto", "cpu"):
            raise InputError(
                f"With several processes --device is auto or cpu, not {name!r}: each takes a GPU of its own."
            )
        gpus = torch.cuda.device_count()
        return f"cuda:{own.local_rank % gpus}" if gpus and name == "auto" else "cpu"
    return name


def model_for(dataset: str | None, model: str | None) -> str:
    """The model that was asked for; on the data set demo the demo's.

    Args:
        dataset: What the model is for, None for photographs or prompts of no data set.
        model: What was asked for.

    Raises:
        InputError: Where a model must be named.
    """
    if model is not None:
        return model
    if dataset == DEMO:
        return DEMO
    raise InputError(
        f"Name the model with --model: {', '.join(ALIASES)}, a hub name owner/model, or a folder in diffusers' layout; "
        f"--model {DEMO} is a toy that knows drawn pictures only, and is taken by itself on the dataset {DEMO} alone."
    )


def dataset_of(store: "Store", root: Path | None) -> "Dataset":
    """The data set that a store was made from, in `root` where it was moved."""
    from featstore.datasets.registry import open_dataset

    header = store.header
    stored, annotations = (
        None if own is None else Path(own) for own in (header.dataset_root, header.dataset_annotations)
    )
    return open_dataset(header.dataset, root or stored, annotations)
