"""`dualsd doctor`: what this machine has, for a bug report or before a long job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.options import ModelOption, RevisionOption, StoreOption

if TYPE_CHECKING:
    from featstore.store.keys import StoreLocation

PACKAGES = (
    "dualsd",
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "zarr",
    "numcodecs",
    "numpy",
    "pillow",
)


def doctor(
    model: ModelOption = None,
    revision: RevisionOption = None,
    store: StoreOption = options.DEFAULT_STORE,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub for a model.")] = False,
) -> None:
    """Versions, device, whether the model can be had, the store and free disk."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from cli.output import free_bytes, human_bytes, print_table, say

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    print_table(
        "versions",
        ["package", "version"],
        [["python", platform.python_version()], *([name, installed(name)] for name in PACKAGES)],
    )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            say(f"device: cuda:{index} {properties.name}, {human_bytes(properties.total_memory)}")
    elif torch.backends.mps.is_available():
        say("device: mps")
    else:
        say(f"device: cpu, {torch.get_num_threads()} threads; no GPU that this torch can use")
    healthy = _check_model(model or "demo", revision) & _check_store(store)
    if isinstance(store, Path):
        say(f"disk: {human_bytes(free_bytes(store))} free for {store}")
    if not healthy:
        raise typer.Exit(2)


def _check_model(name: str, revision: str | None) -> bool:
    from cli.output import print_shapes, say
    from featstore.backbones.dino import SUBFOLDER, locate_dino
    from featstore.backbones.locate import DEMO, check_on_hub, downloaded, hub_name_of
    from featstore.backbones.stable_diffusion import LAYERS, open_model
    from matcher.errors import InputError

    try:
        if name != DEMO and not Path(name).expanduser().is_dir() and downloaded(hub_name_of(name), revision) is None:
            check_on_hub(hub_name_of(name), revision)
            say(f"model {name}: the hub has it; it is not downloaded yet")
            return True
        model = open_model(name, revision)
        if (model.location.folder / SUBFOLDER).is_dir():
            locate_dino(None, model.location)
    except InputError as error:
        say(f"model {name}: {error}")
        return False
    say(f"model {name}: {model.location.folder}, fingerprint {model.fingerprint[:8]}, {model.image_size} pixels")
    print_shapes(model.shape(layer, model.image_size) for layer in LAYERS)
    return True


def _check_store(path: "StoreLocation") -> bool:
    from cli.output import say
    from featstore.store.store import is_there, open_store
    from matcher.errors import InputError

    try:
        if not is_there(path):
            say(f"store {path}: not made yet")
            return True
        store = open_store(path)
    except InputError as error:
        say(f"store {path}: {error}")
        return False
    say(f"store {path}: {len(store.images)} images of {store.header.dataset}, model {store.header.model_id}")
    return True
