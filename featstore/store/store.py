"""Open or make a store: header, log of images and arrays of rows in one place (docs/store.md)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.errors import GroupNotFoundError

from featstore.backbones.base import NetworkName
from featstore.backbones.registry import TITLES
from featstore.errors import MetadataError, StoreError, StoreExistsError
from featstore.files import writing
from featstore.progress import Progress
from featstore.store import keys
from featstore.store.images import (
    COLUMNS,
    LOG,
    Change,
    ImageEntry,
    ImageTable,
    change_of,
    first_entry,
    has_columns,
    read_columns,
    read_log,
    record,
    write_columns,
)
from featstore.store.metadata import damaged_metadata, metadata_of, open_root, require_group
from featstore.store.objects import Objects, objects_at
from featstore.store.rows import ENCODINGS, RowArray, create_rows, open_rows, require_rows
from featstore.store.schema import VERSION, StoreHeader

_BELOW = {keys.NOISY: 1, keys.MAPS: 3, keys.CONDITIONING: 1}
"""How many folders below these groups arrays lie."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store. path: where it lies, as the user named it. objects: its bytes there. group: its metadata, as zarr
    knows them. images: as they were when it was opened."""

    path: keys.StoreLocation
    objects: Objects
    group: zarr.Group
    header: StoreHeader
    images: ImageTable

    def newest(self) -> "Store":
        """The store with the images that it has now: others may have added some since it was opened."""
        return replace(self, images=read_log(self.objects) or self.images)

    def latents(self) -> RowArray:
        """(N, c, h, w), ready for noise."""
        found = self.array(keys.LATENTS)
        if found is None:
            raise StoreError(f"{self.path} has no latents: delete it and run `dualsd cache build` again.")
        return found

    def noisy(self, timestep: int) -> RowArray | None:
        """(N, E, c, h, w) noisy latents at a timestep, None where none were made."""
        return self.array(keys.noisy_path(timestep))

    def require_noisy(self, timestep: int, draws: int) -> RowArray:
        """The same, made or grown to `draws` draws an image."""
        rows, path = (len(self.images), draws), keys.noisy_path(timestep)
        return require_rows(self.group, path, rows, self.latents().row_shape)

    def maps(self, extractor: keys.AnyExtractor, layer: int | str, timestep: int | None) -> RowArray | None:
        """(N, C, h, w) maps of an extractor, None where none were made."""
        return self.array(keys.map_path(extractor, layer, timestep))

    def require_maps(
        self, extractor: keys.AnyExtractor, layer: int | str, timestep: int | None, shape: tuple[int, int, int]
    ) -> RowArray:
        """The same, made where missing, each map of `shape` (C, h, w); the extractor's group says what it is."""
        require_group(self.group, f"{keys.MAPS}/{extractor.key}", extractor.describe())
        path = keys.map_path(extractor, layer, timestep)
        return require_rows(self.group, path, (len(self.images),), shape, ENCODINGS[extractor.encoding])

    def extractors(self) -> list[keys.Extractor]:
        """Those of the UNet whose maps it has, of any prompt, ensemble and dtype."""
        found = map(keys.Extractor.from_description, self.descriptions().values())
        return [extractor for extractor in found if extractor is not None]

    def pixel_extractors(self, family: str) -> list[keys.PixelExtractor]:
        """Those of a family whose maps it has, of any network, size and dtype."""
        found = map(keys.PixelExtractor.from_description, self.descriptions().values())
        return [extractor for extractor in found if extractor is not None and extractor.family == family]

    def descriptions(self) -> dict[str, dict[str, Any]]:
        """What the groups of maps say of themselves, by their names."""
        found = {}
        for name in self.objects.level(keys.MAPS)[1]:
            with suppress(MetadataError):  # one that is damaged hides no others
                found[name] = self.attributes(f"{keys.MAPS}/{name}")
        return found

    def outdated(self) -> list[str]:
        """Names of the extractors whose maps are of 8 bits, as versions before this one kept them: nobody reads those
        any more."""
        return sorted(name for name, own in self.descriptions().items() if keys.OUTDATED in own)

    def patch_tokens(self, dino: NetworkName) -> RowArray | None:
        """(N, 1 + patches, width) tokens of a DINOv2, None where none were made. Raises `StoreError` where they are
        another's."""
        made_by = self.attributes(keys.CONDITIONING)
        if made_by.get("fingerprint", dino.fingerprint) != dino.fingerprint:
            raise StoreError(
                f"{self.path} holds tokens of the DINOv2 {made_by.get('id')} (fingerprint "
                f"{str(made_by['fingerprint'])[:8]}), not of {dino.id} (fingerprint {dino.fingerprint[:8]}): name "
                "that one with --dino, or take another --store."
            )
        return self.array(keys.PATCH_TOKENS)

    def require_patch_tokens(self, dino: NetworkName, shape: tuple[int, int]) -> RowArray:
        """The same, made where missing; the group says whose they are."""
        require_group(self.group, keys.CONDITIONING, asdict(dino))
        return require_rows(self.group, keys.PATCH_TOKENS, (len(self.images),), shape)

    def attributes(self, path: str) -> dict[str, Any]:
        """Of a group: what describes an extractor or whose patch tokens they are; empty where there is no such group.
        Raises `MetadataError` where they are damaged."""
        try:
            group = self.group.get(path)
            return group.attrs.asdict() if isinstance(group, zarr.Group) else {}
        except keys.METADATA_ERRORS as error:
            raise damaged_metadata(self.group, path, str(error) or repr(error)) from error

    def array(self, path: str) -> RowArray | None:
        """An array of rows by its path, None where there is none. Raises `MetadataError` where its metadata are
        damaged."""
        return open_rows(self.group, path, keys.leading_of(path), len(self.images))

    def folders(self, prefix: str, depth: int) -> list[str]:
        """Paths of the folders so far below a prefix, sorted; on object storage a request per folder above them."""
        found = [prefix]
        for _ in range(depth):
            found = [f"{folder}/{name}" for folder in found for name in self.objects.level(folder)[1]]
        return sorted(found)

    def array_paths(self) -> list[str]:
        """Of every array of rows: latents, noisy latents, maps, patch tokens. Not those of 8 bits (`outdated`)."""
        # Not zarr's own listing: damaged metadata of one array would hide all others.
        found = [keys.LATENTS, *(path for prefix, depth in _BELOW.items() for path in self.folders(prefix, depth))]
        old = {f"{keys.MAPS}/{name}" for name in self.outdated()}
        return [path for path in found if path.rsplit("/", 2)[0] not in old]

    def arrays(self) -> dict[str, RowArray]:
        """Every array of rows by its path. Raises `MetadataError` where the metadata of one are damaged."""
        found = {keys.LATENTS: self.latents()}
        found |= {path: array for path in self.array_paths() if (array := self.array(path)) is not None}
        return found


