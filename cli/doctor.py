"""`dualsd doctor`: what this machine has, for a bug report or before a long job; of a model that is named what it is,
which layers it has and what they cost."""

import os
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import typer

from cli.options import JsonOption, examples, taking
from cli.output import print_table, say, write_json
from cli.progress import TerminalProgress
from featstore.kept_config import DoctorConfig
from featstore.plain_text import human_bytes
from featstore.store.keys import StoreLocation, free_at, parse_location
from matcher.errors import InputError

if TYPE_CHECKING:
    from featstore.backbones.inspection import InspectedLayer, Inspection

EXAMPLES = examples(
    "dualsd doctor",
    "dualsd doctor --model sd2-1 --store spair.zarr",
    "dualsd doctor --model /models/dinov3-vitb16 --json dinov3.json",
    "dualsd doctor --model sd2-1 --unet cleandift_sd21_unet.safetensors",
)
PRECISIONS = {"float16": 2, "float32": 4}
"""Bytes of a number, as networks are loaded."""
PACKAGES = ("dualsd", "torch", "diffusers", "transformers", "safetensors", "zarr", "numcodecs", "numpy", "pillow")


@taking(DoctorConfig)
def doctor(config: DoctorConfig, json: JsonOption = None) -> None:
    """Versions, device, data sets, the store and free disk; and whether the model can be had: of one that is named what
    it is, its layers and what a pass to each costs, its size, and what is recommended for it and by whom."""
    from featstore.datasets.registry import DATASET_NAMES, dataset_class

    if config.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    print_table("versions", ["package", "version"], versions.items())
    print_table("data sets", ["name", "what"], [(name, dataset_class(name).about) for name in DATASET_NAMES], 2)
    _say_devices()
    store, healthy, found = parse_location(config.store), True, dict[str, object]()
    checks: Mapping[str, tuple[object, Callable[[], object]]] = {
        "model": (config.model or "demo", partial(_say_model, config)),
        "store": (store, partial(_say_store, store)),
    }
    for what, (name, check) in checks.items():
        try:
            found[what] = check()
        except InputError as error:
            say(f"{what} {name}: {error}")
            healthy = False
    if (free := free_at(store)) is not None:
        say(f"disk: {human_bytes(free)} free for {store}")
    write_json(json, {"versions": versions, "model": found.get("model")})
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


def _say_model(config: DoctorConfig) -> dict[str, Any] | None:
    """What `--json` says of it; None of one that was not named, or is not here. Raises `InputError` where it cannot be
    had."""
    from featstore.backbones.dino import SUBFOLDER, locate_dino
    from featstore.backbones.inspection import generation_of, inspect_dino, inspect_model
    from featstore.backbones.locate import DEMO, check_on_hub, hub_name_of, is_at_hand
    from featstore.backbones.models import open_model
    from featstore.progress import tell_shapes

    name, revision = config.model or DEMO, config.revision
    if config.unet is None and (generation := generation_of(name)) is not None:
        inspected = inspect_dino(generation, name)
    elif not is_at_hand(name, revision):
        check_on_hub(hub_name_of(name), revision)
        say(f"model {name}: the hub has it; it is not downloaded yet")
        return None
    else:
        model = open_model(name, revision, config.unet)
        if (model.location.folder / SUBFOLDER).is_dir():
            locate_dino(None, model.location)
        say(f"model {name}: {model.location.folder}, fingerprint {model.fingerprint[:8]}, {model.image_size} pixels")
        if config.model is None:
            tell_shapes(TerminalProgress(), model.layers(model.image_size).values())
            return None
        inspected = inspect_model(model)
    _say_inspected(inspected)
    return inspected.to_json()


def _say_inspected(model: "Inspection") -> None:
    """What there is to say of a model's networks, layers and profile."""
    networks = ", ".join(f"{name} {kind}" for name, kind in model.classes.items())
    say(f"{model.id}: {model.family}; {networks}; fingerprint {model.fingerprint}")
    if model.noise is not None:
        say(f"noise: {model.noise}; latents {' x '.join(map(str, model.latent_shape or ()))}")
    say(f"text prompts: {_yes(model.text)}; learned prompts (`train`): {_yes(model.tuning)}")
    sizes = [(name, f"{count:,}", *_sizes(count)) for name, count in model.parameters.items()]
    total = sum(model.parameters.values())
    print_table(
        "networks and what their weights take; a pass loads the network as far as its last layer",
        ["network", "parameters", *PRECISIONS],
        [*sizes, ("all", f"{total:,}", *_sizes(total))],
    )
    encoded = f"; the VAE's encoder takes {_teraflop(model.encode_flops)}, once" if model.encode_flops else ""
    print_table(
        f"layers of images of {model.image_size} pixels; TFLOP of a pass to each, for one image and one draw{encoded}",
        ["layer", "channels", "cells", "stride", "TFLOP", "a map, float16"],
        [_layer_row(own) for own in model.layers],
    )
    print_table(
        f"recommended, by the profile {model.profile}" if model.profile else "recommended",
        ["setting", "value", "source"],
        [(name.replace("_", " "), _spell(own.value), own.source) for name, own in model.recommended.items()],
        3,
    )


def _layer_row(layer: "InspectedLayer") -> tuple[object, ...]:
    cells = f"{layer.cells}x{layer.cells}"
    return layer.name, layer.channels, cells, layer.stride, _teraflop(layer.flops), human_bytes(layer.bytes)


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _teraflop(flops: int) -> str:
    """Of small networks enough digits to tell layers apart."""
    return f"{flops / 1e12:.2f}" if flops >= 1e11 else f"{flops / 1e12:.2g}"


def _sizes(parameters: int) -> list[str]:
    return [human_bytes(size * parameters) for size in PRECISIONS.values()]


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{own:g} for {layer}" for layer, own in value.items())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _say_store(path: StoreLocation) -> None:
    """Raises `InputError` where it cannot be read."""
    from featstore.store.store import open_if_there

    store = open_if_there(path)
    if store is None:
        say(f"store {path}: not made yet")
        return
    say(f"store {path}: {len(store.images.rows)} images of {store.header.dataset}, model {store.header.model_id}")
