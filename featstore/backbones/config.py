"""A model's configuration files, read as they are: no library and no weights are loaded for them."""

import json
from typing import Any

from featstore.backbones.location import ModelLocation
from featstore.backbones.model_file import read_object


def read_config(location: ModelLocation, component: str) -> dict[str, Any]:
    """The configuration of a component. Raises `ModelError` where it cannot be read."""
    file = "scheduler_config.json" if component == "scheduler" else "config.json"
    return read_object(location.folder / component / file, "a diffusers configuration")


def stated(value: object) -> str:
    """A value as a configuration states it, short enough for a sentence."""
    return json.dumps(value, default=str)[:80]


def force_upcast(location: ModelLocation) -> bool:
    """Whether the VAE is to stay in float32; diffusers takes that to be so where the configuration is silent."""
    return bool(read_config(location, "vae").get("force_upcast", True))
