"""Flow matching's noise, and which of the two processes a scheduler's configuration states: this one, or noise by betas
(`featstore.backbones.noise`).

A model of flow matching was trained on x (1 - s) + e s with a share s of the noise e, and is told s times its number of
timesteps. Here a timestep t, 0 to 999, stands for s = t / 1000, whatever sampler the folder names: its shift
(`shift`, `use_dynamic_shifting`) decides which shares a sampler passes through, not what a share is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from featstore.backbones.base import ModelLocation
from featstore.backbones.model_file import parsed, read_config
from featstore.backbones.noise import NoiseSchedule, check_timesteps, is_mixture, mixed
from featstore.errors import ModelError
from featstore.plain_text import shown

PROCESS: Literal["flow matching"] = "flow matching"


@dataclass(frozen=True)
class FlowSchedule:
    """Noisy latents are (1 - s) x + s noise, s = t / num_train_timesteps."""

    process: Literal["flow matching"] = PROCESS
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000

    def share(self, timestep: int) -> float:
        """s, from 0 (no noise) to below 1. Raises `ModelError` for a timestep that there is not."""
        self.check_timesteps([timestep])
        return timestep / self.num_train_timesteps

    def mix(self, clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int) -> NDArray[np.float32]:
        """Noisy latents of clean ones and standard normal noise of the same shape."""
        share = self.share(timestep)
        return mixed(clean, np.float32(1 - share), drawn, np.float32(share))

    def has_mixed(
        self, noisy: NDArray[np.float16], clean: NDArray[np.float32], drawn: NDArray[np.float32], timestep: int
    ) -> bool:
        """Whether stored noisy latents are the mixture of these, rounded to float16."""
        share = self.share(timestep)
        return is_mixture(noisy, clean, 1 - share, drawn, share)

    def check_timesteps(self, timesteps: Iterable[int]) -> None:
        """Raise `ModelError` for a timestep that the model does not have."""
        check_timesteps(timesteps, self.num_train_timesteps)

    def describe(self) -> dict[str, Any]:
        """For a store's header."""
        return {"process": self.process, "num_train_timesteps": self.num_train_timesteps}

    def spell(self) -> str:
        """In words."""
        return f"flow matching, x (1 - s) + noise s with s = t / {self.num_train_timesteps}"


Schedule = NoiseSchedule | FlowSchedule


def parse_schedule(config: Mapping[str, Any], where: str) -> Schedule:
    """What a store's header states. Raises `ModelError` for a process that is neither."""
    if config.get("process") == PROCESS:
        return parsed(FlowSchedule, dict(config), where)
    return NoiseSchedule.parse(config, where)


def read_flow(location: ModelLocation) -> FlowSchedule:
    """The schedule of a model's folder. Raises `ModelError` for one that names no class of flow matching."""
    config = read_config(location, "scheduler")
    name = str(config.get("_class_name", ""))
    where = f"{location.folder}/scheduler/scheduler_config.json"
    if not name.startswith("FlowMatch"):
        raise ModelError(
            f"{where} names {shown(name)}, and this transformer was trained by flow matching: restore the model's own "
            "scheduler (FlowMatchEulerDiscreteScheduler)."
        )
    return parsed(FlowSchedule, {"num_train_timesteps": config.get("num_train_timesteps", 1000)}, where)
