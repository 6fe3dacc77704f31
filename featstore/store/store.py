"""Open or make a store: header, table of images and arrays of rows in one place (docs/store.md)."""

import errno
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.errors import GroupNotFoundError

from featstore.backbones.base import NetworkName
from featstore.errors import StoreError, StoreExistsError
from featstore.files import MAKING, writing
from featstore.store import keys
from featstore.store.bucket import BucketStore, open_bucket
from featstore.store.lock import exclusive
from featstore.store.row_file import folders
from featstore.store.rows import RowArray, damaged_metadata, open_rows, require_group, require_rows
from featstore.store.schema import (
    STORED_DTYPE,
    VERSION_OF_INT8,
    ImageTable,
    StoreHeader,
    create_missing,
    metadata_of,
    read_images,
    write_images,
)

_BELOW = (f"{keys.NOISY}/*", f"{keys.MAPS}/*/*/*", f"{keys.CONDITIONING}/*")
"""Where arrays lie, as patterns."""


@dataclass(frozen=True, slots=True)
class Store:
    """An open store. `path`: where it lies, as the user named it."""

    path: keys.StoreLocation
    group: zarr.Group
    header: StoreHeader
    images: ImageTable

    def latents(self) -> RowArray:
        """(N, 4, h, w), ready for `add_noise`."""
        found = self.array(keys.LATENTS)
        if found is None:
            raise StoreError(f"{self.path} has no latents: delete it and run `dualsd cache build` again.")
        return found

    def noisy(self, timestep: int) -> RowArray | None:
        """(N, E, 4, h, w) noisy latents at a timestep, None where none were made."""
        return self.array(keys.noisy_path(timestep))

    def require_noisy(self, timestep: int, draws: int) -> RowArray:
        """The same, made or grown to `draws` draws an image."""
        array = require_rows(
            self.group, keys.noisy_path(timestep), (len(self.images), draws), self.latents().row_shape, STORED_DTYPE
        )
        if array.rows_shape[1] < draws:
            with exclusive(self.path):  # nobody packs it meanwhile
                array.grow(draws)
        return array

    def maps(self, extractor: keys.AnyExtractor, layer: int | str, timestep: int | None) -> RowArray | None:
        """(N, C, h, w) maps of an extractor, None where none were made."""
        return self.array(keys.map_path(extractor, layer, timestep))

    def require_maps(
        self, extractor: keys.AnyExtractor, layer: int | str, timestep: int | None, shape: tuple[int, int, int]
    ) -> RowArray:
        """The same, made where missing, each map of `shape` (C, h, w); the extractor's group says what it is."""
        if extractor.stored is not keys.Stored.FLOAT16:
            _require_version(self, VERSION_OF_INT8)
        require_group(self.group, f"{keys.MAPS}/{extractor.key}", extractor.describe())
        path = keys.map_path(extractor, layer, timestep)
        return require_rows(self.group, path, (len(self.images),), shape, extractor.stored.value)

    def extractors(self) -> list[keys.Extractor]:
        """Those of the UNet whose maps it has, of any prompt, ensemble and dtype."""
        found = map(keys.Extractor.from_description, self._descriptions())
        return [extractor for extractor in found if extractor is not None]

    def pixel_extractors(self, family: str) -> list[keys.PixelExtractor]:
        """Those of a family whose maps it has, of any network, size and dtype."""
        found = map(keys.PixelExtractor.from_description, self._descriptions())
        return [extractor for extractor in found if extractor is not None and extractor.family == family]

    def _descriptions(self) -> list[dict[str, Any]]:
        """What the groups of maps say of themselves."""
        group = self.group.get(keys.MAPS)
        return [member.attrs.asdict() for _, member in group.groups()] if isinstance(group, zarr.Group) else []

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
        return require_rows(self.group, keys.PATCH_TOKENS, (len(self.images),), shape, STORED_DTYPE)

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
        found = open_rows(self.group, path, keys.leading_of(path))
        if found is not None and found.rows_shape[0] != len(self.images):
            raise damaged_metadata(self.group, path, f"{found.rows_shape[0]} rows of {len(self.images)} images")
        return found

    def array_paths(self) -> list[str]:
        """Of every array of rows: latents, noisy latents, maps, patch tokens."""
        # Not zarr's own listing: damaged metadata of one array would hide all others.
        return [keys.LATENTS, *(folder for below in _BELOW for folder in folders(self.path, below))]

    def arrays(self) -> dict[str, RowArray]:
        """Every array of rows by its path. Raises `MetadataError` where the metadata of one are damaged."""
        found = {keys.LATENTS: self.latents()}
        found |= {path: array for path in self.array_paths() if (array := self.array(path)) is not None}
        return found


def open_store(place: str | keys.StoreLocation) -> Store:
    """Open an existing store.

    Args:
        place: Its folder or address on S3, as text (`"spair.zarr"`, `"s3://bucket/prefix"`) or parsed.

    Raises:
        StoreError: Where there is none, or none that this version can read.
    """
    path = keys.parse_location(place)
    store = open_if_there(path)
    if store is None:
        raise StoreError(f"There is no store at {path}: make one with `dualsd cache build --store {path}`.")
    return store


