"""`adapt`: an adapter learned on cached maps, without the networks that made them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featstore.adapters.applied import AdaptedMaps, parts_of
from featstore.adapters.base import Adapter, make_adapter, save_adapter, spell_keys
from featstore.adapters.batches import GroupedPairs, Mirror, Shelf, names_of, plain
from featstore.adapters.losses import LOG_SCALE, Image, PointPair, batch_loss
from featstore.adapters.material import Material, open_material
from featstore.adapters.run import AdapterRun, create_run
from featstore.adapters.settings import AdapterSettings, resumed, settings_of
from featstore.backbones.base import MapKey
from featstore.backbones.noise import generator
from featstore.config import AdaptConfig
from featstore.errors import DiskFullError, TuningError
from featstore.pipeline.defaults import choose_compute
from featstore.pipeline.distributed import ALONE, Processes
from featstore.pipeline.pairs import describe_list, spell_list
from featstore.plain_text import human_bytes
from featstore.progress import Progress, Silent
from featstore.tuning.loop import Outcome, Step, TrainingState, Validated, learn
from featstore.tuning.loss import layered
from featstore.tuning.runs import resume_run
from featstore.tuning.step import ALPHA
from matcher.configuration import Configuration, LayerSpec
from matcher.grid import score_grid
from matcher.maps import MapSource, read_ahead

AHEAD = 2
"""Steps whose maps are read ahead where not all are in memory."""


@dataclass(frozen=True, slots=True)
class AdaptResult:
    """A training of an adapter, finished or stopped.

    Args:
        run: Its folder.
        outcome: How it ended.
        settings: What decided it.
        parameters: Numbers that are learned.
        listed: The training pairs, as every result says them: `n_pairs`, `n_points`, `pairs_hash`.
    """

    run: AdapterRun
    outcome: Outcome
    settings: AdapterSettings
    parameters: int
    listed: dict[str, Any]


def adapt(config: AdaptConfig, progress: Progress | None = None, command: str | None = None) -> AdaptResult:
    """Learn an adapter on cached maps; maps that a store lacks are made first. A signal (Ctrl-C, SIGTERM, SIGUSR1)
    makes it save and stop.

    Args:
        config: What is learned, and how; with `resume`, a run goes on.
        progress: Who is told how far it is; None for nobody.
        command: What was typed, for the record.

    Returns:
        The run and how it ended.

    Raises:
        InputError: In one of its kinds, for whatever cannot be used as it is.
    """
    progress = Silent() if progress is None else progress
    run = None if config.resume is None else resume_run(AdapterRun, config.resume)
    if run is not None:
        config = resumed(run.config, config, run.path)
    device = choose_compute(config.device, config.dtype, config.batch_size).device
    material = open_material(config, progress)
    listed = describe_list(material.split, material.pairs)
    found = {"identity": material.identity, "pairs_hash": listed["pairs_hash"], "maps": dict(material.about)}
    if run is not None and json.loads(json.dumps(found)) != {name: run.description.get(name) for name in found}:
        raise TuningError(f"{run.path} was learned from other maps or other pairs: name its own data, or start anew.")
    shelf = Shelf(material.maps, [(layer.layer, layer.timestep) for layer in material.layers], material.images)
    settings = settings_of(material, shelf.shapes)
    if run is None:
        run = create_run(material, settings, {"command": command, **listed})
    about = {
        "maps": dict(material.about),
        "size": material.matching.image_size,
        "training": {"dataset": material.dataset, "split": material.split, **listed, "settings": settings.to_json()},
    }
    adapter = make_adapter(settings.spec(about), settings.seed).to(device)
    task = AdapterTask(adapter, settings, material, shelf, device)
    place = "in memory" if shelf.in_memory else "read ahead, as they do not all fit in memory"
    progress.tell(f"maps of {len(material.images)} images, {human_bytes(shelf.bytes)}, {place}")
    progress.tell(_described(task, spell_list(material.split, material.pairs), material.on, run.path))
    try:
        return AdaptResult(run, learn(task, run, ALONE, progress), settings, task.parameters, listed)
    except DiskFullError as error:
        raise DiskFullError(error.fault, f"go on with `dualsd adapt --resume {run.path}`") from error


class AdapterTask:
    """An adapter as what the loop of a training learns (`featstore.tuning.loop.Task`).

    Args:
        adapter: On `device`.
        settings: All that decides what training ends in.
        material: What is learned from.
        shelf: Its maps.
        device: Where it is computed.
    """

    passes_per_image = 1

    def __init__(
        self, adapter: Adapter, settings: AdapterSettings, material: Material, shelf: Shelf, device: torch.device
    ) -> None:
        self.adapter, self.settings, self.device = adapter, settings, device
        self._material, self._shelf = material, shelf
        self.validation = material.validation
        self._batches: Iterator[tuple[int, Batch]] | None = None
        self._grouped = GroupedPairs(material.pairs, settings.batch, settings.seed)
        size = material.matching.image_size
        self._mirror = Mirror(material.dataset, size, names_of(material.pairs), settings.seed)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(own.numel() for own in self.adapter.parameters())

    def open_state(self) -> TrainingState:
        """See `Task`."""
        own = list(self.adapter.parameters())
        optimiser = torch.optim.AdamW(own, lr=self.settings.rate, weight_decay=self.settings.decay)
        return TrainingState(0, own, optimiser, -1.0, torch.amp.GradScaler(self.device.type, enabled=False))

    def batch(self, step: int) -> "Batch":
        """What a step learns from; a function of step and seed."""
        pairs = [self._material.pairs[row] for row in self._grouped.batch(step)]
        taken = [self._mirror.of(pair, step) for pair in pairs] if self.settings.flip else [*map(plain, pairs)]
        sides = tuple(dict.fromkeys(side for pair in taken for side in (pair.source, pair.target)))
        return Batch(taken, sides, self._shelf.stack(sides))

    def step(self, state: TrainingState, processes: Processes) -> Step:  # noqa: ARG002  (there is one)
        """See `Task`."""
        if self._batches is None:
            steps = range(state.step, self.settings.steps)
            self._batches = read_ahead(steps, self.batch, 0 if self._shelf.in_memory else AHEAD)
        step, batch = next(self._batches)
        assert step == state.step, "steps come in order"
        self.adapter.train()
        state.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(batch, step)
        loss.backward()
        state.optimiser.step()
        return Step(loss.item(), len(batch.sides), len(batch.pairs))

    def loss(self, batch: "Batch", step: int) -> Tensor:
        """The loss of a batch, a scalar. Each image is adapted once."""
        settings = self.settings
        maps = {key: own.to(self.device).float() for key, own in batch.maps.items()}
        if settings.dropout:
            maps = {key: self._dropped(own, f"{key}|{step}") for key, own in maps.items()}
        made = self.adapter(maps)
        images = {
            side: layered([made[key][place] for key in self.adapter.outputs], self.adapter.shares, settings.matching)
            for place, side in enumerate(batch.sides)
        }
        scale = getattr(self.adapter, "logit_scale", LOG_SCALE)
        return batch_loss(batch.pairs, images, settings.loss, settings.matching, settings.kernel, scale)

    def _dropped(self, maps: Tensor, what: str) -> Tensor:
        """Maps (b, C, h, w) without a share of their values, the others larger by as much."""
        share = self.settings.dropout
        drawn = generator(f"dropout|{self.settings.seed}|{what}").random(tuple(maps.shape), dtype=np.float32)
        return maps * torch.from_numpy(drawn >= share).to(maps) / (1 - share)

    def validate_plain(self, processes: Processes) -> Validated:  # noqa: ARG002
        """See `Task`: the maps as they are."""
        return self._score(ShelvedMaps(self._shelf), self._material.layers)

    def validate(self, processes: Processes) -> Validated:  # noqa: ARG002
        """See `Task`."""
        spec = self.adapter.spec
        shelved = ShelvedMaps(self._shelf)
        if spec.kind == "weights":  # which changes no map
            return self._score(shelved, spec.layers)
        parts = parts_of(self.adapter, self.adapter.outputs, self.device)
        return self._score(AdaptedMaps(shelved, parts, self.device), spec.layers)

    def _score(self, maps: MapSource, layers: Sequence[LayerSpec]) -> Validated:
        tried = [Configuration(tuple(layers), self.settings.matching)]
        found = score_grid(self.validation, maps, tried, ["nn"], [ALPHA], self.device).of_pairs(0, "nn", ALPHA)
        return float(found.mean()), found

    def save(self, file: Path) -> None:
        """See `Task`."""
        save_adapter(file, self.adapter)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """pairs: of a step. sides: their images. maps: by key, (sides, C, h, w)."""

    pairs: Sequence[PointPair]
    sides: Sequence[Image]
    maps: Mapping[MapKey, Tensor]


@dataclass(frozen=True, slots=True)
class ShelvedMaps:
    """A shelf's maps as the matcher takes them (a `matcher.maps.MapSource`)."""

    shelf: Shelf

    def load(self, image: str, layer: LayerSpec) -> Tensor:
        """See `MapSource.load`."""
        return self.shelf.load(image)[layer.layer, layer.timestep]


def _described(task: AdapterTask, pairs: str, on: str, run: Path) -> str:
    """What is learned, from what, with which settings."""
    settings, held_out = task.settings, len(task.validation)
    return (
        f"{settings.mode} adapter of {task.parameters:,} parameters on {spell_keys(settings.inputs)}; {pairs}, "
        f"{settings.batch} pairs per step, {settings.steps} steps, loss {settings.loss}"
        + (f", kernel {settings.kernel} cells" if settings.loss == "prompt" else "")
        + (", half of the pairs mirrored in their maps" if settings.flip else "")
        + f"; {held_out} pairs {on} every {settings.validate_every} steps; {run}"
    )
