"""The store's header: what was cached, by what and how.

It prints itself into the root group's attributes and reads itself back; two headers that disagree are told
apart in one sentence (docs/store.md, Header)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Self

from pydantic import Field

from featstore.backbones.noise import Latents, NoiseSchedule, known_checksums, settings_of
from featstore.backbones.registry import FOUR_BLOCKS
from featstore.errors import ModelError, StoreError
from featstore.parsing import STRICT, parse
from matcher.configuration import Pad

FORMAT = "dualsd"
VERSION = 3
"""That of a store with a log of its images. Version 1 had a table that never changed, version 2 maps of 8 bits."""

PADDED = 4
"""The newest version that is read here, and that of a store of padded images, which a dualsd before this one would take
for stretched ones."""

_RESIZED = {
    Pad.STRETCH: "bilinear, antialiased, aspect ratio not kept",
    Pad.SQUARE: "Lanczos, aspect ratio kept, black beside it",
}

STORED_DTYPE = "float16"


def creator_version(library: str = "dualsd") -> str:
    """The version of dualsd that writes, or of a library that it writes with."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"


Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class StoreHeader:
    """Everything up to the UNet's input that shapes the cached arrays.

    dataset, dataset_root: as `cache build` was told. model_id, model_revision, model_fingerprint: of the diffusion
    model. image_size: S in pixels. latents: posterior sample or mean. scheduler: its betas and what goes with them,
    under diffusers' names. seed: of all noise. latent_shift: what was subtracted from the VAE's latents. model_unet:
    where the UNet lies that takes the place of the model's own, and takes latents without noise. pad: how images were
    made squares. creator: version of dualsd that made the store. version: of the store's format. checks: checksums of
    one known draw of noise and of one known mixture, by the libraries that made the store; None where an earlier dualsd
    did. where: the store's place, for sentences. dataset_annotations: the file of annotations that `cache build` was
    told, of a data set that takes one. model_structure: which profile is taken where the model has none of its own.
    """

    __pydantic_config__ = STRICT

    dataset: Text
    dataset_root: Text | None
    model_id: Text
    model_revision: Text | None
    model_fingerprint: Text
    image_size: Annotated[int, Field(ge=1)]
    latents: Latents
    scheduler: Mapping[str, Any]
    seed: int
    latent_shift: float = 0.0
    model_unet: Text | None = None
    pad: Pad = Pad.STRETCH
    creator: str = field(default_factory=creator_version)
    version: int = field(default=VERSION, compare=False)
    checks: Mapping[str, str] | None = field(default=None, compare=False)
    where: str = field(default="a store", compare=False)
    dataset_annotations: Text | None = field(default=None, compare=False)
    model_structure: Text = field(default=FOUR_BLOCKS, compare=False)

    def to_attributes(self) -> dict[str, Any]:
        """The root group's attributes."""
        annotations = {"annotations": self.dataset_annotations} if self.dataset_annotations else {}
        unet = {"unet": self.model_unet} if self.model_unet else {}
        structure = {} if self.model_structure == FOUR_BLOCKS else {"structure": self.model_structure}
        return {
            "format": FORMAT,
            "version": self.version if self.pad is Pad.STRETCH else PADDED,
            "dataset": {"name": self.dataset, "root": self.dataset_root, **annotations},
            "model": {
                "id": self.model_id,
                "revision": self.model_revision,
                "fingerprint": self.model_fingerprint,
                **unet,
                **structure,
            },
            "preprocessing": {
                "size": self.image_size,
                "resize": _RESIZED[self.pad],
                **({} if self.pad is Pad.STRETCH else {"pad": self.pad.value}),
            },
            "latents": self.latents.value,
            "scheduler": dict(self.scheduler),
            "seed": self.seed,
            **({"latent_shift": self.latent_shift} if self.latent_shift else {}),
            "dtype": STORED_DTYPE,
            **({"checks": dict(self.checks)} if self.checks else {}),
            "creator": self.creator,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> Self:
        """Read a header. Raises `StoreError` where `attributes` are not a dualsd store's, or a newer version's.

        Stores of every version up to `PADDED` are read, for ever; what an older dualsd would misread is a new version.
        """
        if attributes.get("format") != FORMAT:
            raise StoreError(f"{where} is no dualsd store: its attributes do not name the format {FORMAT!r}.")
        stated = attributes.get("version")
        if type(stated) is not int or stated < 1:
            raise StoreError(f"{where} has a damaged header: its version is {stated!r}.")
        if stated > PADDED:
            raise StoreError(
                f"{where} has store version {stated}, written by dualsd {attributes.get('creator', 'unknown')}; this "
                f"dualsd {creator_version()} reads up to version {PADDED}: upgrade it."
            )
        try:
            model, dataset = attributes["model"], attributes["dataset"]
            if attributes["dtype"] != STORED_DTYPE:
                raise ValueError(f"its dtype is {attributes['dtype']!r}, not {STORED_DTYPE!r}")
            found = {
                "dataset": dataset["name"],
                "dataset_root": dataset["root"],
                "dataset_annotations": dataset.get("annotations"),
                **{f"model_{name}": model[name] for name in ("id", "revision", "fingerprint")},
                "model_unet": model.get("unet"),
                "model_structure": model.get("structure", FOUR_BLOCKS),
                "image_size": attributes["preprocessing"]["size"],
                "pad": attributes["preprocessing"].get("pad", Pad.STRETCH.value),
                **{name: attributes[name] for name in ("latents", "scheduler", "seed", "creator", "version")},
                "latent_shift": attributes.get("latent_shift", 0.0),
                "checks": attributes.get("checks"),
                "where": where,
            }
            header: Self = parse(cls, found, "")
            return header
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{where} has a damaged header: {error!r}; set it right in its zarr.json, or build the store anew."
            ) from error

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """What noise is added by. Raises `ModelError` where the header states none that is by betas, and `StoreError`
        where the libraries here draw or mix other noise than those that made the store."""
        schedule = NoiseSchedule.parse(self.scheduler, f"The header of {self.where}")
        if self.checks is not None and dict(self.checks) != (here := known_checksums()):
            other = ", ".join(name for name in here if here[name] != self.checks.get(name))
            raise StoreError(
                f"{self.where} was made with libraries that give another {other} of noise than numpy "
                f"{creator_version('numpy')} here, so what is derived would not be what was kept: install the one "
                "that it was made with, or build another --store."
            )
        return schedule

    def _shaping(self) -> dict[str, Any]:
        """What shapes the arrays beside the model, by its name in a sentence."""
        try:
            noise = self.schedule.describe()
        except ModelError:  # a dualsd before this one copied the whole configuration
            noise = settings_of(self.scheduler)
        return {
            "dataset": self.dataset,
            "image size": self.image_size,
            "--pad": self.pad.value,
            "latents": self.latents.value,
            "seed": self.seed,
            "latents shifted by": self.latent_shift,
            "noise schedule": noise,
        }

    def check_same(self, asked: "StoreHeader", where: str) -> None:
        """Raise `StoreError`, naming both sides, where `asked` would cache other arrays than this store holds."""
        if self.model_fingerprint != asked.model_fingerprint:
            raise StoreError(
                f"{where} was made with the model {self.model_id} (fingerprint {self.model_fingerprint[:8]}), not "
                f"{asked.model_id} (fingerprint {asked.model_fingerprint[:8]}): name another --store."
            )
        theirs = asked._shaping()
        for what, mine in self._shaping().items():
            if mine != theirs[what]:
                raise StoreError(f"{where} was made with {what} {mine}, not {theirs[what]}: name another --store.")
