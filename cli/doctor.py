"""`dualsd doctor`: what this machine has, for a bug report or before a long job."""

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.options import ModelOption, RevisionOption, StoreOption

if TYPE_CHECKING:
    from featstore.store.keys import StoreLocation

PACKAGES = ("dualsd", "torch", "diffusers", "transformers", "safetensors", "zarr", "numcodecs", "numpy", "pillow")


def doctor(
    model: ModelOption = None,
    revision: RevisionOption = None,
    store: StoreOption = options.DEFAULT_STORE,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub for a model.")] = False,
) -> None:
    """Versions, device, data sets, whether the model can be had, the store and free disk."""
    from cli.output import free_bytes, human_bytes, print_table, say
    from featstore.datasets.registry import DATASET_NAMES, dataset_class
    from matcher.errors import InputError

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    print_table("versions", ["package", "version"], versions.items())
    print_table("data sets", ["name", "what"], [(name, dataset_class(name).about) for name in DATASET_NAMES], 2)
    _say_devices()
    name, healthy = model or "demo", True
    checks = {f"model {name}": partial(_say_model, name, revision), f"store {store}": partial(_say_store, store)}
    for what, check in checks.items():
        try:
            check()
        except InputError as error:
            say(f"{what}: {error}")
            healthy = False
    if isinstance(store, Path):
        say(f"disk: {human_bytes(free_bytes(store))} free for {store}")
    if not healthy:
        raise typer.Exit(2)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _say_devices() -> None:
    import torch

    from cli.output import human_bytes, say

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        say(f"device: cuda:{index} {properties.name}, {human_bytes(properties.total_memory)}")
    if torch.backends.mps.is_available():
        say("device: mps")
    elif not torch.cuda.is_available():
        say(f"device: cpu, {torch.get_num_threads()} threads; no GPU that this torch can use")


def _say_model(name: str, revision: str | None) -> None:
    """Raises `InputError` where it cannot be had."""
    from cli.output import print_shapes, say
    from featstore.backbones.dino_location import SUBFOLDER, locate_dino
    from featstore.backbones.layers import LAYERS
    from featstore.backbones.location import DEMO, check_on_hub, downloaded, hub_name_of
    from featstore.backbones.model import open_model

    if name != DEMO and not Path(name).expanduser().is_dir() and downloaded(hub_name_of(name), revision) is None:
        check_on_hub(hub_name_of(name), revision)
        say(f"model {name}: the hub has it; it is not downloaded yet")
        return
    model = open_model(name, revision)
    if (model.location.folder / SUBFOLDER).is_dir():
        locate_dino(None, model.location)
    say(f"model {name}: {model.location.folder}, fingerprint {model.fingerprint[:8]}, {model.image_size} pixels")
    print_shapes(model.shape(layer, model.image_size) for layer in LAYERS)


def _say_store(path: "StoreLocation") -> None:
    """Raises `InputError` where it cannot be read."""
    from cli.output import say
    from featstore.store.store import is_there, open_store

    if not is_there(path):
        say(f"store {path}: not made yet")
        return
    store = open_store(path)
    say(f"store {path}: {len(store.images)} images of {store.header.dataset}, model {store.header.model_id}")
