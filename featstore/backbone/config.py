"""A model's configuration files, read as they are: no library and no weights are loaded for them."""

import json
from typing import Any

from featstore.backbone.location import ModelLocation
from featstore.errors import ModelError


def read_config(location: ModelLocation, component: str) -> dict[str, Any]:
    """The configuration of `vae`, `unet` or `scheduler`. Raises `ModelError` where it cannot be read."""
    path = location.folder / component / ("scheduler_config.json" if component == "scheduler" else "config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a diffusers configuration: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is no diffusers configuration: it holds no object.")
    return config


def stated(value: object) -> str:
    """A value as a configuration states it, short enough for a sentence."""
    return json.dumps(value, default=str)[:80]


def force_upcast(location: ModelLocation) -> bool:
    """Whether the VAE is to stay in float32; diffusers takes that to be so where the configuration is silent."""
    return bool(read_config(location, "vae").get("force_upcast", True))
