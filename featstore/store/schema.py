"""The store's header and its table of images: what was cached, by what and how, and which row is which image.

The header prints itself into the root group's attributes and reads itself back; two headers that disagree are told
apart in one sentence (docs/store.md, Header)."""

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featstore.backbones.noise import Latents, NoiseSchedule, settings_of
from featstore.errors import ModelError, StoreError
from featstore.parsing import STRICT, parse
from featstore.store.keys import IMAGES, METADATA, METADATA_ERRORS

FORMAT = "dualsd"
VERSION = 2
"""The newest version that is read here. A store is made with version 1."""

VERSION_OF_INT8 = 2
"""What a store becomes when the first maps are kept in it as int8: a dualsd that knows only version 1 would call those
damaged, and its `cache verify --drop` would take them away."""

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
    under diffusers' names. seed: of all noise. latent_shift: what was subtracted from the VAE's latents.
    creator: version of dualsd that made the store. version: of the store's format, the lowest that has all it holds.
    where: the store's place, for sentences.
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
        stated = attributes.get("version")
        if type(stated) is not int or stated < 1:
            raise StoreError(f"{where} has a damaged header: its version is {stated!r}.")
        if stated > VERSION:
            raise StoreError(
                f"{where} has store version {stated}, written by dualsd {attributes.get('creator', 'unknown')}; this "
                f"dualsd {creator_version()} reads up to version {VERSION}: upgrade it."
            )
        try:
            model, dataset = attributes["model"], attributes["dataset"]
            if attributes["dtype"] != STORED_DTYPE:
                raise ValueError(f"its dtype is {attributes['dtype']!r}, not {STORED_DTYPE!r}")
            found = {
                "dataset": dataset["name"],
                "dataset_root": dataset["root"],
                **{f"model_{name}": model[name] for name in ("id", "revision", "fingerprint")},
                "image_size": attributes["preprocessing"]["size"],
                **{name: attributes[name] for name in ("latents", "scheduler", "seed", "creator", "version")},
                "latent_shift": attributes.get("latent_shift", 0.0),
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
        """What noise is added by. Raises `ModelError` where the header states none that is by betas."""
        return NoiseSchedule.parse(self.scheduler, f"The header of {self.where}")

    def _shaping(self) -> dict[str, Any]:
        """What shapes the arrays beside the model, by its name in a sentence."""
        try:
            noise = self.schedule.describe()
        except ModelError:  # a dualsd before this one copied the whole configuration
            noise = settings_of(self.scheduler)
        return {
            "dataset": self.dataset,
            "image size": self.image_size,
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


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What file systems say that know no links: exFAT, many network mounts, Google Drive in Colab."""


def metadata_of(make: Callable[[zarr.Group], object], **attributes: Any) -> dict[str, Buffer]:
    """What zarr writes for the groups and arrays that `make` makes in the group that it is given, which has these
    attributes: by key, a group before what it holds."""
    memory: dict[str, Buffer] = {}
    make(zarr.create_group(MemoryStore(memory), attributes=attributes))
    return {key: memory[key] for key in sorted(memory, key=lambda key: key.count("/"))}


def create_missing(root: zarr.Group, make: Callable[[zarr.Group], object]) -> None:
    """Make those of the groups and arrays that `make` makes, in the group that it is given, which `root` lacks.

    zarr itself looks whether something is there and then writes it, and so may write over what another process made in
    between. Here it writes to memory, and each file of metadata is then put into its place whole, by a link that fails
    where there is one: no lock is needed, on one machine or on several, and whoever is killed leaves nothing half made.
    Where there are no links it is looked for and then renamed into its place: one process works there as anywhere.
    """
    contents = metadata_of(make)
    del contents[METADATA]
    for key, content in contents.items():
        place = root.store_path / key
        try:
            sync(place.set_if_not_exists(content))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not sync(place.exists()):
                sync(place.set(content))


def rewrite_metadata(root: zarr.Group, path: str, make: Callable[[zarr.Group], object]) -> None:
    """Put the metadata of the group or array at `path` that `make` makes in the place of those that lie there."""
    key = f"{path}/{METADATA}"
    sync((root.store_path / key).set(metadata_of(make)[key]))


@dataclass(frozen=True)
class ImageTable:
    """Columns of equal length; row i of every array of the store belongs to image i.

    ids, categories: as in the dataset. keys: hash of the file's bytes and of the mirroring. sizes: (N, 2) original
    width and height in pixels, 0 for an image that could not be read.
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    keys: tuple[str, ...]
    sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row by image id."""
        return {image: row for row, image in enumerate(self.ids)}

    @cached_property
    def known_keys(self) -> dict[str, str]:
        """Key by image id, of the images that could be read."""
        return {image: key for image, key, (width, _) in zip(self.ids, self.keys, self.sizes, strict=True) if width}

    def row(self, image: str) -> int:
        """The row of an image. Raises `StoreError` for one that is not in the store."""
        if image not in self.rows:
            raise StoreError(f"The image {image!r} is not in the store.")
        return self.rows[image]

    def size(self, image: str) -> tuple[int, int]:
        """Original (width, height) of an image in pixels. Raises `StoreError` where it could not be read."""
        width, height = self.sizes[self.row(image)]
        if width < 1 or height < 1:
            raise StoreError(
                f"The image {image!r} could not be read when the store was built: run `dualsd cache build`."
            )
        return int(width), int(height)


_TEXT_COLUMNS = ("id", "category", "key")
COLUMNS = tuple(f"{IMAGES}/{name}" for name in (*_TEXT_COLUMNS, "width", "height"))
"""Paths of the table's arrays."""


def write_images(group: zarr.Group, table: ImageTable) -> None:
    """Write the table; each column is one object."""
    images = group.require_group(IMAGES)
    # The key comes last: a run killed before it finds the image changed again, and writes its size again.
    columns = {
        "id": table.ids,
        "category": table.categories,
        "width": table.sizes[:, 0],
        "height": table.sizes[:, 1],
        "key": table.keys,
    }
    for name, values in columns.items():
        text = name in _TEXT_COLUMNS
        kind, lost = ("string", "") if text else ("int32", -1)  # what a lost column reads as, so that it shows
        if name not in images:
            size = (len(table),)
            images.create_array(name, shape=size, chunks=size, dtype=kind, fill_value=lost, compressors=Crc32cCodec())
        column = images[name]
        assert isinstance(column, zarr.Array)
        column[:] = np.array(values, dtype=object if text else np.int32)


def read_images(group: zarr.Group, where: str) -> ImageTable:
    """Read the table. Raises `StoreError` where it is missing or its columns do not fit together."""
    try:
        columns = {name: np.asarray(group[f"{IMAGES}/{name}"]) for name in (*_TEXT_COLUMNS, "width", "height")}
    except METADATA_ERRORS as error:
        raise StoreError(f"{where} has no readable table of images ({error}): delete it and build it again.") from error
    lengths = {len(values) for values in columns.values()}
    lost = [name for name in _TEXT_COLUMNS if not all(columns[name])]
    lost += [name for name in ("width", "height") if (columns[name] < 0).any()]
    if len(lengths) != 1 or lost:
        raise StoreError(f"The table of images of {where} is incomplete: delete the store and build it again.")
    doubled = [str(image) for image, count in Counter(columns["id"].tolist()).items() if count > 1]
    if doubled:
        raise StoreError(
            f"The table of images of {where} has the image {doubled[0]!r} more than once: delete the store and "
            "build it again."
        )
    ids, categories, keys = (tuple(str(value) for value in columns[name]) for name in _TEXT_COLUMNS)
    return ImageTable(ids, categories, keys, np.stack([columns["width"], columns["height"]], axis=1).astype(np.int32))
