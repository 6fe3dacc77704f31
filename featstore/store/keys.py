"""What lies where: the place of a store, paths and names of its arrays, and what the names of maps stand for."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from featstore.backbones.base import CLEAN, NetworkName
from featstore.errors import StoreError
from featstore.plain_text import free_bytes

_OTHER_CLOUDS = ("gs", "gcs", "az", "azure", "adl", "abfs", "abfss", "r2", "http", "https", "ftp", "sftp", "file")


@dataclass(frozen=True, slots=True)
class S3Location:
    """A store on object storage that speaks S3. prefix: within the bucket, without slashes around it."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


StoreLocation = Path | S3Location
"""A local folder, or a prefix in a bucket. Both print themselves as they are typed."""


def parse_location(typed: str | StoreLocation) -> StoreLocation:
    """`spair.zarr` or `s3://bucket/prefix`. Raises `StoreError` for an address that is neither."""
    if isinstance(typed, S3Location):
        return typed
    text = str(typed)
    scheme, _, rest = text.partition(":")
    if scheme.lower() in ("s3", "s3a", "s3n") and rest.startswith("/"):
        if scheme != "s3" or not re.match(r"//[^/]", rest):
            raise StoreError(f"{text} is no address on S3: write s3://bucket/prefix, with two slashes.")
        bucket, _, prefix = rest.removeprefix("//").partition("/")
        parts = [part for part in prefix.split("/") if part]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+[A-Za-z0-9]", bucket):
            raise StoreError(f"{text} names no bucket that can be: {bucket!r} is no bucket's name.")
        if not parts or any(part in (".", "..") for part in parts):
            raise StoreError(f"{text} must say where in the bucket the store lies: s3://{bucket}/dualsd.zarr, say.")
        return S3Location(bucket, "/".join(parts))
    if scheme.lower() in _OTHER_CLOUDS and rest.startswith("/"):
        raise StoreError(
            f"{text} cannot hold a store: --store takes a folder or s3://bucket/prefix (Google's and other clouds "
            "speak S3, too: name theirs in AWS_ENDPOINT_URL)."
        )
    return Path(text)


def absolute(location: StoreLocation) -> str:
    """Where a store lies, wherever one stands."""
    return str(location.resolve() if isinstance(location, Path) else location)


def free_at(location: StoreLocation) -> int | None:
    """Free bytes where a store lies or will lie; None of object storage, which has no end."""
    return free_bytes(location) if isinstance(location, Path) else None


@dataclass(frozen=True, slots=True)
class StoredObject:
    """key: within the store. modified: seconds since 1970. e_tag: of what it holds, on object storage."""

    key: str
    bytes: int
    modified: float
    e_tag: str | None = None


LOCK = ".lock"
"""The object that whoever rearranges a store holds, in the store's root."""

METADATA = "zarr.json"
"""The name of an array's or a group's metadata."""

METADATA_ERRORS = (ValueError, KeyError, TypeError, OSError, AttributeError, OverflowError, AssertionError)
"""What zarr raises of metadata that are damaged."""

LATENTS = "latents"
IMAGES = "images"
NOISY = "noisy"
MAPS = "maps"
CONDITIONING = "cond"
PATCH_TOKENS = f"{CONDITIONING}/dinov2"
GRIDS = "grids"


RAW = "raw"
"""How maps are kept where nothing else is said: float16, as they are."""

OUTDATED = "stored"
"""What the description of maps says that versions before this one kept as 8-bit integers; nobody reads those now."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """All that shapes a map of the UNet beyond the image and (layer, timestep).

    prompt: what `describe()` of the prompts gives (its content, not its file). ensemble: noise draws averaged.
    dtype: the precision it was computed in. model_fingerprint, seed: as in the store's header. encoding: how it is
    kept, see `featstore.store.rows.ENCODINGS`.
    """

    model_fingerprint: str
    prompt: Mapping[str, Any]
    ensemble: int
    dtype: str
    seed: int
    encoding: str = RAW

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return _described(self.encoding, asdict(self))

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        return _parsed(cls, attributes)

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group."""
        return _key(self.describe())


