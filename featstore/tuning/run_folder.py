"""The folder of a run that learns prompts (`featstore.tuning.runs`), and those that were trained on a store.

runs/class-2+3-001/
    prompts.safetensors         the best on validation (what eval, grid and match use)
    prompts-last.safetensors    the last
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from featstore.backbones.base import NetworkName
from featstore.errors import TuningError
from featstore.parsing import parse_known
from featstore.prompts.saved import FILE
from featstore.store.keys import StoreLocation, absolute, parse_location
from featstore.store.schema import StoreHeader
from featstore.store.store import Store
from featstore.tuning.runs import ADAPTATION, EVALUATION, FORMAT, RUN, RUNS, Run, make_run, read_run
from featstore.tuning.settings import TuningSettings
from matcher.configuration import Pad


@dataclass(frozen=True)
class RunFolder(Run):
    """A run that learns prompts."""

    FORMAT: ClassVar[str] = FORMAT
    COMMAND: ClassVar[str] = "dualsd train"
    FILE: ClassVar[str] = FILE

    @property
    def store(self) -> StoreLocation:
        """Where its store lay."""
        return parse_location(str(self.description["store"]["path"]))

    @property
    def identity(self) -> str:
        """What it was trained on, see `identity`."""
        return str(self.description["store"]["identity"])

    @property
    def dino(self) -> str | None:
        """The DINOv2 that was asked for, None for the model's own."""
        named = self.description.get("dino")
        return None if named is None else str(named)

    @property
    def prompts(self) -> Path:
        """The best prompts on validation."""
        return self.best

    @property
    def settings(self) -> TuningSettings:
        """What was asked."""
        return TuningSettings.from_json(self.description["settings"])

    @staticmethod
    def check(description: Mapping[str, Any]) -> None:
        """See `Run.check`."""
        parse_known(_Described, description)
        TuningSettings.from_json(description["settings"])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a store lay, and what it is, see `identity`."""

    path: str
    identity: str


@dataclass(frozen=True, slots=True)
class _Described:
    """What `run.json` says and is read again."""

    store: _Place
    settings: Mapping[str, Any]
    dataset: str | None = None
    model: NetworkName | None = None
    dino: str | None = None
    created: str | None = None
    creator: str | None = None
    command: str | None = None
    versions: Mapping[str, Any] | None = None


def identity(header: StoreHeader) -> str:
    """What a run was trained on, wherever its store lies: data set, model, size, latents, seed, and padding if any."""
    parts = [header.dataset, header.model_fingerprint, header.image_size, header.latents.value, header.seed]
    parts += [] if header.pad is Pad.STRETCH else [header.pad.value]
    return "|".join(map(str, parts))


def create_run(
    parent: Path, name: str | None, store: Store, settings: TuningSettings, about: Mapping[str, Any]
) -> RunFolder:
    """Make the folder of a run that learns prompts. Raises what `make_run` raises."""
    described = {
        "store": {"path": absolute(store.path), "identity": identity(store.header)},
        "dataset": store.header.dataset,
        "model": {"id": store.header.model_id, "fingerprint": store.header.model_fingerprint},
        **about,
        "settings": settings.to_json(),
    }
    usual = f"{settings.mode.value}-{'+'.join(map(str, settings.layers))}"
    return make_run(RunFolder, parent, name, usual, described)


def runs_newest_first(
    store: Store, parent: Path = RUNS, on_damage: Callable[[TuningError], None] | None = None
) -> list[RunFolder]:
    """The runs that were trained on this store and have prompts, the one made last first. on_damage: is told of each
    run that cannot be opened, which may be the newest; without it that is raised."""
    found = []
    for path in (file.parent for file in parent.glob(f"*/{RUN}")):
        described = read_run(path)
        # of an evaluation, or of another program; one that is damaged is not known to be
        if described is not None and (
            described.get("format") in (EVALUATION, ADAPTATION) or not {"format", "creator"} & described.keys()
        ):
            continue
        try:
            run = RunFolder.open(path)
        except TuningError as error:
            if on_damage is None:
                raise
            on_damage(error)
            continue
        if run.prompts.is_file() and run.identity == identity(store.header):
            found.append(run)
    return sorted(found, key=lambda run: (str(run.description.get("created")), str(run.path)), reverse=True)
