"""`dualsd doctor`: what this machine has, for a bug report or before a long job."""

import os
import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from cli.options import taking
from cli.output import print_table, say
from cli.progress import TerminalProgress
from featstore.kept_config import DoctorConfig
from featstore.plain_text import human_bytes
from featstore.store.keys import StoreLocation, free_at, parse_location
from matcher.errors import InputError

PACKAGES = ("dualsd", "torch", "diffusers", "transformers", "safetensors", "zarr", "numcodecs", "numpy", "pillow")


@taking(DoctorConfig)
def doctor(config: DoctorConfig) -> None:
    """Versions, device, data sets, whether the model can be had, the store and free disk."""
    from featstore.datasets.registry import DATASET_NAMES, dataset_class

    if config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    print_table("versions", ["package", "version"], versions.items())
    print_table("data sets", ["name", "what"], [(name, dataset_class(name).about) for name in DATASET_NAMES], 2)
    _say_devices()
    name, store = config.model or "demo", parse_location(config.store)
    healthy = True
    checks = {f"model {name}": partial(_say_model, name, config.revision), f"store {store}": partial(_say_store, store)}
    for what, check in checks.items():
        try:
            check()
        except InputError as error:
            say(f"{what}: {error}")
            healthy = False
    if (free := free_at(store)) is not None:
        say(f"disk: {human_bytes(free)} free for {store}")
    if not healthy:
        raise typer.Exit(2)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _say_devices() -> None:
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        say(f"device: cuda:{index} {properties.name}, {human_bytes(properties.total_memory)}")
    if torch.backends.mps.is_available():
        say("device: mps")
    elif not torch.cuda.is_available():
        say(f"device: cpu, {torch.get_num_threads()} threads; no GPU that this torch can use")


def _say_model(name: str, revision: str | None) -> None:
    """Raises `InputError` where it cannot be had."""
    from featstore.backbones.dino import SUBFOLDER, locate_dino
    from featstore.backbones.locate import DEMO, check_on_hub, downloaded, hub_name_of
    from featstore.backbones.models import open_model
    from featstore.progress import tell_shapes

    if name != DEMO and not Path(name).expanduser().is_dir() and downloaded(hub_name_of(name), revision) is None:
        check_on_hub(hub_name_of(name), revision)
        say(f"model {name}: the hub has it; it is not downloaded yet")
        return
    model = open_model(name, revision)
    if (model.location.folder / SUBFOLDER).is_dir():
        locate_dino(None, model.location)
    say(f"model {name}: {model.location.folder}, fingerprint {model.fingerprint[:8]}, {model.image_size} pixels")
    tell_shapes(TerminalProgress(), model.layers(model.image_size).values())


def _say_store(path: StoreLocation) -> None:
    """Raises `InputError` where it cannot be read."""
    from featstore.store.store import open_if_there

    store = open_if_there(path)
    if store is None:
        say(f"store {path}: not made yet")
        return
    say(f"store {path}: {len(store.images.rows)} images of {store.header.dataset}, model {store.header.model_id}")