@dataclass(frozen=True, slots=True)
class PixelExtractor:
    """All that shapes a map beyond the image where networks see the image alone, with neither noise nor text.

    family: of the backbone, e.g. `dino`. network: which of that family. size: side in pixels of the square that images
    are resized to. dtype: the precision it was computed in. encoding: how it is kept. debias: directions of its
    descriptors that were taken out.
    """

    family: str
    network: NetworkName
    size: int
    dtype: str
    encoding: str = RAW
    debias: int = 0

    def describe(self) -> dict[str, Any]:
        """For the group's attributes; of what is not asked for nothing, as versions before this one knew of none."""
        own = {self.family: asdict(self.network), "size": self.size, "dtype": self.dtype}
        return _described(self.encoding, {**own, **({"debias": self.debias} if self.debias else {})})

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        networks = [{"family": key, "network": own} for key, own in attributes.items() if isinstance(own, Mapping)]
        return _parsed(cls, {**attributes, **networks[0]}) if len(networks) == 1 else None

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group; where the network's files lie is no part of them."""
        return _key({**self.describe(), self.family: self.network.fingerprint})


@dataclass(frozen=True, slots=True)
class AdaptedExtractor:
    """All that shapes an adapted map beyond the image and (layer, timestep).

    adapter: its fingerprint. sources: the keys of the extractors whose maps it takes. encoding: how it is kept.
    """

    adapter: str
    sources: tuple[str, ...]
    encoding: str = RAW

    def describe(self) -> dict[str, Any]:
        """For the group's attributes."""
        return _described(self.encoding, {"adapter": self.adapter, "sources": [*self.sources]})

    @classmethod
    def from_description(cls, attributes: Mapping[str, Any]) -> Self | None:
        """The extractor that a group's attributes describe, None where they are another kind's."""
        return _parsed(cls, attributes)

    @property
    def key(self) -> str:
        """16 hex digits that name the extractor's group."""
        return _key(self.describe())


AnyExtractor = Extractor | PixelExtractor | AdaptedExtractor


def noisy_path(timestep: int) -> str:
    """Of the array of noisy latents at a timestep: `noisy/t0261`."""
    return f"{NOISY}/t{timestep:04d}"


def leading_of(path: str) -> int:
    """How many dimensions of an array count its rows: of noisy latents images and draws."""
    return 2 if path.startswith(f"{NOISY}/") else 1


def map_path(extractor: AnyExtractor, layer: int | str, timestep: float | None) -> str:
    """Of the array of an extractor's maps: `maps/<hash>/layer2/t0261`; of a network without noise
    `maps/<hash>/dino/patches`, of one whose times are shares of a flow `maps/<hash>/layer2/s0.250`."""
    name = quote(str(layer), safe="")  # whatever it is, it is one folder
    if timestep is None:
        where = f"{name}/patches" if isinstance(extractor, PixelExtractor) else f"layer{name}/{CLEAN}"
    else:
        where = f"layer{name}/" + (f"t{timestep:04d}" if isinstance(timestep, int) else f"s{timestep:.3f}")
    return f"{MAPS}/{extractor.key}/{where}"


def number_of(path: str) -> int:
    """The number that a path ends in: `layer2` to 2, `noisy/t0261` to 261, -1 where there is none."""
    digits = re.search(r"\d+$", path)
    return int(digits.group()) if digits else -1


def timestep_of(path: str) -> int | None:
    """The timestep of an array of maps or noisy latents; None of those without noise."""
    found = re.fullmatch(r"t(\d+)", path.rpartition("/")[2])
    return None if found is None else int(found[1])


Made = TypeVar("Made")


def _described(encoding: str, description: dict[str, Any]) -> dict[str, Any]:
    """With its encoding; nothing for raw maps: the names of maps that are kept so are those of versions that knew
    nothing else."""
    own = {name: value for name, value in description.items() if name != "encoding"}
    return own if encoding == RAW else {**own, "encoding": encoding}


def _parsed(kind: type[Made], attributes: Mapping[str, Any]) -> Made | None:
    from featstore.parsing import parse_known  # pydantic, which no command line needs that asks for help

    if OUTDATED in attributes:
        return None
    try:
        made: Made = parse_known(kind, attributes)
    except ValueError:
        return None
    return made


def _key(description: Mapping[str, Any]) -> str:
    text = json.dumps(description, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