def open_store(place: str | keys.StoreLocation, durable: bool = True) -> Store:
    """Open an existing store.

    Args:
        place: Its folder or address on S3, as text (`"spair.zarr"`, `"s3://bucket/prefix"`) or parsed.
        durable: Whether what is written is forced to the disk before it counts.

    Raises:
        StoreError: Where there is none, or none that this version can read.
    """
    path = keys.parse_location(place)
    store = open_if_there(path, durable)
    if store is None:
        raise StoreError(f"There is no store at {path}: make one with `dualsd cache build --store {path}`.")
    return store


def open_if_there(path: keys.StoreLocation, durable: bool = True) -> Store | None:
    """The store at `path`, None where nothing lies there. durable: see `featstore.store.objects.Folder`. Raises
    `StoreError` for anything but a dualsd store."""
    objects = objects_at(path, durable)
    if not objects.exists():
        return None
    try:
        group = open_root(objects)
    except (GroupNotFoundError, *keys.METADATA_ERRORS) as error:
        raise StoreError(f"{path} is no dualsd store: it has no Zarr v3 group that can be read.") from error
    header = StoreHeader.from_attributes(group.attrs.asdict(), str(path))
    images = read_log(objects)
    if images is None and header.version >= VERSION:
        raise StoreError(f"{path} has lost the log of its images: put it back from a copy, or build the store anew.")
    return Store(path, objects, group, header, images or read_columns(group, str(path)))


def create_store(
    path: keys.StoreLocation,
    header: StoreHeader,
    images: ImageTable,
    latent_shape: Sequence[int],
    durable: bool = True,
) -> Store:
    """Make a store with no latents yet. It appears at `path` whole or not at all.

    Raises `StoreExistsError` where something lies there, another process's store that came first among others.
    """

    def fill(group: zarr.Group) -> None:
        write_columns(group, images)
        create_rows(group, keys.LATENTS, (len(images),), latent_shape)

    objects = objects_at(path, durable)
    contents = metadata_of(fill, **header.to_attributes()) | first_entry(images)
    if objects.exists() or not objects.make(contents):
        raise StoreExistsError(f"{path} exists already: name another --store.")
    store = open_if_there(path, durable)
    if store is None:
        raise StoreError(f"The store {path} was made, and is gone again.")
    return store


