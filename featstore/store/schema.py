"""The store's header: what was cached, by what and how. It prints itself into the root group's attributes and reads
itself back; two headers that disagree are told apart in one sentence (docs/store.md, Header)."""

import errno
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from featstore.backbones.noise import Latents, NoiseSchedule, settings_of
from featstore.errors import ModelError, StoreError

FORMAT = "dualsd"
VERSION = 2
"""The newest version that is read here. A store is made with version 1."""

VERSION_OF_INT8 = 2
"""What a store becomes when the first maps are kept in it as int8: a dualsd that knows only version 1 would call those
damaged, and its `cache verify --drop` would take them away."""

STORED_DTYPE = "float16"


def creator_version() -> str:
    """The version of dualsd that writes."""
    try:
        return version("dualsd")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class StoreHeader:
    """Everything up to the UNet's input that shapes the cached arrays.

    dataset, dataset_root: as `cache build` was told. model_id, model_revision, model_fingerprint: of the diffusion
    model. image_size: S in pixels. latents: posterior sample or mean. scheduler: its betas and what goes with them,
    under diffusers' names. seed: of all noise. latent_shift: what was subtracted from the VAE's latents.
    creator: version of dualsd that made the store. version: of the store's format, the lowest that has all it holds.
    where: the store's place, for sentences.
    """

    dataset: str
    dataset_root: str | None
    model_id: str
    model_revision: str | None
    model_fingerprint: str
    image_size: int
    latents: Latents
    scheduler: Mapping[str, Any]
    seed: int
    latent_shift: float = 0.0
    creator: str = field(default_factory=creator_version)
    version: int = 1
    where: str = field(default="a store", compare=False)

    def to_attributes(self) -> dict[str, Any]:
        """The root group's attributes."""
        return {
            "format": FORMAT,
            "version": self.version,
            "dataset": {"name": self.dataset, "root": self.dataset_root},
            "model": {"id": self.model_id, "revision": self.model_revision, "fingerprint": self.model_fingerprint},
            "preprocessing": {"size": self.image_size, "resize": "bilinear, antialiased, aspect ratio not kept"},
            "latents": self.latents.value,
            "scheduler": dict(self.scheduler),
            "seed": self.seed,
            **({"latent_shift": self.latent_shift} if self.latent_shift else {}),
            "dtype": STORED_DTYPE,
            "creator": self.creator,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> Self:
        """Read a header. Raises `StoreError` where `attributes` are not a dualsd store's, or a newer version's.

        Stores of every version up to `VERSION` are read, for ever; what an older dualsd would misread is a new version.
        """
        if attributes.get("format") != FORMAT:
            raise StoreError(f"{where} is no dualsd store: its attributes do not name the format {FORMAT!r}.")
        found = attributes.get("version")
        if type(found) is not int or found < 1:
            raise StoreError(f"{where} has a damaged header: its version is {found!r}.")
        if found > VERSION:
            raise StoreError(
                f"{where} has store version {found}, written by dualsd {attributes.get('creator', 'unknown')}; this "
                f"dualsd {creator_version()} reads up to version {VERSION}: upgrade it."
            )
        try:
            model, dataset = attributes["model"], attributes["dataset"]
            if attributes["dtype"] != STORED_DTYPE:
                raise ValueError(f"its dtype is {attributes['dtype']!r}, not {STORED_DTYPE!r}")
            return cls(
                dataset=_text(dataset, "name"),
                dataset_root=None if dataset["root"] is None else _text(dataset, "root"),
                model_id=_text(model, "id"),
                model_revision=None if model["revision"] is None else _text(model, "revision"),
                model_fingerprint=_text(model, "fingerprint"),
                image_size=_whole(attributes["preprocessing"], "size", 1),
                latents=Latents(attributes["latents"]),
                scheduler=dict(attributes["scheduler"]),
                seed=_whole(attributes, "seed", None),
                latent_shift=_finite(attributes.get("latent_shift", 0.0), "latent_shift"),
                creator=str(attributes["creator"]),
                version=found,
                where=where,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{where} has a damaged header: {error!r}; set it right in its zarr.json, or build the store anew."
            ) from error

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """What noise is added by. Raises `ModelError` where the header states none that is by betas."""
        return NoiseSchedule.parse(self.scheduler, f"The header of {self.where}")

    def _noise(self) -> dict[str, Any]:
        """The schedule, to be compared: a dualsd before this one copied the whole configuration."""
        try:
            return self.schedule.describe()
        except ModelError:
            return settings_of(self.scheduler)

    def check_same(self, asked: "StoreHeader", where: str) -> None:
        """Raise `StoreError`, naming both sides, where `asked` would cache other arrays than this store holds."""
        sides: list[tuple[str, Any, Any]] = [
            ("dataset", self.dataset, asked.dataset),
            ("image size", self.image_size, asked.image_size),
            ("latents", self.latents.value, asked.latents.value),
            ("seed", self.seed, asked.seed),
            ("latents shifted by", self.latent_shift, asked.latent_shift),
            ("noise schedule", self._noise(), asked._noise()),
        ]
        if self.model_fingerprint != asked.model_fingerprint:
            raise StoreError(
                f"{where} was made with the model {self.model_id} (fingerprint {self.model_fingerprint[:8]}), not "
                f"{asked.model_id} (fingerprint {asked.model_fingerprint[:8]}): name another --store."
            )
        for what, mine, theirs in sides:
            if mine != theirs:
                raise StoreError(f"{where} was made with {what} {mine}, not {theirs}: name another --store.")


def _text(holder: Mapping[str, Any], name: str) -> str:
    """A text that is not empty. Raises ValueError for anything else."""
    value = holder[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"its {name} is {value!r}, no text")
    return value


def _whole(holder: Mapping[str, Any], name: str, least: int | None) -> int:
    """A whole number, `least` at least. Raises ValueError for anything else: 0.5 is no seed, and is not read as 0."""
    value = holder[name]
    if type(value) is not int or (least is not None and value < least):
        raise ValueError(f"its {name} is {value!r}, no whole number" + ("" if least is None else f" from {least} on"))
    return value


def _finite(value: object, name: str) -> float:
    """A finite number. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its {name} is {value!r}, no finite number")
    return float(value)


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no links: exFAT, many network mounts, Google Drive in Colab."""


def create_missing(root: zarr.Group, make: Callable[[zarr.Group], object]) -> None:
    """Make those of the groups and arrays that `make` makes, in the group that it is given, which `root` lacks.

    zarr itself looks whether something is there and then writes it, and so may write over what another process made in
    between. Here it writes to memory, and each file of metadata is then put into its place whole, by a link that fails
    where there is one: no lock is needed, on one machine or on several, and whoever is killed leaves nothing half made.
    Where there are no links it is looked for and then renamed into its place: one process works there as anywhere.
    """
    memory = MemoryStore()
    make(zarr.create_group(memory))
    for key in sorted(sync(_keys(memory)), key=lambda key: key.count("/")):  # a group before what it holds
        made = sync(memory.get(key, default_buffer_prototype()))
        assert made is not None, "listed just now"
        sync(_put(root.store_path / key, made))


async def _put(place: StorePath, content: Buffer) -> None:
    try:
        await place.set_if_not_exists(content)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not await place.exists():
            await place.set(content)


async def _keys(memory: MemoryStore) -> list[str]:
    return [key async for key in memory.list() if key != "zarr.json"]