def open_if_there(path: keys.StoreLocation) -> Store | None:
    """The store at `path`, None where nothing lies there. Raises `StoreError` for anything but a dualsd store."""
    if not is_there(path):
        return None
    try:
        place = path if isinstance(path, Path) else BucketStore(open_bucket(path))
        group = zarr.open_group(place, mode="r+", zarr_format=3, use_consolidated=False)
    except (GroupNotFoundError, *keys.METADATA_ERRORS) as error:
        raise StoreError(f"{path} is no dualsd store: it has no Zarr v3 group that can be read.") from error
    header = StoreHeader.from_attributes(group.attrs.asdict(), str(path))
    return Store(path, group, header, read_images(group, str(path)))


def create_store(
    path: keys.StoreLocation, header: StoreHeader, images: ImageTable, latent_shape: tuple[int, int, int]
) -> Store:
    """Make a store with no latents yet. It appears at `path` whole or not at all.

    Raises `StoreExistsError` where something lies there, another process's store that came first among others.
    """

    def fill(group: zarr.Group) -> None:
        write_images(group, images)
        require_rows(group, keys.LATENTS, (len(images),), latent_shape, STORED_DTYPE)

    taken = StoreExistsError(f"{path} exists already: name another --store.")
    if is_there(path):
        raise taken
    if not isinstance(path, Path):  # where there is no renaming: its root comes last, and only if none came before
        bucket, contents = open_bucket(path), metadata_of(fill, **header.to_attributes())
        root = contents.pop(keys.METADATA)
        for key, content in contents.items():
            bucket.write(key, content.to_bytes())
        if not bucket.create(keys.METADATA, root.to_bytes()):
            raise taken
        return open_store(path)
    with writing(f"The store {path}", place=path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", suffix=MAKING, dir=path.parent) as folder:
            making = Path(folder) / "store"
            create_missing(zarr.create_group(making, attributes=header.to_attributes()), fill)
            try:
                making.rename(path)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise taken from error
                raise
    return open_store(path)


def is_there(path: keys.StoreLocation) -> bool:
    """Whether anything lies where a store would: on object storage, whether a store's root does."""
    return path.exists() if isinstance(path, Path) else keys.METADATA in open_bucket(path).level("")[0]


def record_whereabouts(store: Store, header: StoreHeader) -> None:
    """Record where the dataset and the model lie now; what they are has not changed."""
    if (store.header.dataset_root, store.header.model_id) == (header.dataset_root, header.model_id):
        return
    with writing(f"The header of {store.path}", place=store.path):
        store.group.update_attributes({key: header.to_attributes()[key] for key in ("dataset", "model")})


def _require_version(store: Store, version: int) -> None:
    """Let a store say that it holds what only such a version reads, before it does."""
    # as it is now: another process may have written the header since the store was opened
    root = zarr.open_group(store.group.store_path, mode="r+", zarr_format=3, use_consolidated=False)
    if int(str(root.attrs["version"])) < version:
        with writing(f"The header of {store.path}", place=store.path):
            root.update_attributes({"version": version})


def replace_stale(store: Store, keys_now: tuple[str, ...], sizes: NDArray[np.int32]) -> tuple[Store, int]:
    """Forget every row of the images whose key changed, then record the new keys: (the store, how many changed).

    In that order, so that a run killed in between finds them stale again. No array may be packed.
    """
    stale = [row for row, (old, new) in enumerate(zip(store.images.keys, keys_now, strict=True)) if old != new]
    if not stale and np.array_equal(sizes, store.images.sizes):
        return store, 0
    for array in store.arrays().values() if stale else ():
        array.delete_rows([(row, *rest) for row in stale for rest in np.ndindex(array.rows_shape[1:])])
    table = replace(store.images, keys=keys_now, sizes=sizes)
    with writing(f"The table of images of {store.path}", place=store.path):
        write_images(store.group, table)
    return replace(store, images=table), len(stale)


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
        found.append(ArraySummary(path, array.row_shape, present.size, count, count * array.row_bytes, what))
    return found


def _what(store: Store, path: str) -> str:
    kind, _, rest = path.partition("/")
    if kind != keys.MAPS:
        return ""
    attributes = store.attributes(f"{keys.MAPS}/{rest.split('/')[0]}")
    stored = f", kept as {attributes['stored']}" if "stored" in attributes else ""
    alone = keys.PixelExtractor.from_description(attributes)
    if alone is not None:
        named = "DINOv2" if alone.family == "dino" else alone.family
        return f"{named} {alone.network.id!r}, {alone.size} pixels, {alone.dtype}{stored}"
    prompt = attributes.get("prompt")
    words = prompt.get("template", prompt.get("kind")) if isinstance(prompt, dict) else "unknown prompt"
    return f"{words!r}, ensemble {attributes.get('ensemble')}, {attributes.get('dtype')}{stored}"