def record_whereabouts(store: Store, header: StoreHeader) -> None:
    """Record where the dataset and the model lie now; what they are has not changed."""
    whereabouts = [
        (one.dataset_root, one.dataset_annotations, one.model_id, one.model_unet) for one in (store.header, header)
    ]
    if whereabouts[0] != whereabouts[1]:
        _write_header(store, **{key: header.to_attributes()[key] for key in ("dataset", "model")})


def _write_header(store: Store, **attributes: Any) -> None:
    with writing(f"The header of {store.path}", place=store.objects.disk):
        open_root(store.objects).update_attributes(attributes)  # as it is now, and not when the store was opened


def update_images(store: Store, found: Sequence[ImageEntry], progress: Progress) -> Store:
    """The store with the images that a data set has now: those that are new, changed or back have rows, and those that
    are no longer there are gone; their rows stay until `cache prune --gone`. What other builders add meanwhile is kept.

    Args:
        store: As it was when the data set was looked at.
        found: All images of the data set.
        progress: Told for whom it waits.

    Raises:
        StoreError, DiskFullError: Where that cannot be written down.
    """
    images = store.images
    if change_of(found, images, images) != Change():
        if not images.entries:
            with writing(f"The log of images of {store.path}", place=store.objects.disk):
                for key, content in first_entry(images).items():
                    store.objects.create(key, content)
        if store.header.version < VERSION:  # a dualsd before this one would not see the log, and must know of it
            _write_header(store, version=VERSION)
        images = record(store.objects, found, images)
    if images.entries and not has_columns(store.group, images):
        with store.objects.exclusive("new images", progress.note):
            store.objects.sweep([LOG, *(f"{path}/c" for path in COLUMNS)])
            now = store.newest()
            for array in now.arrays().values():
                array.lengthen((len(now.images),))
            with writing(f"The table of images of {store.path}", place=store.objects.disk):
                write_columns(store.group, now.images)
    return replace(store, images=images)


KEPT = 256
"""Images whose tokens are kept in memory: 200 MB."""

PatchTokens = Callable[[str], Tensor]
"""The patch tokens of an image, (patches, width), float32 on the CPU."""


def patch_tokens_of(store: Store, tokens: RowArray) -> PatchTokens:
    """Reads a store's tokens, which have the class token first."""

    @lru_cache(maxsize=KEPT)
    def of(image: str) -> Tensor:
        return torch.from_numpy(tokens.read((store.images.row(image),)).astype(np.float32)[1:])

    return of


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """path: in the store. row_shape: of one row. rows: that could be there; present: that are. bytes: on disk.
    what: the extractor of maps in words, and whether its rows share files."""

    path: str
    row_shape: tuple[int, ...]
    rows: int
    present: int
    bytes: int
    what: str


def summarise(store: Store) -> list[ArraySummary]:
    """Every array of rows; rows are listed, none is read."""
    found = []
    for path, array in store.arrays().items():
        present = array.present()
        count = int(present.sum())
        what = ", ".join(filter(None, (_what(store, path), "packed" if array.packed else "")))
        found.append(ArraySummary(path, array.row_shape, present.size, count, array.stored_bytes(), what))
    return found


def _what(store: Store, path: str) -> str:
    kind, _, rest = path.partition("/")
    if kind != keys.MAPS:
        return ""
    attributes = store.attributes(f"{keys.MAPS}/{rest.split('/')[0]}")
    stored = f", {attributes['encoding']}" if "encoding" in attributes else ""
    alone = keys.PixelExtractor.from_description(attributes)
    if alone is not None:
        named = TITLES.get(alone.family, alone.family)
        removed = f", {alone.debias} directions of position taken out" if alone.debias else ""
        return f"{named} {alone.network.id!r}, {alone.size} pixels, {alone.dtype}{removed}{stored}"
    if "adapter" in attributes:
        return f"adapter {attributes['adapter']} on maps of {', '.join(attributes['sources'])}{stored}"
    prompt = attributes.get("prompt")
    words = prompt.get("template", prompt.get("kind")) if isinstance(prompt, dict) else "unknown prompt"
    return f"{words!r}, ensemble {attributes.get('ensemble')}, {attributes.get('dtype')}{stored}"
